"""Writing a root, or what changed from one to another, as a tar archive: same files, same bytes.

A change set is a layer as the OCI image specification has it: what is new or other than before,
and an empty `.wh.NAME` for each NAME that is gone.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from obuilder.errors import CopyError
from obuilder.system.files import kept_xattrs, too_deep
from obuilder.values import IdMap

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK = 1 << 20
_GONE = ".wh."


def write_tar(root: str, file: BinaryIO, idmap: IdMap, *, exact: bool = False) -> None:
    """Write all below `root` to `file` (which need not seek) in the order of names' bytes.

    Owners are the ids inside; with a map of one id, everything is root's. Hard links stay links;
    sockets are left out. Extended attributes go along as pax records. Times are whole seconds, or,
    if `exact`, what they are.
    """
    fd = os.open(root, _DIRECTORY)
    try:
        with _opened(file, root) as tar:
            _Writer(tar, idmap, exact=exact).directory(fd, None, "")
    finally:
        os.close(fd)


def write_changes(base: str, root: str, file: BinaryIO, idmap: IdMap, *, exact: bool) -> None:
    """Write what makes `root` of `base` as a layer; else as `write_tar`.

    Files of the same inode and change time are taken for the same, others are compared.
    CopyError for a name that a layer can't hold.
    """
    old = os.open(base, _DIRECTORY)
    try:
        new = os.open(root, _DIRECTORY)
        try:
            with _opened(file, root) as tar:
                _Writer(tar, idmap, exact=exact).directory(new, old, "")
        finally:
            os.close(new)
    finally:
        os.close(old)


@contextmanager
def _opened(file: BinaryIO, root: str) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(
            fileobj=file, mode="w|", format=tarfile.PAX_FORMAT,
            encoding="utf-8", errors="surrogateescape",
        ) as tar:  # fmt: skip
            yield tar
    except RecursionError:
        raise too_deep(root) from None


class _Writer:
    def __init__(self, tar: tarfile.TarFile, idmap: IdMap, *, exact: bool) -> None:
        self._tar, self._idmap, self._exact = tar, idmap, exact
        self._links: dict[tuple[int, int], str] = {}
        self._parents: list[tarfile.TarInfo] = []  # not written yet, the outermost first

    def directory(self, fd: int, old: int | None, prefix: str) -> None:
        """Write what is in `fd`; with `old`, only what differs from what is in that."""
        if old is not None and not prefix and not _same_status(os.fstat(old), os.fstat(fd)):
            self._tar.addfile(self._info("./", os.fstat(fd), tarfile.DIRTYPE, fd))
        names = set(os.listdir(fd))
        before = set[str]() if old is None else set(os.listdir(old))
        for name in sorted(names | before, key=os.fsencode):
            if old is not None and name.startswith(_GONE):
                raise CopyError(f"a layer can't hold {prefix + name!r}: that means a removed file")
            if name not in names:
                self._add(tarfile.TarInfo(f"{prefix}{_GONE}{name}"))
                continue
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            was = None
            if old is not None and name in before:
                was = os.stat(name, dir_fd=old, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                self._directory(fd, old, name, prefix + name, status, was)
            elif not self._known(fd, old, name, prefix + name, status, was):
                self._file(fd, name, prefix + name, status)

    def _directory(
        self, at: int, old: int | None, name: str, path: str,
        status: os.stat_result, was: os.stat_result | None,
    ) -> None:  # fmt: skip
        fd, below = os.open(name, _DIRECTORY, dir_fd=at), None
        try:
            if was is not None and stat.S_ISDIR(was.st_mode):
                below = os.open(name, _DIRECTORY, dir_fd=old)
            # One that did not change goes along with what changed in it: its time has to stay.
            self._parents.append(self._info(path, status, tarfile.DIRTYPE, fd))
            if (
                below is None
                or was is None
                or not _same_status(was, status)
                or _xattrs(below) != _xattrs(fd)
            ):
                self._flush()
            self.directory(fd, below, path + "/")
            if self._parents:
                self._parents.pop()
        finally:
            os.close(fd)
            if below is not None:
                os.close(below)

    def _flush(self) -> None:
        for info in self._parents:
            self._tar.addfile(info)
        self._parents.clear()

    def _add(self, info: tarfile.TarInfo, content: BinaryIO | None = None) -> None:
        self._flush()
        self._tar.addfile(info, content)

    def _known(
        self, at: int, old: int | None, name: str, path: str,
        status: os.stat_result, was: os.stat_result | None,
    ) -> bool:  # fmt: skip
        """Whether `old` has the very same file."""
        if old is None or was is None or not _same_status(was, status):
            return False
        if was.st_nlink != status.st_nlink or was.st_size != status.st_size:
            return False
        mark = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and self._links.get(mark, path) != path:
            return False  # it is linked to one that was written
        same = (was.st_ino, was.st_ctime_ns) == (status.st_ino, status.st_ctime_ns)
        if not same and stat.S_ISLNK(status.st_mode):
            same = os.readlink(name, dir_fd=at) == os.readlink(name, dir_fd=old)
        elif not same and stat.S_ISREG(status.st_mode):
            same = _same_content(at, old, name)
        elif not same:
            same = was.st_rdev == status.st_rdev
        return same

    def _file(self, at: int, name: str, path: str, status: os.stat_result) -> None:
        mode = status.st_mode
        if status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                info = self._info(path, status, tarfile.LNKTYPE)
                info.linkname = first
                self._add(info)
                return
        if stat.S_ISREG(mode):
            with open(os.open(name, _FILE, dir_fd=at), "rb") as content:
                info = self._info(path, status, tarfile.REGTYPE, content.fileno())
                info.size = status.st_size
                self._add(info, content)
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
        self._add(info)

    def _info(
        self, path: str, status: os.stat_result, kind: bytes, fd: int | None = None
    ) -> tarfile.TarInfo:
        info = tarfile.TarInfo(path)
        headers = {} if fd is None else _xattrs(fd)
        info.type, info.mode = kind, stat.S_IMODE(status.st_mode)
        info.mtime = status.st_mtime_ns // 1_000_000_000
        if self._exact and status.st_mtime_ns % 1_000_000_000:
            headers["mtime"] = f"{info.mtime}.{status.st_mtime_ns % 1_000_000_000:09}"
        info.pax_headers = headers
        if not self._idmap.single:
            info.uid = self._idmap.to_inside(status.st_uid)
            info.gid = self._idmap.to_inside(status.st_gid)
        return info


def _same_status(was: os.stat_result, status: os.stat_result) -> bool:
    """Type, mode, owner and time, which a layer tells of every member."""
    return (was.st_mode, was.st_uid, was.st_gid, was.st_mtime_ns) == (
        status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns,
    )  # fmt: skip


def _same_content(at: int, old: int, name: str) -> bool:
    with (
        open(os.open(name, _FILE, dir_fd=at), "rb", buffering=0) as new,
        open(os.open(name, _FILE, dir_fd=old), "rb", buffering=0) as was,
    ):
        if _xattrs(new.fileno()) != _xattrs(was.fileno()):
            return False
        while True:
            ours, theirs = new.read(_BLOCK), was.read(_BLOCK)
            if ours != theirs:
                return False
            if not ours:
                return True


def _xattrs(fd: int) -> dict[str, str]:
    return {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
        for name, value in kept_xattrs(fd).items()
    }
