"""`docker-daemon:NAME`: an image of a Docker engine on this machine."""

import os
import re
from collections.abc import Callable
from typing import BinaryIO

import msgspec
from msgspec import Struct

from obuilder.backends.docker.api import Answer, DockerEngine, Refused
from obuilder.backends.docker.model import Image
from obuilder.backends.fetchers import directory_of, in_thread
from obuilder.errors import BadImage, NotFound, StoreError, Unreachable
from obuilder.oci.config import Config, Rootfs, Settings, base_of, decode
from obuilder.oci.parts import DOCUMENT
from obuilder.oci.reference import is_sha256
from obuilder.plan.model import Base
from obuilder.values import IdMap, Platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from anyio import Lock

    from obuilder.backends.protocols import Progress, Root

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*([:/@][A-Za-z0-9][\w.-]*)*", re.ASCII)
_PIECE = 1 << 20


class _Export(Struct):
    """An exported image in a file without a name, and where its layers lie in it."""

    file: BinaryIO
    spans: list[tuple[int, int]]


class DockerFetcher:
    """The layers of an engine's image. An engine gives all of them or none: what it gave for one is
    kept for the next.
    """

    def __init__(self) -> None:
        self._exports: dict[str, _Export] = {}
        self._exporting: Lock | None = None

    async def resolve(self, name: str, platform: Platform) -> Base:
        """The image by the engine's id for it. NotFound, Denied, Unreachable, BadImage."""
        image = name.partition(":")[2]
        if not _NAME.fullmatch(image):
            raise NotFound(
                f"{image!r} is no name of an image", hint="docker-daemon:debian:12 has one"
            )
        found = _inspected(image, image)
        if not is_sha256(found.id):
            raise BadImage(f"{name}: {found.id!r} is no SHA-256 digest")
        contents = found.layers
        config = Config(
            Rootfs(contents),
            found.architecture,
            found.os,
            found.variant,
            found.author,
            found.config,
        )
        return base_of(name, found.id, config, [""] * len(contents))

    def takes(self, root: "Root") -> bool:
        """Directories, and images of the engine, which has the layers already."""
        from obuilder.backends.protocols import EngineImage, HostDir

        return isinstance(root, HostDir | EngineImage)

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
        """Unpack a layer. NotFound if the engine has the image no more; else as `resolve`."""
        from obuilder.backends.protocols import EngineImage

        if isinstance(into, EngineImage):
            await _stacked(base, index, into.ref)
            return
        root = directory_of(into)
        export = self._exports.pop(base.digest, None) or await _exported(base)
        try:
            await in_thread(lambda note: _unpack(export, base, index, root, idmap, note), output)
        except BaseException:
            export.file.close()
            raise
        if index + 1 == len(base.layers) or base.digest in self._exports:
            export.file.close()
        else:
            self._exports[base.digest] = export

    async def blob(self, base: Base, index: int, file: BinaryIO) -> bool:
        """A layer as the engine exports it."""
        from anyio import Lock

        from obuilder.oci.streams import Window

        self._exporting = self._exporting or Lock()

        def copy(_: Callable[[str], None]) -> None:
            from shutil import copyfileobj

            offset, size = export.spans[index]
            export.file.seek(offset)
            copyfileobj(Window(export.file, size), file, _PIECE)

        async with self._exporting:
            export = self._exports.get(base.digest) or await _exported(base)
            self._exports[base.digest] = export
            await in_thread(copy, lambda _: None)
        return True

    async def close(self) -> None:
        """Let go of what was kept for layers that nobody asked for."""
        for export in self._exports.values():
            export.file.close()
        self._exports.clear()


def _unpack(
    export: _Export, base: Base, index: int, root: str, idmap: IdMap, note: Callable[[str], None]
) -> None:
    from obuilder.oci.layers import unpack_blob
    from obuilder.oci.streams import Window

    offset, size = export.spans[index]
    export.file.seek(offset)
    blob: BinaryIO = Window(export.file, size)  # type: ignore[assignment] # reads like one
    what = f"layer {index + 1} of {base.name}"
    unpack_blob(blob, base.layers[index].digest, what, root, idmap, note)


def _inspected(image: str, name: str) -> Image:
    try:
        with DockerEngine.found().get(f"/images/{image}/json", timeout=30) as answer:
            said = answer.read(DOCUMENT)
    except Refused as error:
        if error.status != 404:
            raise
        hint = f"`docker pull {name}` fetches it; `docker images` lists what there is"
        raise NotFound(error.message, hint=hint) from error
    return decode(said, Image, f"what the Docker engine says of {image}")


async def _stacked(base: Base, index: int, name: str) -> None:
    """Give `name` to an image of the first layers, with the settings of all.

    But for volumes: the engine would show steps one of its own there, whose files no result has.
    """
    from anyio import to_thread

    from obuilder.backends.docker import images
    from obuilder.backends.docker.engine import Engine

    layers = [layer.digest for layer in base.layers[: index + 1]]
    told = msgspec.structs.replace(base.config, volumes=())
    wanted = Image.of(layers, base.platform, Settings.of(told))
    wanted.author = base.config.author
    if wanted.os == "windows":
        image = base.name.partition(":")[2]
        found = await to_thread.run_sync(_inspected, base.digest, image)
        wanted.os_version = found.os_version
    try:
        await images.stack(Engine(DockerEngine.found()), name, wanted)
    except Unreachable:
        await to_thread.run_sync(_inspected, base.digest, base.name.partition(":")[2])
        raise


async def _exported(base: Base) -> _Export:
    """Take the whole image out of the engine; cancelling breaks that off."""
    from anyio import to_thread

    from obuilder.backends.docker.engine import Engine

    engine = Engine(DockerEngine.found())
    # An engine makes all of an export ready before it sends the first piece.
    answer = engine.api.get(f"/images/{base.digest}/get", timeout=600)
    try:
        return await engine.streamed(lambda: _take(answer, base), answer)
    except Unreachable:  # some engines say so of an image that they lack
        await to_thread.run_sync(_inspected, base.digest, base.name.partition(":")[2])
        raise


def _take(answer: Answer, base: Base) -> _Export:
    import tempfile
    from contextlib import ExitStack

    from obuilder.oci import docker_archive
    from obuilder.oci.image_archive import Archive

    directory = os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108 # the file in it has no name
    try:
        with answer, ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(dir=directory))
            while piece := answer.read(_PIECE):
                file.write(piece)
            file.seek(0)
            archive = Archive(file, base.name)
            contents = tuple(layer.digest for layer in base.layers)
            export = _Export(file, docker_archive.spans(archive, contents))
            stack.pop_all()
            return export
    except OSError as error:
        raise StoreError(
            f"can't keep {base.name} in {directory} while it is unpacked: {error.strerror}",
            hint="TMPDIR names the directory for it",
        ) from error
