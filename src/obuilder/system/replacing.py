"""Files that are there whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

_NAMELESS = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
_NAMED = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


@contextmanager
def replacing(path: str, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file that is `path` once the context ends well, in place of what was there. OSError.

    Until then it has no name, so nothing is left of it where its writer is killed; but on file
    systems that lack that (FUSE, NFS), where it lies beside `path`. `mode` is as for chmod; else a
    new file's.
    """
    folder = os.path.dirname(path) or "."
    beside = os.path.join(folder, f".obuilder-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        fd, named = os.open(folder, _NAMELESS, 0o666), False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        fd, named = os.open(beside, _NAMED, 0o666), True
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            if mode is not None:
                os.fchmod(fd, mode)
            if not named:
                try:
                    _link(fd, path)
                    return
                except FileExistsError:  # a link goes over nothing: a name of its own, for a moment
                    _link(fd, beside)
                    named = True
        os.replace(beside, path)
    except BaseException:
        if named:
            with suppress(FileNotFoundError):
                os.unlink(beside)
        raise


def _link(fd: int, path: str) -> None:
    # A descriptor of a directory, any, has Python ask for the call that follows the link in /proc.
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
