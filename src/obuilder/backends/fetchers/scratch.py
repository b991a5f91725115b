"""`scratch`: an image with nothing in it."""

from collections.abc import Callable

from obuilder.backends.fetchers import LocalFetcher
from obuilder.backends.protocols import Progress, Root
from obuilder.errors import NotFound
from obuilder.plan.model import Base, Layer
from obuilder.values import IdMap, Platform

_DIGEST = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""The digest of no bytes at all."""


class ScratchFetcher(LocalFetcher):
    """The empty image: one layer without files."""

    async def resolve(self, name: str, platform: Platform) -> Base:
        """The empty image, which is the same for every platform."""
        return Base(name, _DIGEST, platform, (Layer(_DIGEST),))

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: Root,  # the protocol's
        idmap: IdMap,
        output: Callable[[bytes], None],
        progress: Progress | None = None,
    ) -> None:
        """Nothing to put. NotFound for a layer that the image does not have."""
        if not 0 <= index < len(base.layers):
            raise NotFound(f"{base.name} has no layer {index}")
