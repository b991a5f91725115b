"""Home directories of a step's users, so that every runtime gives them the same HOME."""

import os
import stat

from obuilder.system import linux

_LARGEST = 1 << 20


def home_of(root: str, uid: int) -> str:
    """What /etc/passwd in `root` says is the home of `uid`; / if it says nothing."""
    for line in _read(root, "/etc/passwd").split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 5 and fields[2] == b"%d" % uid:
            return os.fsdecode(fields[5]) or "/"
    return "/"


def _read(root: str, path: str) -> bytes:
    """A file of the root, whatever a step has put there; empty if it is none."""
    at = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
        fd = linux.openat2(path, os.O_RDONLY | os.O_NONBLOCK, at=at, resolve=resolve)
    except OSError:
        return b""
    finally:
        os.close(at)
    try:
        return os.read(fd, _LARGEST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
