"""Writing a root as a tar archive: the same bytes for the same files."""

import os
import stat
import tarfile
from typing import BinaryIO

from obuilder.system.files import kept_xattr
from obuilder.values import IdMap

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write_tar(root: str, file: BinaryIO, idmap: IdMap) -> None:
    """Write all below `root` to `file` (which need not seek) in the order of names' bytes.

    Owners are the ids inside; with a map of one id, everything is root's. Hard links stay links;
    sockets are left out. Extended attributes go along as pax records.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tarfile.open(
            fileobj=file, mode="w|", format=tarfile.PAX_FORMAT,
            encoding="utf-8", errors="surrogateescape",
        ) as tar:  # fmt: skip
            _Writer(tar, idmap).directory(fd, "")
    finally:
        os.close(fd)


class _Writer:
    def __init__(self, tar: tarfile.TarFile, idmap: IdMap) -> None:
        self._tar = tar
        self._idmap = idmap
        self._links: dict[tuple[int, int], str] = {}

    def directory(self, fd: int, prefix: str) -> None:
        with os.scandir(fd) as items:
            names = sorted((item.name for item in items), key=os.fsencode)
        for name in names:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            self._entry(fd, name, prefix + name, status)

    def _entry(self, at: int, name: str, path: str, status: os.stat_result) -> None:
        mode = status.st_mode
        info = tarfile.TarInfo(path)
        info.mode = stat.S_IMODE(mode)
        info.mtime = status.st_mtime_ns // 1_000_000_000
        if not self._idmap.single:
            info.uid = self._idmap.to_inside(status.st_uid)
            info.gid = self._idmap.to_inside(status.st_gid)
        if stat.S_ISDIR(mode):
            fd = os.open(name, _DIRECTORY, dir_fd=at)
            try:
                info.type = tarfile.DIRTYPE
                info.pax_headers = _xattrs(fd)
                self._tar.addfile(info)
                self.directory(fd, path + "/")
            finally:
                os.close(fd)
            return
        mark = (status.st_dev, status.st_ino)
        if status.st_nlink > 1:
            first = self._links.setdefault(mark, path)
            if first != path:
                info.type = tarfile.LNKTYPE
                info.linkname = first
                self._tar.addfile(info)
                return
        if stat.S_ISREG(mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(name, flags, dir_fd=at), "rb") as content:
                info.size = status.st_size
                info.pax_headers = _xattrs(content.fileno())
                self._tar.addfile(info, content)
            return
        if stat.S_ISLNK(mode):
            info.type = tarfile.SYMTYPE
            info.linkname = os.readlink(name, dir_fd=at)
        elif stat.S_ISFIFO(mode):
            info.type = tarfile.FIFOTYPE
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            info.type = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        else:
            return
        self._tar.addfile(info)


def _xattrs(fd: int) -> dict[str, str]:
    return {
        f"SCHILY.xattr.{name}": os.getxattr(fd, name).decode("utf-8", "surrogateescape")
        for name in sorted(os.listxattr(fd))
        if kept_xattr(name)
    }
