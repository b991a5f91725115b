"""Images in files that other tools wrote: `oci:DIR`, `oci-archive:FILE`, `docker-archive:FILE`.

Each may be followed by `:` and what chooses one of several images, as with skopeo.
"""

import os
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from obuilder.backends.fetchers import LocalFetcher, directory_of, in_thread
from obuilder.errors import BadImage, NotFound
from obuilder.plan.model import Base, Layer
from obuilder.spec.image import ImageConfig
from obuilder.values import IdMap, Platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.backends.protocols import Progress, Root


class ImageFetcher(LocalFetcher):
    """The layers of an image in a layout or an archive, read where they lie."""

    async def resolve(self, name: str, platform: Platform) -> Base:
        """The chosen image, by its manifest's digest or its id. NotFound, BadImage, DigestMismatch.

        An archive is read again only when its status changed.
        """
        kind, _, text = name.partition(":")
        if kind == "oci":
            from obuilder.oci import layout
            from obuilder.oci.parts import Directory

            path, choice = _split(text, os.path.isdir)
            return layout.resolve(name, Directory(path), choice, platform)
        path, choice = _split(text, os.path.isfile)
        if not os.path.isfile(path):
            raise NotFound(f"there is no archive {path}")
        try:
            with open(path, "rb", buffering=0) as file:
                known = self._remembered(
                    f"{kind} 1:{path}:{choice} {platform}",
                    os.fstat(file.fileno()),
                    lambda: _noted(_resolve(name, file, path, choice, platform)),
                )
        except OSError as error:
            raise BadImage(f"can't read {path}: {error.strerror}") from error
        return _recalled(known, name, path)

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: "Root",
        idmap: IdMap,
        output: Callable[[bytes], None],
        progress: "Progress | None" = None,
    ) -> None:
        """Unpack a layer. BadImage; DigestMismatch if its content is not the config's."""
        layer, root = base.layers[index], directory_of(into)

        def unpack(note: Callable[[str], None]) -> None:
            from obuilder.oci.image_archive import opened
            from obuilder.oci.layers import unpack_blob

            with opened(layer.source) as blob:
                unpack_blob(blob, layer.digest, layer.source, root, idmap, note)

        await in_thread(unpack, output)

    async def blob(self, base: Base, index: int, file: BinaryIO) -> bool:
        """A layer as it lies there. BadImage."""

        def copy(_: Callable[[str], None]) -> None:
            from shutil import copyfileobj

            from obuilder.oci.image_archive import opened

            with opened(base.layers[index].source) as blob:
                copyfileobj(blob, file, 1 << 20)

        await in_thread(copy, lambda _: None)
        return True


def _split(text: str, there: Callable[[str], bool]) -> tuple[str, str]:
    """The absolute path in `PATH[:CHOICE]`, and the choice.

    A path may have colons in its name: it is the longest that is there, else all before the first
    colon.
    """
    path = text
    while not there(path) and ":" in path:
        path = path.rpartition(":")[0]
    if not there(path):
        path = text.partition(":")[0]
    if not path:
        raise NotFound("the image's name lacks a path", hint="for example oci:DIR, tar:FILE")
    return os.path.abspath(path), text[len(path) + 1 :]


def _resolve(name: str, file: BinaryIO, path: str, choice: str, platform: Platform) -> Base:
    from obuilder.oci import docker_archive, layout
    from obuilder.oci.image_archive import Archive
    from obuilder.oci.streams import decompressed

    with decompressed(file) as content:
        archive = Archive(content, path)
    if name.startswith("docker-archive:"):
        return docker_archive.resolve(name, archive, choice)
    if "index.json" not in archive:
        hint = "a root file system in an archive is tar:FILE"
        if "manifest.json" in archive:
            hint = "docker save wrote it: call it docker-archive:FILE"
        raise BadImage(f"{path} has no OCI layout in it", hint=hint)
    return layout.resolve(name, archive, choice, platform)


def _noted(base: Base) -> str:
    """All that was found but for the paths, whose bytes need not be text."""
    layers = [(layer.digest, layer.source.partition(":")[0]) for layer in base.layers]
    return msgspec.json.encode((base.digest, base.platform, layers, base.config)).decode()


def _recalled(noted: str, name: str, path: str) -> Base:
    digest, platform, layers, config = msgspec.json.decode(noted, type=_Noted)
    found = tuple(Layer(content, f"{span}:{path}") for content, span in layers)
    return Base(name, digest, platform, found, config)


_Noted = tuple[str, Platform, list[tuple[str, str]], ImageConfig]
