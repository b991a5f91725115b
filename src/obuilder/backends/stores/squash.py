"""One overlay layer made of several, by hard links: what they show together, without copying.

Whiteouts (character device 0:0) and opaque directories keep hiding what is below, unless nothing
is below any more. Works on descriptors only, so no symlink of a layer is ever followed.
"""

import errno
import os
import shutil
import stat
from contextlib import ExitStack, suppress

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_LEFT = ("overlay.origin", "overlay.impure")  # hints about inodes of layers: no longer true


def squash(layers: list[str], target: str, *, opaque: str, below: list[str]) -> None:
    """Make `target`, a new directory, of `layers`, the newest first.

    `opaque` is the name of the attribute that marks a directory as opaque here; `below` are
    the layers under the last one, the newest first.
    """
    with ExitStack() as stack:
        folders = [_open(layer, None, stack) for layer in layers]
        os.mkdir(target, 0o700)
        into = _open(target, None, stack)
        _merge(folders, into, opaque, [_open(layer, None, stack) for layer in below])


def _open(name: str, at: int | None, stack: ExitStack) -> int:
    fd = os.open(name, _FOLDER, dir_fd=at)
    stack.callback(os.close, fd)
    return fd


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _is_opaque(folder: int, opaque: str) -> bool:
    try:
        return os.getxattr(folder, opaque) == b"y"
    except OSError:
        return False


def _merge(folders: list[int], into: int, opaque: str, below: list[int]) -> None:
    """Fill `into` with what `folders`, the newest first, show together."""
    seen = set[str]()
    for position, folder in enumerate(folders):
        for name in os.listdir(folder):
            if name in seen:
                continue
            seen.add(name)
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if _is_whiteout(found):
                if below:
                    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=into)
            elif stat.S_ISDIR(found.st_mode):
                _merge_folder(name, folders[position:], into, opaque, below)
            else:
                _link(name, found, folder, into)
    copy_attributes(folders[0], into)
    if not below:
        with suppress(OSError):
            os.removexattr(into, opaque)


def _merge_folder(name: str, folders: list[int], into: int, opaque: str, below: list[int]) -> None:
    with ExitStack() as stack:
        parts, cut = _shown(name, folders, opaque, stack)
        # A whiteout with no directory below it would show: the kernel looks for them in
        # directories of several layers only.
        lower = [] if cut else _shown(name, below, opaque, stack)[0]
        os.mkdir(name, 0o700, dir_fd=into)
        made = _open(name, into, stack)
        _merge(parts, made, opaque, lower)
        if cut and below:
            os.setxattr(made, opaque, b"y")


def _shown(name: str, folders: list[int], opaque: str, stack: ExitStack) -> tuple[list[int], bool]:
    """The directories called `name` that show through, and whether they hide all further ones."""
    parts = list[int]()
    for folder in folders:
        try:
            parts.append(_open(name, folder, stack))
        except FileNotFoundError:
            continue
        except OSError as error:  # a file, a symlink or a whiteout: it hides what is below
            if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise
            return parts, True
        if _is_opaque(parts[-1], opaque):
            return parts, True
    return parts, False


def _link(name: str, found: os.stat_result, folder: int, into: int) -> None:
    try:
        os.link(name, name, src_dir_fd=folder, dst_dir_fd=into, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EPERM):
            raise
        _copy(name, found, folder, into)


def _copy(name: str, found: os.stat_result, folder: int, into: int) -> None:
    """For the one file too often linked."""
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=folder), name, dir_fd=into)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=into, follow_symlinks=False)
    elif stat.S_ISREG(found.st_mode):
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            open(os.open(name, os.O_RDONLY | flags, dir_fd=folder), "rb") as source,
            open(
                os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=into),
                "wb",
            ) as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            copy_attributes(source.fileno(), copy.fileno())
    else:
        os.mknod(name, found.st_mode, found.st_rdev, dir_fd=into)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=into, follow_symlinks=False)
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=into)
    times = (found.st_atime_ns, found.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=into, follow_symlinks=False)


def copy_attributes(source: int, target: int) -> None:
    """Owner, mode, extended attributes and times of one open file or directory to another."""
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        if not name.endswith(_LEFT):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
