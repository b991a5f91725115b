"""A cache in a bucket of S3, or of anything that speaks like it: an object for each entry and blob.

`PREFIX/entries/KEY` and `PREFIX/blobs/sha256/HEX`. The library is obstore (the extra `s3`): it finds
credentials as Amazon's own tools do (variables, web identity, containers, instances), signs, tries
again, and sends large objects in parts.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, BinaryIO

import anyio.to_thread

from obuilder.backends.caches import CacheName, Take
from obuilder.errors import (
    BackendUnavailable,
    BadImage,
    ConfigError,
    Denied,
    DigestMismatch,
    NotFound,
    Unreachable,
)
from obuilder.oci.manifest import Descriptor
from obuilder.oci.parts import DOCUMENT
from obuilder.values import CacheSettings, Key, RegistrySettings

try:
    import obstore
    from obstore import exceptions as failed
    from obstore.store import S3Store
except ImportError as _error:
    raise BackendUnavailable(
        f"a cache in S3 needs obstore: {_error}", hint="pip install obuilder[s3]"
    ) from _error

_PIECE = 1 << 20
_PART = 16 << 20
"""Bytes of a part of an object that is sent in parts."""


class S3Cache:
    """See `Place`."""

    def __init__(
        self, name: CacheName, settings: CacheSettings, _: Mapping[str, RegistrySettings]
    ) -> None:
        self.name = name.name
        bucket, _slash, prefix = name.rest.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        config: dict[str, Any] = {}
        if settings.region is not None:
            config["region"] = settings.region
        if settings.endpoint is not None:
            config["endpoint"] = settings.endpoint
        endpoint = settings.endpoint or os.environ.get(
            "AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", "")
        )
        try:
            self._store = S3Store(
                bucket,
                config=config,  # type: ignore[arg-type] # a dictionary of what it knows
                client_options={
                    "allow_http": endpoint.startswith("http://"),
                    "connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=60),
                },
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=60)},
            )  # fmt: skip
        except failed.BaseError as error:
            raise ConfigError(f"{self.name} can't be used: {_first_line(error)}") from error

    async def entry(self, key: Key) -> bytes | None:
        """See `Place`."""
        try:
            with self._translated():
                found = await obstore.get_async(self._store, self._entry(key))
                if found.meta["size"] > DOCUMENT:
                    raise BadImage(f"{self.name}: the entry of {key[:12]} is absurdly large")
                return bytes(await found.bytes_async())
        except NotFound:
            return None

    async def put_entry(self, key: Key, entry: bytes, blobs: Sequence[Descriptor]) -> None:
        """See `Place`."""
        with self._translated():
            await obstore.put_async(self._store, self._entry(key), entry)

    async def has(self, digest: str, size: int) -> bool:
        """See `Place`."""
        try:
            with self._translated():
                found = await obstore.head_async(self._store, self._blob(digest))
        except NotFound:
            return False
        return found["size"] == size

    async def put(
        self, digest: str, size: int, file: BinaryIO, progress: Callable[[int], None]
    ) -> None:
        """See `Place`."""

        async def pieces() -> AsyncIterator[bytes]:
            sent = 0
            while data := await anyio.to_thread.run_sync(file.read, _PIECE):
                yield data
                sent += len(data)
                progress(sent)

        file.seek(0)
        with self._translated():
            await obstore.put_async(
                self._store, self._blob(digest), pieces(),
                chunk_size=max(_PART, size // 5000), max_concurrency=2,
            )  # fmt: skip

    async def blob(self, digest: str, size: int, take: Take, *, start: int = 0) -> None:
        """See `Place`."""
        got = start
        with self._translated():
            found = await obstore.get_async(
                self._store, self._blob(digest), options={"range": {"offset": start}}
            )
            if found.meta["size"] != size:
                raise DigestMismatch(f"{self.name}: {digest} is not {size} bytes")
            async for data in found.stream(min_chunk_size=_PIECE):
                got += len(data)
                await take(bytes(data))
        if got != size:
            raise DigestMismatch(f"{self.name}: of {digest} come {got} bytes of {size}")

    async def finish(self) -> None:
        """Everything can be found at once."""

    async def close(self) -> None:
        """Connections close by themselves."""

    def _entry(self, key: Key) -> str:
        return f"{self._prefix}entries/{key}"

    def _blob(self, digest: str) -> str:
        return f"{self._prefix}blobs/{digest.replace(':', '/')}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"{self.name} has no such object: {_first_line(error)}") from error
        except (failed.PermissionDeniedError, failed.UnauthenticatedError) as error:
            raise Denied(
                f"{self.name} does not let us in: {_first_line(error)}",
                hint="credentials are taken as Amazon's tools do, from AWS_ACCESS_KEY_ID for example",
            ) from error
        except (failed.BaseError, OSError) as error:
            raise Unreachable(f"{self.name} can't be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What obstore says, without its debugging form that follows."""
    return str(error).partition("\n")[0]
