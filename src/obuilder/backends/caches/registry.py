"""A cache in a repository of a registry: an entry is a manifest, under a tag made of the key.

The manifest names all blobs that its entry needs, so the registry's own rules keep them, and removing
the tag lets go of them. The entry itself stands in an annotation: to look it up is one request.
"""

import base64
import binascii
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

import msgspec

from obuilder.backends.caches import CacheName, Take
from obuilder.errors import BadImage, NotFound
from obuilder.oci.manifest import MANIFEST, Descriptor
from obuilder.oci.push import Target
from obuilder.oci.reference import Reference
from obuilder.oci.registry import Repository
from obuilder.values import CacheSettings, Key, RegistrySettings

ARTIFACT = "application/vnd.obuilder.cache.v1"
_ENTRY = "org.obuilder.cache.entry"
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_EMPTY_DIGEST = f"sha256:{hashlib.sha256(_EMPTY).hexdigest()}"


class _Artifact(msgspec.Struct, rename="camel"):
    annotations: dict[str, str] = {}


def tag_of(key: Key) -> str:
    """What an entry is found by."""
    return f"obuilder-{key}"


def manifest_of(entry: bytes, blobs: Sequence[Descriptor]) -> bytes:
    """The manifest of an entry that needs these blobs."""
    empty = Descriptor(_EMPTY_DIGEST, _EMPTY_TYPE, len(_EMPTY))
    return msgspec.json.encode(
        {
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": ARTIFACT, "config": empty,
            "layers": list(blobs) or [empty],
            "annotations": {_ENTRY: base64.b64encode(entry).decode()},
        }
    )  # fmt: skip


def entry_in(manifest: bytes, what: str) -> bytes:
    """The entry that a manifest has. BadImage if it has none."""
    try:
        said = msgspec.json.decode(manifest, type=_Artifact).annotations[_ENTRY]
        return base64.b64decode(said, validate=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, binascii.Error) as error:
        raise BadImage(f"{what} is no entry of a cache") from error


class RegistryCache:
    """See `Place`."""

    def __init__(
        self, name: CacheName, _: CacheSettings, registries: Mapping[str, RegistrySettings]
    ) -> None:
        self.name = name.name
        reference = Reference.parse(name.rest)
        self._repository = Repository(reference, registries)
        self._target = Target(reference, registries)
        self._has_config = False

    async def entry(self, key: Key) -> bytes | None:
        """See `Place`."""
        try:
            _, data = await self._repository.manifest(tag_of(key))
        except NotFound:
            return None
        return entry_in(data, f"{self._repository.name}:{tag_of(key)}")

    async def put_entry(self, key: Key, entry: bytes, blobs: Sequence[Descriptor]) -> None:
        """See `Place`."""
        if not self._has_config:
            await self._put_config()
        data = manifest_of(entry, blobs)
        found = Descriptor(f"sha256:{hashlib.sha256(data).hexdigest()}", MANIFEST, len(data))
        await self._target.manifest(tag_of(key), found, data)

    async def _put_config(self) -> None:
        if not await self._target.has(_EMPTY_DIGEST):
            await self._target.put(_EMPTY_DIGEST, len(_EMPTY), io.BytesIO(_EMPTY), lambda _: None)
        self._has_config = True

    async def has(self, digest: str, size: int) -> bool:
        """See `Place`."""
        return await self._target.has(digest)

    async def put(
        self, digest: str, size: int, file: BinaryIO, progress: Callable[[int], None]
    ) -> None:
        """See `Place`."""
        await self._target.put(digest, size, file, progress)

    async def blob(self, digest: str, size: int, take: Take, *, start: int = 0) -> None:
        """See `Place`."""
        await self._repository.blob(digest, size, take, start=start)

    async def finish(self) -> None:
        """Everything can be found at once."""

    async def close(self) -> None:
        """See `Place`."""
        await self._repository.close()
        await self._target.close()
