"""Walking, removing and copying trees that may be hostile: by descriptors, inside a root."""

import contextlib
import errno
import os
import stat
from typing import Literal, Self

from obuilder.system.linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from obuilder.values import IdMap

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 1 << 20
_DEEP = 100
"""Descriptors that removing a tree holds open."""


class InRoot:
    """Directories inside a root, opened by relative path; no symlink or `..` leads out of it.

    Descriptors stay the walker's own and may be closed at the next call of `directory`: use
    each one before asking for another, or `os.dup` it.
    """

    _KEPT = 64

    def __init__(self, root: str) -> None:
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every descriptor."""
        self.forget()
        os.close(self.fd)

    def forget(self) -> None:
        """Drop what is known of paths: something on the way was replaced."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def directory(self, path: str, *, make: tuple[int, int] | None = None) -> int:
        """A descriptor of the directory `path`, symlinks followed inside the root.

        With `make`, missing ones are made, mode 0755, for that owner (on disk; -1: as is).
        NotADirectoryError, FileNotFoundError.
        """
        if not path:
            return self.fd
        fd = self._open.get(path)
        if fd is not None:
            return fd
        parent, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            raise OSError(errno.EINVAL, "not a normalised path", path)
        at = self.directory(parent, make=make)
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=at)
        except FileNotFoundError:
            if make is None:
                raise
            os.mkdir(name, 0o755, dir_fd=at)
            fd = os.open(name, _DIRECTORY, dir_fd=at)
            os.fchmod(fd, 0o755)
            if make != (-1, -1):
                os.fchown(fd, *make)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            fd = openat2(
                path,
                os.O_RDONLY | os.O_DIRECTORY,
                at=self.fd,
                resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
            )
        if len(self._open) >= self._KEPT:
            os.close(self._open.pop(next(iter(self._open))))
        self._open[path] = fd
        return fd


def remove_at(name: str, *, at: int) -> None:
    """Remove `name` in the directory `at` with all below it; no symlink is followed, no error if
    it is not there, also when another process removes it as well, and no mode of a directory
    hinders its owner.
    """
    try:
        os.unlink(name, dir_fd=at)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    stack: list[tuple[str, int, list[str]]] = []

    def enter(name: str, at: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            stack.append(_emptied(name, at))

    enter(name, at)
    try:
        while stack:
            name, fd, pending = stack[-1]
            if pending:
                name = pending.pop()
                if len(stack) < _DEEP or not _lift(name, fd, stack[0]):
                    enter(name, fd)
                continue
            stack.pop()
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=stack[-1][1] if stack else at)
    finally:
        for _, fd, _ in stack:
            os.close(fd)


def _lift(name: str, at: int, top: tuple[str, int, list[str]]) -> bool:
    """Move a directory to the top of the tree: no nesting is too deep for the descriptors we have."""
    _, fd, pending = top
    lifted = f".obuilder-{os.urandom(8).hex()}"
    try:
        os.rename(name, lifted, src_dir_fd=at, dst_dir_fd=fd)
    except OSError:  # of another file system, or subvolume
        return False
    pending.append(lifted)
    return True


def _emptied(name: str, at: int) -> tuple[str, int, list[str]]:
    """Open a directory and remove what is not a directory in it: its descriptor, what is left."""
    fd = _open_anyhow(name, at)
    try:
        with os.scandir(fd) as items:
            found = [(item.name, item.is_dir(follow_symlinks=False)) for item in items]
        for child, is_dir in found:
            if not is_dir:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(child, dir_fd=fd)
    except BaseException:
        os.close(fd)
        raise
    return name, fd, [child for child, is_dir in found if is_dir]


def _open_anyhow(name: str, at: int) -> int:
    """Open a directory that is to be removed, whatever its mode."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        if os.fstat(fd).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)
    return os.open(name, _DIRECTORY, dir_fd=at)


def remove_tree(path: str) -> None:
    """Remove `path` with all below it; see `remove_at`."""
    parent, name = os.path.split(path.rstrip("/"))
    try:
        at = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_at(name, at=at)
    finally:
        os.close(at)


def kept_xattr(name: str) -> bool:
    """Whether an extended attribute may go from one root to another: never an overlay's own."""
    if ".overlay." in name:
        return False
    return name.startswith("user.") or name == "security.capability"


