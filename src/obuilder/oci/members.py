"""Members of tar archives, as the files of a root are written: no trace of who writes them, or where."""

import os
import stat
import struct
import tarfile
from collections.abc import Callable
from typing import BinaryIO

from msgspec import Struct

from obuilder.system.files import kept_xattrs
from obuilder.values import IdMap

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK = 1 << 18
_CAPABILITY = "security.capability"
_REVISIONS, _OF_A_NAMESPACE, _OF_THE_MACHINE = 0xFF000000, 0x03000000, 0x02000000


class Manner(Struct, frozen=True):
    """How members are written: with owners as the ids inside, and with which times."""

    idmap: IdMap
    exact: bool = False
    """Times are what they are; else whole seconds."""
    latest: int | None = None
    """No time is later than this, in seconds since 1970."""


class Out:
    """What tarfile needs of a file that it writes to, which need not seek."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write

    def tell(self) -> int:
        """Where it began: nobody goes back."""
        return 0


def end(archive: tarfile.TarFile, out: Out) -> None:
    """Write an archive's end in one piece: who has read where it begins may go."""
    write, piece = out.write, bytearray()
    out.write = piece.extend
    archive.close()
    write(bytes(piece))


class Members:
    """A tar archive that grows by one member at a time. `finish` ends it."""

    def __init__(self, file: BinaryIO, manner: Manner) -> None:
        self._manner = manner
        self._out = Out(file.write)
        self._tar = tarfile.TarFile(
            fileobj=self._out, mode="w", format=tarfile.PAX_FORMAT,  # type: ignore[arg-type] # all it uses
            encoding="utf-8", errors="surrogateescape", copybufsize=_BLOCK,
        )  # fmt: skip
        self._links: dict[tuple[int, int], str] = {}

    def finish(self) -> None:
        """Write the end."""
        end(self._tar, self._out)

    def gone(self, path: str) -> None:
        """An empty file of root's, as marks of layers are."""
        self._put(tarfile.TarInfo(path))

    def directory(self, path: str, status: os.stat_result, fd: int) -> None:
        """A directory, without what is in it."""
        self._put(self._info(path, status, tarfile.DIRTYPE, fd))

    def file(self, at: int, name: str, path: str, status: os.stat_result) -> None:
        """Anything else; a socket is left out. One that was written by another name is a link."""
        mode = status.st_mode
        if status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                info = self._info(path, status, tarfile.LNKTYPE)
                info.linkname = first
                self._put(info)
                return
        if stat.S_ISREG(mode):
            with open(os.open(name, _FILE, dir_fd=at), "rb", buffering=0) as content:
                info = self._info(path, status, tarfile.REGTYPE, content.fileno())
                info.size = status.st_size
                self._put(info, content)
            return
        if stat.S_ISLNK(mode):
            info = self._info(path, status, tarfile.SYMTYPE)
            info.linkname = os.readlink(name, dir_fd=at)
        elif stat.S_ISFIFO(mode):
            info = self._info(path, status, tarfile.FIFOTYPE)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            kind = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
            info = self._info(path, status, kind)
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        else:
            return
        self._put(info)

    def _put(self, info: tarfile.TarInfo, content: BinaryIO | None = None) -> None:
        self._tar.addfile(info, content)
        self._tar.members = []  # type: ignore[attr-defined,unused-ignore] # else all stay in memory

    def _info(
        self, path: str, status: os.stat_result, kind: bytes, fd: int | None = None
    ) -> tarfile.TarInfo:
        manner, info = self._manner, tarfile.TarInfo(path)
        headers = {} if fd is None else pax_xattrs(fd)
        info.type, info.mode = kind, stat.S_IMODE(status.st_mode)
        info.mtime, part = divmod(status.st_mtime_ns, 1_000_000_000)
        if manner.latest is not None and info.mtime >= manner.latest:
            info.mtime, part = manner.latest, 0
        if manner.exact and part:
            headers["mtime"] = f"{info.mtime}.{part:09}"
        info.pax_headers = headers
        if not manner.idmap.single:
            info.uid = manner.idmap.to_inside(status.st_uid)
            info.gid = manner.idmap.to_inside(status.st_gid)
        return info


def pax_xattrs(fd: int) -> dict[str, str]:
    """A file's extended attributes that go along, as pax records."""
    return {
        f"SCHILY.xattr.{name}": (_anywhere(value) if name == _CAPABILITY else value).decode(
            "utf-8", "surrogateescape"
        )
        for name, value in kept_xattrs(fd).items()
    }


def _anywhere(capability: bytes) -> bytes:
    """Capabilities that were given to a file in a user namespace, for root of any namespace.

    The kernel notes whose root they are for, by the id on this machine; no image may hold that.
    """
    if len(capability) != 24:
        return capability
    (magic,) = struct.unpack_from("<I", capability)
    if magic & _REVISIONS != _OF_A_NAMESPACE:
        return capability
    return struct.pack("<I", magic & ~_REVISIONS | _OF_THE_MACHINE) + capability[4:20]
