"""Putting files into a container that never ran, as archives that its engine unpacks.

No program of the image is needed. The engine stays inside of the root; what is there already is
looked at first, so that no directory is given away and no symlink on the way is replaced.
"""

import hashlib
import os
import stat
import tarfile
import time
from collections.abc import Iterable, Iterator

from obuilder.backends.docker import images
from obuilder.backends.docker.api import Refused
from obuilder.backends.docker.archives import parts_of
from obuilder.backends.docker.engine import Engine
from obuilder.backends.docker.model import Image
from obuilder.errors import CopyError
from obuilder.system.copying import changed_entry, link_status, open_entry
from obuilder.system.tree import Entry, Manifest

_PIECE = 1 << 20
_ENGINES = frozenset({"dev", "dev/pts", "dev/shm", "etc", "proc", "sys"})
"""Directories that an engine puts into containers whose image has none."""
_EXECUTABLE, _PLAIN, _LINK = 0o755, 0o644, 0o777

Member = tuple[tarfile.TarInfo, Entry | None]
"""A header, and the file whose content follows."""


async def copy_in(
    engine: Engine, container: str, image: Image, manifest: Manifest, source: str, *, to: str,
    owner: tuple[int, int], folder: str,
) -> None:  # fmt: skip
    """Copy what `manifest` lists from the directory `source` to `to`: see `system.copying`.

    `container` is one of `image`; `folder` is for a file without a name.
    """
    looked = _Looked(engine, container, image, folder)
    members = await _members(looked, manifest, "/".join(parts_of(to)), owner)
    try:
        await engine.put(container, "/", _archive(members, source))
    except Refused as error:
        if "cannot overwrite" in error.message:
            hint = "end the destination with '/' to put the file into it"
            raise CopyError(f"can't copy to {to}: {error.message}", hint=hint) from error
        raise


class _Looked:
    """Which directories a container has."""

    def __init__(self, engine: Engine, container: str, image: Image, folder: str) -> None:
        self._engine, self._container = engine, container
        self._image, self._folder = image, folder
        self._known = {"": True}

    async def has(self, path: str) -> bool:
        """Whether `path` is a directory, or leads to one. CopyError if something else is there."""
        known = self._known.get(path)
        if known is None:
            parent = path.rpartition("/")[0]
            known = self._known[path] = await self.has(parent) and await self._look(path)
        return known

    async def _look(self, path: str) -> bool:
        found = await self._engine.at(self._container, f"/{path}")
        if found is None:
            return False
        if found.is_symlink:
            found = await self._engine.at(self._container, found.link_target)
            if found is None:
                raise CopyError(f"can't copy to /{path}: a dangling symlink is in the way")
        if not found.is_directory:
            raise CopyError(f"can't copy to /{path}: a file is in the way of a directory")
        return True

    async def has_itself(self, path: str) -> bool:
        """The same, of a directory that may have come with the container."""
        if not await self.has(path):
            return False
        if path not in _ENGINES:
            return True
        return path in await images.directories(self._engine, self._image, folder=self._folder)


async def _members(
    looked: _Looked, manifest: Manifest, base: str, owner: tuple[int, int]
) -> list[Member]:
    entries = manifest.entries
    top = [] if entries and not entries[0].path else [Entry("", "", "dir")]
    members: list[Member] = [
        (_directory(parent, (0, 0)), None)
        for parent in _above(base)
        if not await looked.has(parent)
    ]
    modes = dict[str, int]()
    for entry in (*top, *entries):
        path = f"{base}/{entry.path}" if base and entry.path else base or entry.path
        if entry.kind == "dir":
            # What comes with a container is root's, as a parent that is missing would be.
            has = looked.has if owner == (0, 0) else looked.has_itself
            if not await has(path):
                members.append((_directory(path, owner), None))
        elif not path:
            raise CopyError("a file can't become the root directory")
        else:
            info = _file(entry, path, base, owner)
            if entry.kind == "hardlink":  # an engine gives the file the mode of its last name
                info.mode = modes[entry.target]
            modes[entry.path] = info.mode
            members.append((info, entry))
    return members


def _above(path: str) -> Iterator[str]:
    for at, character in enumerate(path):
        if character == "/":
            yield path[:at]


def _header(path: str, kind: bytes, mode: int, owner: tuple[int, int]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode = kind, mode
    info.uid, info.gid = owner
    return info


def _directory(path: str, owner: tuple[int, int]) -> tarfile.TarInfo:
    info = _header(path, tarfile.DIRTYPE, _EXECUTABLE, owner)
    info.mtime = int(time.time())
    return info


def _file(entry: Entry, path: str, base: str, owner: tuple[int, int]) -> tarfile.TarInfo:
    if entry.kind == "symlink":
        info = _header(path, tarfile.SYMTYPE, _LINK, owner)
        info.linkname = entry.target
    elif entry.kind == "hardlink":
        info = _header(path, tarfile.LNKTYPE, _PLAIN, owner)
        info.linkname = f"{base}/{entry.target}" if base else entry.target
    else:
        mode = _EXECUTABLE if entry.executable else _PLAIN
        info = _header(path, tarfile.REGTYPE, mode, owner)
        info.size = entry.size
    return info


# --- the archive -------------------------------------------------------------------------------


def _archive(members: Iterable[Member], source: str) -> Iterator[bytes]:
    """The archive, piece by piece. CopyError if a file is not what its entry says."""
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for info, entry in members:
            if entry is None or entry.kind == "hardlink":
                yield _told(info)
            elif entry.kind == "symlink":
                yield _symlink(info, entry, fd)
            else:
                yield from _content(info, entry, fd)
        yield bytes(1024)
    except OSError as error:
        raise CopyError(f"can't read {error.filename!r}: {error.strerror}") from error
    finally:
        os.close(fd)


def _told(info: tarfile.TarInfo, status: os.stat_result | None = None) -> bytes:
    if status is not None:
        seconds, part = divmod(status.st_mtime_ns, 1_000_000_000)
        info.mtime = seconds
        if part:
            info.pax_headers = {"mtime": f"{seconds}.{part:09}"}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _symlink(info: tarfile.TarInfo, entry: Entry, source: int) -> bytes:
    return _told(info, link_status(entry, source))


def _content(info: tarfile.TarInfo, entry: Entry, source: int) -> Iterator[bytes]:
    fd = open_entry(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, source)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            raise changed_entry(entry)
        yield _told(info, status)
        digest, left = hashlib.sha256(), entry.size
        while data := os.read(fd, _PIECE):
            left -= len(data)
            if left < 0:
                break
            digest.update(data)
            yield data
        if left or digest.hexdigest() != entry.digest:
            raise changed_entry(entry)
        yield bytes(-entry.size % tarfile.BLOCKSIZE)
    finally:
        os.close(fd)
