"""How a file gets its place in a tree that is made of others: linked, copied, or linked if it is alike.

Works on descriptors only, so no symlink of a tree is ever followed out of it.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import Literal, NamedTuple

from obuilder.system.files import InRoot, copy_data

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFT = ("overlay.origin", "overlay.impure")  # hints about inodes of layers: no longer true
_PIECE = 1 << 20


class Item(NamedTuple):
    """What is to be placed: anything but a directory. Directories are open descriptors.

    `path` is that of `into` below `top`, the root of the tree that is made.
    """

    name: str
    status: os.stat_result
    folder: int
    into: int
    path: str
    top: int


Place = Callable[[Item], None]


def link(item: Item) -> None:
    """Another name for the same file: for what is never written to again."""
    if not _linked(item.name, item.folder, item.name, item.into):
        copy(item)


def copy(item: Item) -> None:
    """A file of its own, with all that belongs to it. Blocks are shared where they can be."""
    name, status, folder, into, *_ = item
    mode = status.st_mode
    if stat.S_ISREG(mode):
        source = os.open(name, _READ, dir_fd=folder)
        try:
            target = os.open(name, _WRITE, 0o600, dir_fd=into)
            try:
                copy_data(source, target, status.st_size)
                copy_attributes(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        return
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=folder), name, dir_fd=into)
    else:
        os.mknod(name, mode, status.st_rdev, dir_fd=into)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=into, follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        os.chmod(name, stat.S_IMODE(mode), dir_fd=into)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=into, follow_symlinks=False)


class Copies:
    """Places copies. Files with several names have several names again."""

    def __init__(self) -> None:
        self._placed: dict[tuple[int, int], str] = {}

    def __call__(self, item: Item) -> None:
        """Place one."""
        if item.status.st_nlink == 1:
            self._new(item)
            return
        mark = (item.status.st_dev, item.status.st_ino)
        known = self._placed.get(mark)
        if known is None or not _linked(known, item.top, item.name, item.into):
            self._new(item)
            self._placed[mark] = f"{item.path}/{item.name}" if item.path else item.name

    def _new(self, item: Item) -> None:
        copy(item)


class Alike(Copies):
    """Places links to files of another tree, `base`, where those are the same, else copies.

    The same: its path, owner, mode, time, size and extended attributes, and its content too if
    `by` says so. No two files that were apart become one. `size` is what the copies take.
    """

    def __init__(self, base: str, by: Literal["content", "time"]) -> None:
        super().__init__()
        self._base, self._by = InRoot(base), by
        self._taken = set[int]()
        self.size = 0

    def close(self) -> None:
        """Let go of the other tree."""
        self._base.close()

    def _new(self, item: Item) -> None:
        if not (stat.S_ISREG(item.status.st_mode) and self._shared(item)):
            copy(item)
            self.size += item.status.st_blocks * 512

    def _shared(self, item: Item) -> bool:
        try:
            folder = self._base.directory(item.path)
            there = os.stat(item.name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return False
        if _outside(there) != _outside(item.status) or there.st_ino in self._taken:
            return False
        fds = [os.open(item.name, _READ, dir_fd=at) for at in (folder, item.folder)]
        try:
            if _attributes(fds[0]) != _attributes(fds[1]):
                return False
            if self._by == "content" and not _same_content(*fds):
                return False
        finally:
            for fd in fds:
                os.close(fd)
        if not _linked(item.name, folder, item.name, item.into):
            return False
        self._taken.add(there.st_ino)
        return True


def copy_attributes(source: int, target: int) -> None:
    """Owner, mode, extended attributes and times of one open file or directory to another."""
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for name, value in _attributes(source).items():
        os.setxattr(target, name, value)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _linked(name: str, folder: int, new: str, into: int) -> bool:
    """Give a file another name. False if it has too many, or is of a kind that can't have more."""
    try:
        os.link(name, new, src_dir_fd=folder, dst_dir_fd=into, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EPERM):
            raise
        return False
    return True


def _outside(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)


def _attributes(fd: int) -> dict[str, bytes]:
    return {name: os.getxattr(fd, name) for name in os.listxattr(fd) if not name.endswith(_LEFT)}


def _same_content(one: int, other: int) -> bool:
    while True:
        data = os.read(one, _PIECE)
        if data != os.read(other, _PIECE):
            return False
        if not data:
            return True
