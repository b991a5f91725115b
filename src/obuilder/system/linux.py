"""Linux system calls that Python lacks, with errno as OSError. Policy-free and import-light.

Numbers are the generic ones that all architectures share since Linux 5.1, except where a table
by machine stands. Every descriptor made here is close-on-exec.
"""

import ctypes
import os
import re
import struct
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_OPENAT2, _MOUNT_SETATTR = 437, 442
_RENAMEAT2 = {"x86_64": 316, "i686": 353, "armv7l": 382}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_SECCOMP_MODE_FILTER = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
_MOUNT_ATTR_IDMAP = 0x100000

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MS_REMOUNT, MS_BIND, MS_REC = 0x20, 0x1000, 0x4000
MS_SLAVE = 1 << 19
MNT_DETACH = 2

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING = 0, 1
_FSCONFIG_CMD_CREATE = 6
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _check(result: int, path: str | bytes | None = None) -> None:
    if result != 0:
        error = ctypes.get_errno()
        if path is None:
            raise OSError(error, os.strerror(error))
        raise OSError(error, os.strerror(error), path)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, kind: int) -> None:
    """setns(2): this thread enters the namespace that `fd` stands for."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2), the old one; `data` is cut off by the kernel at 4096 bytes."""

    def text(value: str | None) -> bytes | None:
        return None if value is None else os.fsencode(value)

    _check(
        _libc.mount(
            text(source), text(target), text(kind), ctypes.c_ulong(flags), text(data or None)
        ),
        target,
    )


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


class Mounted(NamedTuple):
    """A line of the table of mounts."""

    point: str
    kind: str
    source: str


def mounts() -> list[Mounted]:
    """What is mounted in this process's mount namespace, in the order of mounting."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            front, _, back = line.partition(" - ")
            words = (front.split(" ")[4], *back.split(" ")[:2])
            found.append(Mounted(*map(_unescaped, words)))
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def open_tree(path: str, flags: int, *, at: int = AT_FDCWD) -> int:
    """open_tree(2): a descriptor of a mount; with OPEN_TREE_CLONE, of a detached copy."""
    return _call(_OPEN_TREE, at, os.fsencode(path), flags | os.O_CLOEXEC)


def move_mount(mount_fd: int, target: str, *, at: int = AT_FDCWD) -> None:
    """move_mount(2) of a detached mount to a path."""
    _call(_MOVE_MOUNT, mount_fd, b"", at, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)


def move_mount_onto(mount_fd: int, place: int) -> None:
    """move_mount(2) of a detached mount to the place that a descriptor stands for."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _call(_MOVE_MOUNT, mount_fd, b"", place, b"", flags)


def mount_setattr(
    fd: int, *, add: int = 0, remove: int = 0, recursive: bool = False, ids: int | None = None
) -> None:
    """mount_setattr(2) on the mount that `fd` is the root of.

    `ids` is a user namespace: ids on disk, taken for ids in it, are seen as what they are outside.
    """
    add |= 0 if ids is None else _MOUNT_ATTR_IDMAP
    attributes = struct.pack("=QQQQ", add, remove, 0, ids or 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _call(_MOUNT_SETATTR, fd, b"", flags, attributes, ctypes.c_size_t(len(attributes)))


def fsopen(kind: str) -> int:
    """fsopen(2): a context in which a file system is configured."""
    return _call(_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)


def fsconfig_flag(fs: int, name: str) -> None:
    """Set an option without a value."""
    _call(_FSCONFIG, fs, _FSCONFIG_SET_FLAG, name.encode(), None, 0)


def fsconfig_string(fs: int, name: str, value: str) -> None:
    """Set an option; the kernel takes at most 255 bytes."""
    _call(_FSCONFIG, fs, _FSCONFIG_SET_STRING, name.encode(), os.fsencode(value), 0)


def fsconfig_create(fs: int) -> None:
    """Make the file system as configured."""
    _call(_FSCONFIG, fs, _FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(fs: int, attributes: int = 0) -> int:
    """fsmount(2): a detached mount of the configured file system."""
    return _call(_FSMOUNT, fs, _FSMOUNT_CLOEXEC, attributes)


def openat2(path: str | bytes, flags: int, *, at: int, resolve: int, mode: int = 0) -> int:
    """openat2(2). With RESOLVE_IN_ROOT, `at` is the root: no symlink or `..` leads out of it."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    while True:
        try:
            return _call(_OPENAT2, at, name, how, ctypes.c_size_t(len(how)))
        except InterruptedError:
            continue
        except BlockingIOError:  # a rename raced with the walk: the kernel asks to try again
            continue


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(9), 0, 0, 0))


def no_new_privileges() -> None:
    """Take the power of setuid programs away from this process and all it starts."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0))


def drop_bounding() -> None:
    """Leave no capability that a program could still gain."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            return  # the kernel knows no more of them


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def filter_syscalls(program: bytes) -> None:
    """Let this process, and all it starts, make only the system calls that a BPF program allows."""
    value = _Program(len(program) // 8, program)
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    _check(_libc.prctl(_PR_SET_SECCOMP, mode, ctypes.byref(value), 0, 0))


def set_hostname(name: str) -> None:
    """sethostname(2)."""
    data = os.fsencode(name)
    _check(_libc.sethostname(data, ctypes.c_size_t(len(data))))


def raise_loopback() -> None:
    """Bring the loopback interface of this network namespace up."""
    family, datagrams, set_flags, up = 2, 2, 0x8914, 1
    fd = _libc.socket(family, datagrams, 0)
    if fd < 0:
        _check(-1)
    try:
        _check(_libc.ioctl(fd, ctypes.c_ulong(set_flags), struct.pack("16sH22x", b"lo", up)))
    finally:
        os.close(fd)


def renameat2(at: int, path: str, to: int, new: str, flags: int) -> None:
    """renameat2(2)."""
    number = _RENAMEAT2.get(os.uname().machine, 276)
    _call(number, at, os.fsencode(path), to, os.fsencode(new), ctypes.c_uint(flags))


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    _check(_libc.syncfs(ctypes.c_int(fd)))


def machine() -> str:
    """The kernel's own name of the architecture."""
    return os.uname().machine
