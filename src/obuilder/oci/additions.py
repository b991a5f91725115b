"""An add whose archives are taken apart, as a Dockerfile's ADD does with local ones."""

import os
from typing import BinaryIO

from msgspec.structs import replace

from obuilder.errors import BadImage, CopyError
from obuilder.oci.layers import unpack as unpack_layer
from obuilder.oci.streams import UNREADABLE, Hashed, decompressed, read_tar
from obuilder.system.adding import add_in
from obuilder.system.linux import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from obuilder.system.picking import Selection, Source
from obuilder.values import IdMap

_NO_ARCHIVE: tuple[type[Exception], ...] = (BadImage, *UNREADABLE)


def add(
    root: str,
    selection: Selection,
    source_root: str,
    *,
    to: str,
    into: bool,
    owner: tuple[int, int] | None,
    permissions: str,
    link: bool,
    unpack: bool,
    idmap: IdMap,
) -> None:
    """`add_in`, but with `unpack` the content of each source that is a tar archive, compressed or
    not, goes into the directory `to`. CopyError, BadImage.
    """

    def put(sources: list[Source], *, inside: bool) -> None:
        add_in(
            root, replace(selection, sources=tuple(sources)), source_root, to=to, into=inside,
            owner=owner, permissions=permissions, link=link, idmap=idmap,
        )  # fmt: skip

    waiting: list[Source] = []
    for source in selection.sources:
        if not unpack or source.entries[0].kind != "file":
            waiting.append(source)
            continue
        with _opened(source_root, source) as file:
            if not _is_archive(file):
                waiting.append(source)
                continue
            put(waiting, inside=into)
            put([], inside=True)
            waiting = []
            file.seek(0)
            _take_apart(root, to, file, source, idmap)
    if waiting or not selection.sources:
        put(waiting, inside=into)


def _opened(source_root: str, source: Source) -> BinaryIO:
    top = os.open(source_root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = source.entries[0].source
        resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
        return open(openat2(path, os.O_RDONLY, at=top, resolve=resolve), "rb")
    except OSError as error:
        raise CopyError(f"can't read {source.name!r}: {error.strerror}") from error
    finally:
        os.close(top)


def _is_archive(file: BinaryIO) -> bool:
    try:
        with decompressed(file) as content, read_tar(content) as tar:
            return tar.next() is not None
    except _NO_ARCHIVE:
        return False


def _take_apart(root: str, to: str, file: BinaryIO, source: Source, idmap: IdMap) -> None:
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        place = openat2(to, os.O_RDONLY | os.O_DIRECTORY, at=top, resolve=resolve)
    finally:
        os.close(top)
    try:
        hashed = Hashed(file)
        with decompressed(hashed) as content:
            unpack_layer(content, f"/proc/self/fd/{place}", idmap, _ignore, whiteouts=False)
        hashed.finish(f"sha256:{source.entries[0].digest}", source.name)
    finally:
        os.close(place)


def _ignore(_: str) -> None:
    """Devices are left out, as they are of an image's layers."""
