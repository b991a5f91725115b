"""Images made for an engine: those it has with another layer, in the archives that engines take.

An engine looks into an archive only for layers that it lacks, so what lies at the place of the others
is empty: to put a layer over an image costs as much as that layer.
"""

import hashlib
import os
import posixpath
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import BinaryIO

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from obuilder.backends.docker.engine import Engine, passed_over
from obuilder.backends.docker.model import Image
from obuilder.errors import StoreError
from obuilder.oci import docker_archive
from obuilder.oci.config import Config, Rootfs, Settings
from obuilder.oci.image_archive import Archive
from obuilder.oci.layers import unpack
from obuilder.oci.streams import Window, read_tar
from obuilder.values import IdMap

_PIECE = 1 << 20
_MARK = "obuilder."
"""What our labels begin with: those of a step's container are none of its image's."""


class NewLayer(Struct, frozen=True):
    """A layer's content, uncompressed, in a file of its own, and its digest."""

    file: BinaryIO
    digest: str
    size: int

    @classmethod
    def of(cls, file: BinaryIO) -> "NewLayer":
        """All that is in a file. It is read now, and again when it is sent."""
        file.flush()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # reads
        return cls(file, f"sha256:{digest}", os.fstat(file.fileno()).st_size)


async def stack(
    engine: Engine,
    name: str,
    image: Image,
    write: Callable[[BinaryIO], None] | None = None,
    *,
    folder: str = "",
) -> None:
    """Give `name` to an image with the layers and settings of `image`, and one more if there is a
    `write`, which writes that.

    The layers must be in the engine; an image of just these need not be. What had the name before
    goes, if it has no other. `folder`: for a file without a name.
    """
    async with _replaced(engine, name):
        if write is None:
            await engine.load(archive(name, image))
            return
        with tempfile.TemporaryFile(dir=folder) as file:
            await anyio.to_thread.run_sync(write, file)
            layer = await anyio.to_thread.run_sync(NewLayer.of, file)
            await engine.load(archive(name, image, layer))


@asynccontextmanager
async def _replaced(engine: Engine, name: str) -> AsyncIterator[None]:
    """For as long as the context lasts, what has that name has another one too.

    An image that lost its only name could not be told from those of others.
    """
    old = f"{name}.old"
    with passed_over(404):
        await engine.tag(name, old)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await engine.untag(old)


async def export(engine: Engine, image: Image, path: str, idmap: IdMap, *, folder: str) -> None:
    """Put the files of an image into the empty directory `path`.

    By its layers, as they were put in: containers have more files than their images.
    """
    if image.os == "windows":
        raise StoreError(
            "the files of a Windows image can't be shown as a whole",
            hint="copy from stages by name, and take base images from the engine: docker-daemon:NAME",
        )
    if not image.layers:
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        await engine.save(image.id, file)
        await anyio.to_thread.run_sync(_unpack, file, image, path, idmap)


def _unpack(file: BinaryIO, image: Image, path: str, idmap: IdMap) -> None:
    for layer in _layers(file, image):
        unpack(layer, path, idmap, lambda _: None)


def _layers(file: BinaryIO, image: Image) -> Iterator[BinaryIO]:
    """The layers in an archive of an image, the lowest first, each to be read before the next."""
    file.seek(0)
    for offset, size in docker_archive.spans(Archive(file, image.id), tuple(image.layers)):
        file.seek(offset)
        yield Window(file, size)  # type: ignore[misc] # reads like one


async def directories(engine: Engine, image: Image, *, folder: str) -> set[str]:
    """The directories of an image, without what engines add in its containers."""
    if not image.layers:
        return set()
    with tempfile.TemporaryFile(dir=folder) as file:
        await engine.save(image.id, file)
        return await anyio.to_thread.run_sync(_directories, file, image)


def _directories(file: BinaryIO, image: Image) -> set[str]:
    found = set[str]()
    for layer in _layers(file, image):
        with read_tar(layer) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined,unused-ignore] # else all stay in memory
                parent, name = posixpath.split(posixpath.normpath(member.name))
                if name.startswith(".wh."):
                    found.discard(posixpath.join(parent, name[4:]))
                elif member.isdir():
                    found.add(posixpath.join(parent, name))
    return found


def archive(name: str, image: Image, new: NewLayer | None = None) -> Iterator[bytes]:
    """An archive of the layers of `image`, which the engine has, and a new one over them.

    It is the same for the same content.
    """
    layers = image.layers
    digests = [*layers, new.digest] if new is not None else layers
    config = _config(digests, image)
    document = f"{hashlib.sha256(config).hexdigest()}.json"
    places = [f"{number}/layer.tar" for number in range(len(digests))]
    listed = [{"Config": document, "RepoTags": [name], "Layers": places}]
    yield from _member(document, config)
    yield from _member("manifest.json", msgspec.json.encode(listed))
    for place in places[: len(layers)]:
        yield from _member(place, bytes(1024))
    if new is not None:
        yield _header(places[-1], new.size)
        new.file.seek(0)
        while piece := new.file.read(_PIECE):
            yield piece
        yield _padding(new.size)
    yield bytes(1024)


def _config(digests: Sequence[str], image: Image) -> bytes:
    settings = image.config or Settings()
    labels = {k: v for k, v in (settings.labels or {}).items() if not k.startswith(_MARK)}
    settings = msgspec.structs.replace(settings, labels=labels or None)
    config = Config(
        Rootfs(list(digests)), image.architecture, image.os, image.variant, image.author, settings
    )
    made = {"created": "1970-01-01T00:00:00Z"}
    told = {**msgspec.to_builtins(config), **made, "history": [made] * len(digests)}
    told["rootfs"] = {"type": "layers", "diff_ids": digests}
    if not image.variant:
        del told["variant"]
    if image.os_version:  # Windows runs what is of its own version
        told["os.version"] = image.os_version
    return msgspec.json.encode(told)


def _member(name: str, content: bytes) -> Iterator[bytes]:
    yield _header(name, len(content))
    yield content
    yield _padding(len(content))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
