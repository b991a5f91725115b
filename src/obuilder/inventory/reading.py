"""Files of a root that may be hostile: no symlink leads out of it, and only so much is read.

What can't be read is an `Unreadable`, with the reason for people.
"""

import os
import stat
from collections.abc import Collection, Iterator
from typing import BinaryIO, Self

from obuilder.system.linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_LINE = 1 << 14
"""Bytes of a field that are looked at."""
_LONGEST = 256 << 20
"""Bytes of a database of text: what follows is not read."""


class Unreadable(Exception):
    """A file that is not what it should be."""


class Root:
    """A root file system to look into. To be used in a `with`."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def open(self, path: str) -> BinaryIO | None:
        """A regular file, symlinks followed inside the root; None if there is none. Unreadable."""
        try:
            fd = openat2(path, _FLAGS, at=self.fd, resolve=_INSIDE)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        return _regular(fd)

    def names(self, path: str) -> list[str]:
        """The names in a directory, in order; none if there is none. Unreadable."""
        try:
            fd = openat2(path, _FLAGS | os.O_DIRECTORY, at=self.fd, resolve=_INSIDE)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        try:
            return sorted(os.listdir(fd), key=os.fsencode)
        finally:
            os.close(fd)


def open_at(name: str, at: int) -> BinaryIO | None:
    """A regular file that is in a directory itself, and no symlink; else None. Unreadable."""
    try:
        fd = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=at)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    return _regular(fd)


def _regular(fd: int) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Unreadable("it is no regular file")
    return open(fd, "rb")


def paragraphs(
    file: BinaryIO, wanted: Collection[str], *, most: int = _LONGEST
) -> Iterator[dict[str, str]]:
    """Fields `Name: value` of paragraphs with empty lines between them: those that are wanted, and of
    each what stands on its first line. Lines that are no such thing are passed over. Unreadable.
    """
    found: dict[str, str] = {}
    left, fresh = most, True
    while True:
        data = file.readline(_LINE)
        left -= len(data)
        if left < 0:
            raise Unreadable(f"it has more than {most >> 20} MB")
        begins, fresh = fresh, data.endswith(b"\n")
        if not data or (begins and not data.strip()):
            if found:
                yield found
            if not data:
                return
            found = {}
        elif begins and data[:1] not in b" \t":
            name, colon, value = data.partition(b":")
            if colon and (key := name.decode("ascii", "replace")) in wanted and key not in found:
                found[key] = text_of(value.strip())


def text_of(data: bytes) -> str:
    """Bytes of a database as text: what is no UTF-8 is shown as question marks."""
    return data.decode("utf-8", "replace")
