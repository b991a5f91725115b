"""What each request of the kernel does, in the words of the operating system alone.

Every method acts with the rights of the caller, in the caller's own directory. OSError is the
answer to a request that fails.
"""

import errno
import os
import sys
from typing import NamedTuple

from obuilder.redirect.tree import ROOT, Tree

if sys.platform == "linux":
    from obuilder.system.linux import renameat2
else:
    renameat2 = None

_NOW = 1.0
_NOREPLACE, _EXCHANGE = 1, 2
_LINUX = sys.platform == "linux"


class Entry(NamedTuple):
    """A file: its number, and for how many seconds the kernel may take the entry for known."""

    number: int
    status: os.stat_result
    known: float


class Change(NamedTuple):
    """What a file's attributes are to be; None, and -1 for owners, leave them. Times are ns."""

    mode: int | None = None
    uid: int = -1
    gid: int = -1
    size: int | None = None
    accessed: int | None = None
    modified: int | None = None
    touched: bool = False
    """Both times are to be now, which more may ask for than set them."""


class Requests:
    """Files as one user after the other sees them."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._listings: dict[int, list[tuple[str, os.stat_result]]] = {}
        self._next = 0

    # --- names ---------------------------------------------------------------------------------

    def lookup(self, user: int, parent: int, name: str) -> Entry:
        """An entry of a directory."""
        base, path = self._tree.child(parent, name, user)
        status = os.stat(path, dir_fd=base, follow_symlinks=False)
        # Of the root's entries each user has others.
        return Entry(
            self._tree.found(parent, name, base, status), status, 0.0 if parent == ROOT else _NOW
        )

    def forget(self, number: int, times: int) -> None:
        """The kernel holds a file no longer."""
        self._tree.forget(number, times)

    def mknod(self, user: int, parent: int, name: str, mode: int, device: int) -> Entry:
        """A new file of any kind but a directory."""
        base, path = self._tree.child(parent, name, user)
        os.mknod(path, mode, device, dir_fd=base)
        return self.lookup(user, parent, name)

    def mkdir(self, user: int, parent: int, name: str, mode: int) -> Entry:
        """A new directory."""
        base, path = self._tree.child(parent, name, user)
        os.mkdir(path, mode, dir_fd=base)
        return self.lookup(user, parent, name)

    def symlink(self, user: int, target: str, parent: int, name: str) -> Entry:
        """A new symlink."""
        base, path = self._tree.child(parent, name, user)
        os.symlink(target, path, dir_fd=base)
        return self.lookup(user, parent, name)

    def link(self, user: int, number: int, parent: int, name: str) -> Entry:
        """Another name of a file."""
        (source, old), (base, path) = (
            self._tree.place(number, user),
            self._tree.child(parent, name, user),
        )
        os.link(old, path, src_dir_fd=source, dst_dir_fd=base, follow_symlinks=False)
        return self.lookup(user, parent, name)

    def unlink(self, user: int, parent: int, name: str) -> None:
        """Take a name away."""
        base, path = self._tree.child(parent, name, user)
        os.unlink(path, dir_fd=base)
        self._tree.gone(parent, name, user)

    def rmdir(self, user: int, parent: int, name: str) -> None:
        """Remove a directory."""
        base, path = self._tree.child(parent, name, user)
        os.rmdir(path, dir_fd=base)
        self._tree.gone(parent, name, user)

    def rename(
        self, user: int, parent: int, name: str, new_parent: int, new_name: str, flags: int
    ) -> None:
        """Give an entry another place."""
        source, old = self._tree.child(parent, name, user)
        target, new = self._tree.child(new_parent, new_name, user)
        if flags:
            _rename(source, old, target, new, flags)
        else:
            os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
        self._tree.moved(
            user, (parent, name), (new_parent, new_name), swapped=bool(flags & _EXCHANGE)
        )

    def readlink(self, user: int, number: int) -> bytes:
        """What a symlink says."""
        base, path = self._tree.place(number, user)
        return os.fsencode(os.readlink(path, dir_fd=base))

    # --- attributes ----------------------------------------------------------------------------

    def getattr(self, user: int, number: int, fd: int | None) -> os.stat_result:
        """What a file is."""
        if fd is not None:
            return os.fstat(fd)
        try:
            base, path = self._tree.place(number, user)
            return os.stat(path, dir_fd=base, follow_symlinks=False)
        except OSError as error:
            left = self._tree.descriptor(number)
            if left is None or error.errno not in (errno.ESTALE, errno.ENOENT):
                raise
            return os.fstat(left)

    def setattr(self, user: int, number: int, change: Change, fd: int | None) -> os.stat_result:
        """Change attributes."""
        if fd is None and not self._has_name(user, number):
            fd = self._tree.descriptor(number)
        at: int | str
        base, at = (None, fd) if fd is not None else self._tree.place(number, user)
        follow = fd is not None
        if change.mode is not None:
            os.chmod(at, change.mode & 0o7777, dir_fd=base)
        if (change.uid, change.gid) != (-1, -1):
            os.chown(at, change.uid, change.gid, dir_fd=base, follow_symlinks=follow)
        if change.size is not None:
            _truncate(at, base, change.size)
        if change.touched:
            os.utime(at, None, dir_fd=base, follow_symlinks=follow)
        elif change.accessed is not None or change.modified is not None:
            before = self.getattr(user, number, fd)
            accessed = before.st_atime_ns if change.accessed is None else change.accessed
            modified = before.st_mtime_ns if change.modified is None else change.modified
            os.utime(at, ns=(accessed, modified), dir_fd=base, follow_symlinks=follow)
        return self.getattr(user, number, fd)

    def _has_name(self, user: int, number: int) -> bool:
        try:
            self._tree.place(number, user)
        except OSError:
            return False
        return True

    def access(self, user: int, number: int, mask: int) -> None:
        """Whether the caller may."""
        base, path = self._tree.place(number, user)
        if not os.access(path, mask, dir_fd=base, effective_ids=True):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def statfs(self, user: int, number: int) -> os.statvfs_result:
        """The file system that the caller's files are on."""
        return os.fstatvfs(self._tree.place(number, user)[0])

    # --- extended attributes -------------------------------------------------------------------

    def getxattr(self, user: int, number: int, name: str) -> bytes:
        """The value of an extended attribute."""
        return os.getxattr(self._named(user, number), name, follow_symlinks=False)

    def setxattr(self, user: int, number: int, name: str, value: bytes, flags: int) -> None:
        """Give an extended attribute a value."""
        os.setxattr(self._named(user, number), name, value, flags, follow_symlinks=False)

    def listxattr(self, user: int, number: int) -> bytes:
        """The names of all extended attributes, each with a NUL after it."""
        names = os.listxattr(self._named(user, number), follow_symlinks=False)
        return b"".join(os.fsencode(name) + b"\0" for name in names)

    def removexattr(self, user: int, number: int, name: str) -> None:
        """Take an extended attribute away."""
        os.removexattr(self._named(user, number), name, follow_symlinks=False)

    def _named(self, user: int, number: int) -> str:
        if not _LINUX:  # Python has no calls for them elsewhere
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        base, path = self._tree.place(number, user)
        return f"/proc/self/fd/{base}/{path}"

    # --- content -------------------------------------------------------------------------------

    def create(self, user: int, parent: int, name: str, mode: int, flags: int) -> tuple[Entry, int]:
        """A new file, open."""
        base, path = self._tree.child(parent, name, user)
        fd = os.open(path, _plain(flags) | os.O_CREAT, mode, dir_fd=base)
        try:
            entry = self.lookup(user, parent, name)
        except OSError:
            os.close(fd)
            raise
        self._tree.opened(entry.number, fd)
        return entry, fd

    def open(self, user: int, number: int, flags: int) -> int:
        """A file's descriptor."""
        base, path = self._tree.place(number, user)
        fd = os.open(path, _plain(flags), dir_fd=base)
        self._tree.opened(number, fd)
        return fd

    def release(self, number: int, fd: int) -> None:
        """Close it."""
        self._tree.closed(number, fd)
        os.close(fd)

    def copy(self, source: int, start: int, target: int, to: int, size: int) -> int:
        """Copy from one open file to another without showing the data to anybody."""
        if not _LINUX:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return os.copy_file_range(source, target, size, start, to)

    def allocate(self, fd: int, mode: int, start: int, size: int) -> None:
        """Make room in a file."""
        if mode or not _LINUX:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        os.posix_fallocate(fd, start, size)

    # --- directories ---------------------------------------------------------------------------

    def opendir(self, user: int, number: int) -> int:
        """A listing as it is now."""
        base, path = self._tree.place(number, user)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
        try:
            here = os.fstat(fd)
            found = [(".", here), ("..", here)]
            with os.scandir(fd) as items:
                for item in items:
                    try:
                        found.append((item.name, item.stat(follow_symlinks=False)))
                    except FileNotFoundError:
                        continue
        finally:
            os.close(fd)
        self._next += 1
        self._listings[self._next] = found
        return self._next

    def readdir(self, listing: int) -> list[tuple[str, os.stat_result]]:
        """All of a listing."""
        return self._listings[listing]

    def releasedir(self, listing: int) -> None:
        """The listing is no longer wanted."""
        del self._listings[listing]

    def fsyncdir(self, user: int, number: int) -> None:
        """Bring a directory to disk."""
        base, path = self._tree.place(number, user)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _truncate(at: int | str, base: int | None, size: int) -> None:
    if isinstance(at, int):
        os.ftruncate(at, size)
        return
    fd = os.open(at, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _plain(flags: int) -> int:
    # The kernel has followed symlinks itself, appends where it says, and aligns nothing for us.
    left_out = os.O_APPEND | os.O_CREAT | getattr(os, "O_DIRECT", 0)
    return (flags & ~left_out) | os.O_NOFOLLOW | os.O_CLOEXEC


def _rename(source: int, old: str, target: int, new: str, flags: int) -> None:
    if renameat2 is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    renameat2(source, old, target, new, flags)
