"""`oci:DIR[:TAG]`: an image in an OCI layout, as skopeo and buildah write them."""

import os
from collections.abc import Callable

from obuilder.backends.fetchers import directory_of
from obuilder.backends.protocols import Root
from obuilder.oci.layout import resolve
from obuilder.plan.model import Base
from obuilder.values import IdMap, Platform


class LayoutFetcher:
    """The layers of an image in a layout."""

    async def resolve(self, name: str, platform: Platform) -> Base:
        """The tagged image, by its manifest's digest. NotFound, BadImage, DigestMismatch."""
        directory, tag = _named(name.partition(":")[2])
        return resolve(name, directory, tag, platform)

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: Root,
        idmap: IdMap,
        output: Callable[[bytes], None],
    ) -> None:
        """Unpack a layer. BadImage; DigestMismatch if its content is not the config's."""
        from anyio import to_thread

        from obuilder.oci.layers import unpack_blob

        notes: list[str] = []
        layer, root = base.layers[index], directory_of(into)
        await to_thread.run_sync(unpack_blob, layer, root, idmap, notes.append)
        output(os.fsencode("".join(notes)))


def _named(text: str) -> tuple[str, str]:
    """The directory and the tag; a directory may have colons in its name, a tag no slash."""
    directory, colon, tag = text.rpartition(":")
    if not colon or "/" in tag or os.path.isdir(text):
        return os.path.abspath(text), ""
    return os.path.abspath(directory), tag
