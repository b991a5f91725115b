"""A little room on the disk that is kept for making more: deleting has to write, to the index first.

Builds never use it. Whoever is about to delete gives it up, and the next builder that opens the
store takes it back.
"""

import os
from contextlib import suppress

_SIZE = 512 << 10


def _path(directory: str) -> str:
    return os.path.join(directory, "reserve")


def keep_reserve(directory: str) -> None:
    """Take the room, if it is not taken and there is any."""
    path = _path(directory)
    if os.path.exists(path):
        return
    with suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _SIZE)
        except OSError:
            os.unlink(path)
        finally:
            os.close(fd)


def give_up_reserve(directory: str) -> None:
    """Let go of the room."""
    with suppress(OSError):
        os.unlink(_path(directory))
