"""Places where results are kept for other machines: entries by the keys of steps, blobs by digest.

A place knows nothing of what an entry says: that, and whom to trust, is `engine.remote_cache`'s.
A new kind is a row in `_KINDS` and the file that it names.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from typing import BinaryIO, Protocol

from msgspec import Struct

from obuilder.errors import NotFound, UsageError
from obuilder.oci.reference import Reference
from obuilder.values import CacheSettings, Key, RegistrySettings

TYPE_CHECKING = False
if TYPE_CHECKING:  # the cached path parses names, and asks no place
    from obuilder.oci.manifest import Descriptor

_KINDS = {
    "docker": "obuilder.backends.caches.registry:RegistryCache",
    "oci": "obuilder.backends.caches.layout:LayoutCache",
    "s3": "obuilder.backends.caches.s3:S3Cache",
}
FORMS = "docker://HOST/NAME, oci:DIR, s3://BUCKET[/PREFIX]"
"""How a cache can be named, for messages."""


class CacheName(Struct, frozen=True):
    """A place: its kind, and what stands behind that."""

    kind: str
    rest: str

    @property
    def name(self) -> str:
        """The one way to write it."""
        return f"{self.kind}:{self.rest}" if self.kind == "oci" else f"{self.kind}://{self.rest}"


def parse_cache(text: str) -> CacheName:
    """The place that a word names, in the words that outputs have. UsageError."""
    kind, colon, rest = text.partition(":")
    if kind == "oci" and colon and rest:
        return CacheName(kind, os.path.abspath(rest))
    if colon and kind in ("docker", "s3") and rest.startswith("//"):
        rest = rest[2:].strip("/")
        if rest and kind == "s3":
            return CacheName(kind, rest)
        if rest:
            try:
                found = Reference.parse(rest)
            except NotFound as error:
                raise UsageError(f"{text}: {error.message}", hint=error.hint) from error
            if found.digest or ":" in rest.rpartition("/")[2]:
                raise UsageError(f"{text}: a cache is a whole repository, without tag or digest")
            return CacheName(kind, f"{found.registry}/{found.repository}")
    raise UsageError(f"there is no cache {text!r}", hint=f"write {FORMS}")


Take = Callable[[bytes], Awaitable[None]]
"""Takes the next bytes of a blob."""


class Place(Protocol):
    """A cache that is open. What goes wrong is a FetchError; nothing is asked before it is needed."""

    name: str

    async def entry(self, key: Key) -> bytes | None:
        """What is kept under a key; None if nothing is."""

    async def put_entry(self, key: Key, entry: bytes, blobs: Sequence["Descriptor"]) -> None:
        """Keep `entry` under `key`, over what was there. It needs these blobs, which are there."""

    async def has(self, digest: str, size: int) -> bool:
        """Whether a blob is there."""

    async def put(
        self, digest: str, size: int, file: BinaryIO, progress: Callable[[int], None]
    ) -> None:
        """Keep a blob, the bytes of `file` from its start."""

    async def blob(self, digest: str, size: int, take: Take, *, start: int = 0) -> None:
        """Hand over the bytes of a blob from `start` on; who takes them checks the digest.

        NotFound if it is not there; DigestMismatch if there are not `size` bytes.
        """

    async def finish(self) -> None:
        """All that was put can be found by others now."""

    async def close(self) -> None:
        """Let go of connections."""


def open_place(
    name: str, settings: CacheSettings, registries: Mapping[str, RegistrySettings]
) -> Place:
    """The place of that name. ConfigError, BackendUnavailable."""
    found = parse_cache(name)
    module, _, kind = _KINDS[found.kind].partition(":")
    place: Place = getattr(import_module(module), kind)(found, settings, registries)
    return place
