"""libfuse 3's low-level interface: its structures and functions, as ctypes have them.

mfusepy finds the library and knows its structures on each system; its own interface is by paths,
and would make one file of what two users have under one name.
"""

import ctypes
import os
from typing import Any

from obuilder.errors import BackendUnavailable

_u64, _int, text_pointer, _pointer = ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
_size, _offset, _mode = ctypes.c_size_t, ctypes.c_int64, ctypes.c_uint32

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
try:
    import mfusepy
except (ImportError, OSError) as _error:
    raise BackendUnavailable(
        f"the redirect needs mfusepy and libfuse 3: {_error}",
        hint="pip install obuilder[fuse]; Debian: libfuse3-3; macOS: macFUSE",
    ) from _error

lib = mfusepy._libfuse  # noqa: SLF001 - it has no other name
Stat, StatFs = mfusepy.c_stat, mfusepy.c_statvfs


class Context(ctypes.Structure):
    """Who asks: `struct fuse_ctx`."""

    _fields_ = (
        ("uid", ctypes.c_uint32), ("gid", ctypes.c_uint32), ("pid", ctypes.c_int32),
        ("umask", ctypes.c_uint32),
    )  # fmt: skip


class Arguments(ctypes.Structure):
    """A command line: `struct fuse_args`."""

    _fields_ = (("count", _int), ("words", ctypes.POINTER(text_pointer)), ("allocated", _int))


class EntryReply(ctypes.Structure):
    """A file that was looked up: `struct fuse_entry_param`."""

    _fields_ = (
        ("number", _u64), ("generation", _u64), ("attributes", Stat),
        ("attributes_known", ctypes.c_double), ("known", ctypes.c_double),
    )  # fmt: skip


class Forgotten(ctypes.Structure):
    """`struct fuse_forget_data`."""

    _fields_ = (("number", _u64), ("times", _u64))


_Info = mfusepy.fuse_file_info
_info = ctypes.POINTER(_Info)
_stat = ctypes.POINTER(Stat)

# In the order of `struct fuse_lowlevel_ops`. None: the library's own answer, or none is needed.
OPERATIONS: tuple[tuple[str, tuple[Any, ...] | None], ...] = (
    ("init", None),
    ("destroy", None),
    ("lookup", (_u64, text_pointer)),
    ("forget", (_u64, _u64)),
    ("getattr", (_u64, _info)),
    ("setattr", (_u64, _stat, _int, _info)),
    ("readlink", (_u64,)),
    ("mknod", (_u64, text_pointer, _mode, _u64)),
    ("mkdir", (_u64, text_pointer, _mode)),
    ("unlink", (_u64, text_pointer)),
    ("rmdir", (_u64, text_pointer)),
    ("symlink", (text_pointer, _u64, text_pointer)),
    ("rename", (_u64, text_pointer, _u64, text_pointer, ctypes.c_uint)),
    ("link", (_u64, _u64, text_pointer)),
    ("open", (_u64, _info)),
    ("read", (_u64, _size, _offset, _info)),
    ("write", (_u64, _pointer, _size, _offset, _info)),
    ("flush", (_u64, _info)),
    ("release", (_u64, _info)),
    ("fsync", (_u64, _int, _info)),
    ("opendir", (_u64, _info)),
    ("readdir", (_u64, _size, _offset, _info)),
    ("releasedir", (_u64, _info)),
    ("fsyncdir", (_u64, _int, _info)),
    ("statfs", (_u64,)),
    ("setxattr", (_u64, text_pointer, _pointer, _size, _int)),
    ("getxattr", (_u64, text_pointer, _size)),
    ("listxattr", (_u64, _size)),
    ("removexattr", (_u64, text_pointer)),
    ("access", (_u64, _int)),
    ("create", (_u64, text_pointer, _mode, _info)),
    ("getlk", None),  # locks are the kernel's own: each file is one file to it
    ("setlk", None),
    ("bmap", None),
    ("ioctl", None),
    ("poll", None),
    ("write_buf", None),
    ("retrieve_reply", None),
    ("forget_multi", (_size, ctypes.POINTER(Forgotten))),
    ("flock", None),
    ("fallocate", (_u64, _int, _offset, _offset, _info)),
    ("readdirplus", None),
    ("copy_file_range", (_u64, _offset, _info, _u64, _offset, _info, _size, _int)),
    ("lseek", (_u64, _offset, _int, _info)),
)


def prototype(arguments: tuple[Any, ...]) -> Any:
    """The type of a function that answers a request with these arguments."""
    return ctypes.CFUNCTYPE(None, _pointer, *arguments)


class Operations(ctypes.Structure):
    """What answers which request: `struct fuse_lowlevel_ops`."""

    _fields_ = tuple(
        (name, _pointer if arguments is None else prototype(arguments))
        for name, arguments in OPERATIONS
    )


def declare() -> None:
    """Tell ctypes of the functions that are called."""
    known = {
        "fuse_session_new": (_pointer, (_pointer, _pointer, _size, _pointer)),
        "fuse_session_mount": (_int, (_pointer, text_pointer)),
        "fuse_session_loop": (_int, (_pointer,)),
        "fuse_session_exit": (None, (_pointer,)),
        "fuse_session_unmount": (None, (_pointer,)),
        "fuse_session_destroy": (None, (_pointer,)),
        "fuse_set_signal_handlers": (_int, (_pointer,)),
        "fuse_req_ctx": (ctypes.POINTER(Context), (_pointer,)),
        "fuse_reply_err": (_int, (_pointer, _int)),
        "fuse_reply_none": (None, (_pointer,)),
        "fuse_reply_entry": (_int, (_pointer, ctypes.POINTER(EntryReply))),
        "fuse_reply_create": (_int, (_pointer, ctypes.POINTER(EntryReply), _info)),
        "fuse_reply_attr": (_int, (_pointer, _stat, ctypes.c_double)),
        "fuse_reply_readlink": (_int, (_pointer, text_pointer)),
        "fuse_reply_open": (_int, (_pointer, _info)),
        "fuse_reply_write": (_int, (_pointer, _size)),
        "fuse_reply_buf": (_int, (_pointer, text_pointer, _size)),
        "fuse_reply_statfs": (_int, (_pointer, ctypes.POINTER(StatFs))),
        "fuse_reply_xattr": (_int, (_pointer, _size)),
        "fuse_reply_lseek": (_int, (_pointer, _offset)),
        "fuse_add_direntry": (_size, (_pointer, _pointer, _size, text_pointer, _stat, _offset)),
    }
    for name, (result, arguments) in known.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments


def fill(to: Any, status: os.stat_result) -> None:
    """Put a status into a `struct stat`."""
    for name in ("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"):
        setattr(to, f"st_{name}", getattr(status, f"st_{name}"))
    for name in ("atime", "mtime", "ctime"):
        moment = getattr(to, f"st_{name}spec")
        moment.tv_sec, moment.tv_nsec = divmod(getattr(status, f"st_{name}_ns"), 10**9)