def kept_xattrs(fd: int) -> dict[str, bytes]:
    """The extended attributes of a file that may go to another root, by name."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.ENOTSUP:  # zfs-fuse has none
            return {}
        raise
    return {name: os.getxattr(fd, name) for name in sorted(names) if kept_xattr(name)}


def too_deep(path: str) -> OSError:
    """What is said of a tree that is nested deeper than it can be walked."""
    return OSError(errno.ENAMETOOLONG, "directories are nested too deeply", path)


def copy_data(source: int, target: int, size: int) -> None:
    """Copy a file's data, holes as holes. What grew past `size` meanwhile is left out.

    The kernel does it: where the file system can share blocks, nothing is read or written.
    """
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        while start < end:
            copied = _copy_range(source, target, start, end - start)
            if not copied:
                break
            start += copied
        offset = max(end, offset + 1)
    if os.fstat(target).st_size != size:
        os.ftruncate(target, size)


def _copy_range(source: int, target: int, start: int, size: int) -> int:
    try:
        return os.copy_file_range(source, target, size, start, start)
    except OSError as error:
        # Between file systems, or on one that can't: by hand.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    data = os.pread(source, min(_BLOCK, size), start)
    os.lseek(target, start, os.SEEK_SET)
    write_all(target, data)
    return len(data)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`, however little the kernel takes at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy_tree(
    src: str,
    dst: str,
    *,
    idmap: IdMap | None = None,
    onto: IdMap | None = None,
    existing: Literal["keep", "refuse"] = "refuse",
) -> None:
    """Copy what is in the directory `src` into the directory `dst`, which is made if missing.

    Kept: content with its holes, hard links, modes, times, owners (as an ordinary user: none) and
    extended attributes but for those of an overlay. With `idmap`, owners become the ids inside;
    with `onto`, owners are taken for ids inside and become those on disk (ValueError: not in it).
    Sockets and devices are left out. `existing`: "keep" leaves files that are already there and
    merges directories; "refuse" raises FileExistsError.
    """
    os.makedirs(dst, exist_ok=True)
    source = os.open(src, _DIRECTORY)
    try:
        target = os.open(dst, _DIRECTORY)
        try:
            _Copier(idmap, onto, keep=existing == "keep", base=target).directory(source, target, "")
        except RecursionError:
            raise too_deep(src) from None
        finally:
            os.close(target)
    finally:
        os.close(source)


def copy_named(
    at: int, name: str, into: int, to: str, *, idmap: IdMap | None, onto: IdMap | None
) -> None:
    """Copy `name` in the directory `at`, which may be `.`, as `to` in the directory `into`; else as
    `copy_tree`. FileNotFoundError; FileExistsError if `to` is there.
    """
    status = os.stat(name, dir_fd=at, follow_symlinks=False)
    copier = _Copier(idmap, onto, keep=False, base=into)
    try:
        copier.entry(name, status, at, into, "", to=to)
    except RecursionError:
        raise too_deep(name) from None


class _Copier:
    def __init__(self, idmap: IdMap | None, onto: IdMap | None, *, keep: bool, base: int) -> None:
        self._idmap = idmap
        self._onto = onto
        self._keep = keep
        self._base = base
        self._owners = os.geteuid() == 0 and not (onto is not None and onto.single)
        self._links: dict[tuple[int, int], str] = {}

    def directory(self, source: int, target: int, prefix: str) -> None:
        with os.scandir(source) as items:
            found = [(item.name, item.stat(follow_symlinks=False)) for item in items]
        for name, status in found:
            try:
                self.entry(name, status, source, target, prefix)
            except FileExistsError:
                if not self._keep:
                    raise

    def entry(
        self,
        name: str,
        status: os.stat_result,
        source: int,
        target: int,
        prefix: str,
        *,
        to: str = "",
    ) -> None:
        to = to or name
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            made = True
            try:
                os.mkdir(to, 0o700, dir_fd=target)
            except FileExistsError:
                made = False
                if not self._keep:
                    raise
            try:
                deeper = os.open(to, _DIRECTORY, dir_fd=target)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise FileExistsError(error.errno, error.strerror, to) from error
                raise
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=source)
                try:
                    self.directory(inner, deeper, f"{prefix}{to}/")
                    if made:
                        self._dress(inner, deeper, status)
                finally:
                    os.close(inner)
            finally:
                os.close(deeper)
            return
        mark = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and mark in self._links:
            os.link(
                self._links[mark], to,
                src_dir_fd=self._base, dst_dir_fd=target, follow_symlinks=False,
            )  # fmt: skip
            return
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=source), to, dir_fd=target)
            if self._owners:
                os.chown(to, *self._owner(status), dir_fd=target, follow_symlinks=False)
            times = (status.st_atime_ns, status.st_mtime_ns)
            os.utime(to, ns=times, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISREG(mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=source)
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                made_fd = os.open(to, flags, 0o600, dir_fd=target)
                try:
                    copy_data(inner, made_fd, status.st_size)
                    self._dress(inner, made_fd, status)
                finally:
                    os.close(made_fd)
            finally:
                os.close(inner)
        elif stat.S_ISFIFO(mode):
            os.mkfifo(to, stat.S_IMODE(mode), dir_fd=target)
            if self._owners:
                os.chown(to, *self._owner(status), dir_fd=target, follow_symlinks=False)
            os.chmod(to, stat.S_IMODE(mode), dir_fd=target)
            os.utime(to, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target)
        else:
            return
        if status.st_nlink > 1:
            self._links[mark] = prefix + to

    def _owner(self, status: os.stat_result) -> tuple[int, int]:
        if self._onto is not None:
            return self._onto.to_disk(status.st_uid), self._onto.to_disk(status.st_gid)
        if self._idmap is None:
            return status.st_uid, status.st_gid
        return self._idmap.to_inside(status.st_uid), self._idmap.to_inside(status.st_gid)

    def _dress(self, source: int, target: int, status: os.stat_result) -> None:
        if self._owners:
            os.fchown(target, *self._owner(status))
        for name, value in kept_xattrs(source).items():
            try:
                os.setxattr(target, name, value)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP):
                    raise
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
