"""A cache in an OCI image layout, a directory: entries are manifests as in a registry.

The index of a layout is one file. It is read when it has changed, and what is put is added to it
together, at the end and every few seconds.
"""

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import anyio
import anyio.to_thread
import msgspec

from obuilder.backends.caches import CacheName, Take
from obuilder.backends.caches.registry import ARTIFACT, entry_in, manifest_of, tag_of
from obuilder.errors import BadImage, DigestMismatch, NotFound, Unreachable, UsageError
from obuilder.oci.manifest import MANIFEST, Descriptor
from obuilder.oci.pack import Blob
from obuilder.oci.parts import DOCUMENT
from obuilder.oci.reference import is_sha256
from obuilder.oci.writers import Layout
from obuilder.values import CacheSettings, Key, RegistrySettings

T = TypeVar("T")
_TAG = "org.opencontainers.image.ref.name"
_OFTEN = 5.0
"""Seconds after which what was put can be found, also if whoever puts it is killed then."""
_PIECE = 1 << 20


class _Tagged(msgspec.Struct):
    digest: str
    annotations: dict[str, str] = {}


class _Index(msgspec.Struct):
    manifests: list[_Tagged] = []


class LayoutCache:
    """See `Place`."""

    def __init__(
        self, name: CacheName, _: CacheSettings, __: Mapping[str, RegistrySettings]
    ) -> None:
        self.name = name.name
        self._path = name.rest
        self._known: dict[str, str] = {}
        self._seen = (0, 0)
        self._pending: list[dict[str, Any]] = []
        self._added = time.monotonic()

    async def entry(self, key: Key) -> bytes | None:
        """See `Place`."""
        return await self._do(lambda: self._entry(tag_of(key)))

    def _entry(self, tag: str) -> bytes | None:
        digest = self._tags().get(tag)
        if digest is None:
            return None
        try:
            with open(self._blob(digest), "rb") as file:
                data = file.read(DOCUMENT)
        except FileNotFoundError:
            return None
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise DigestMismatch(f"{self.name}: the manifest {digest} is not what its name says")
        return entry_in(data, f"{self.name}:{tag}")

    def _tags(self) -> dict[str, str]:
        """The digests of all that has a tag."""
        index = os.path.join(self._path, "index.json")
        try:
            status = os.stat(index)
        except FileNotFoundError:
            return {}
        seen = (status.st_ino, status.st_mtime_ns)
        if seen != self._seen:
            with open(index, "rb") as file:
                found = msgspec.json.decode(file.read(), type=_Index)
            self._known = {one.annotations.get(_TAG, ""): one.digest for one in found.manifests}
            self._seen = seen
        return self._known

    async def put_entry(self, key: Key, entry: bytes, blobs: Sequence[Descriptor]) -> None:
        """See `Place`."""
        data = manifest_of(entry, blobs)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        await self._do(lambda: self._layout.write(digest, io.BytesIO(data)))
        self._pending.append(
            {
                "mediaType": MANIFEST, "digest": digest, "size": len(data),
                "artifactType": ARTIFACT, "annotations": {_TAG: tag_of(key)},
            }
        )  # fmt: skip
        if time.monotonic() - self._added > _OFTEN:
            await self.finish()

    async def has(self, digest: str, size: int) -> bool:
        """See `Place`."""
        return await self._do(lambda: self._layout.has(Blob("", digest, size, "tar")))

    async def put(
        self, digest: str, size: int, file: BinaryIO, progress: Callable[[int], None]
    ) -> None:
        """See `Place`."""
        await self._do(lambda: self._layout.write(digest, file))
        progress(size)

    async def blob(self, digest: str, size: int, take: Take, *, start: int = 0) -> None:
        """See `Place`."""
        with self._translated():
            try:
                file = open(self._blob(digest), "rb")  # noqa: SIM115 # closed below
            except FileNotFoundError:
                raise NotFound(f"{self.name} has no blob {digest}") from None
            with file:
                if os.fstat(file.fileno()).st_size != size:
                    raise DigestMismatch(f"{self.name}: {digest} is not {size} bytes")
                file.seek(start)
                while data := await anyio.to_thread.run_sync(file.read, _PIECE):
                    await take(data)

    async def finish(self) -> None:
        """See `Place`."""
        pending, self._pending = self._pending, []
        self._added = time.monotonic()
        if pending:
            await self._do(lambda: self._layout.add(pending))

    async def close(self) -> None:
        """Nothing is open."""

    @property
    def _layout(self) -> Layout:
        return Layout(self._path)

    def _blob(self, digest: str) -> str:
        if not is_sha256(digest):
            raise BadImage(f"{self.name}: {digest!r} is no SHA-256 digest")
        return os.path.join(self._path, "blobs", "sha256", digest.removeprefix("sha256:"))

    async def _do(self, work: Callable[[], T]) -> T:
        with self._translated():
            return await anyio.to_thread.run_sync(work)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unreachable(f"{self.name} can't be used: {error.strerror}") from error
        except (UsageError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadImage(f"{self.name} can't be used: {error}") from error
