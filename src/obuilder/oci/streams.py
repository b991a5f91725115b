"""Reading archives that may be hostile: hashed, cut to size, decompressed, header by header."""

import bz2
import gzip
import hashlib
import io
import lzma
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from obuilder.errors import BadImage, DigestMismatch

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MOST_DATA = 256 << 30
"""Bytes of content in one archive: more is a bomb."""
_BOMB_SIZE = 1 << 30
_BOMB_RATIO = 250
"""A packed layer that comes to more bytes than this, and to that many times its own size, is a bomb:
those of real files come to three or four times their size, and gzip can do a thousand.
"""
_HEADER = 1 << 20
"""Bytes of one extended header, which is held in memory."""
_BLOCK = 1 << 20
_BROKEN: tuple[type[Exception], ...] = (
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined,unused-ignore]
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined,unused-ignore]
)
_EXTENDED = (b"x", b"g", b"X", b"L", b"K")

DAMAGED: tuple[type[Exception], ...] = (
    EOFError, zlib.error, zstd.ZstdError, gzip.BadGzipFile, lzma.LZMAError, tarfile.TarError,
    RecursionError,
)  # fmt: skip
"""What a damaged archive raises."""
UNREADABLE: tuple[type[Exception], ...] = (*DAMAGED, OSError)
"""The same, and what a file that can't be read raises."""


class Window(io.RawIOBase):
    """The bytes of `file` from where it stands, at most `size` of them."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:  # noqa: D102
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override] # noqa: D102
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


class Counted(io.RawIOBase):
    """The bytes of `file`; `size` is how many were read. BadImage if there are more than `most`.

    If they come of `packed`, which is read meanwhile, reading more of a bomb raises BadImage too.
    """

    def __init__(
        self, file: BinaryIO, packed: "Counted | None" = None, most: int | None = None
    ) -> None:
        self._file, self._packed, self._most = file, packed, most
        self.size = 0

    def readable(self) -> bool:  # noqa: D102
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override] # noqa: D102
        if self.size > _BOMB_SIZE and self._packed is not None:
            self._refuse_bomb(self._packed.size)
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.size += len(data)
        if self._most is not None and self.size > self._most:
            raise BadImage("there is more in it than there is room for")
        return len(data)

    def _refuse_bomb(self, packed: int) -> None:
        if self.size > _BOMB_RATIO * packed:
            raise BadImage(
                f"the layer is a bomb: {packed >> 10} kB of it come to more than {self.size >> 20} MB",
                hint="if that is meant, take it from an archive that is not compressed",
            )


class Hashed(Counted):
    """The same, hashed."""

    def __init__(
        self, file: BinaryIO, packed: Counted | None = None, most: int | None = None
    ) -> None:
        super().__init__(file, packed, most)
        self._hash = hashlib.sha256()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override] # noqa: D102
        count = super().readinto(buffer)
        self._hash.update(memoryview(buffer)[:count])
        return count

    def finish(self, digest: str, what: str) -> None:
        """Read the rest. DigestMismatch if all that was read is not of that digest."""
        while self.read(_BLOCK):
            pass
        if f"sha256:{self._hash.hexdigest()}" != digest:
            raise DigestMismatch(f"{what} is not what it was said to be ({digest})")


class Padded(io.RawIOBase):
    """The bytes of `file`, and zeros to the end of a block of tar's, which `umoci insert` leaves out.

    For archives whose digest is checked only, since what is cut off there would be zeros too.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0

    def readable(self) -> bool:  # noqa: D102
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override] # noqa: D102
        data = self._file.read(len(buffer)) or bytes(-self._size % tarfile.BLOCKSIZE)
        buffer[: len(data)] = data
        self._size += len(data)
        return len(data)


@contextmanager
def decompressed(file: BinaryIO | io.RawIOBase) -> Iterator[BinaryIO]:
    """The content of a plain, gzip, zstd, bzip2 or xz stream, told apart by its first bytes.

    It can be sought if `file` can; going back in a compressed one starts from its beginning. The
    file stays the caller's to close.
    """
    buffered = io.BufferedReader(file, _BLOCK)  # type: ignore[type-var] # reads like a raw one
    try:
        head = buffered.peek(4)[:4]
        if head[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=buffered) as content:
                yield content  # type: ignore[misc] # reads like one
        elif head == b"\x28\xb5\x2f\xfd":
            with zstd.ZstdFile(buffered) as content:
                yield content  # type: ignore[misc,unused-ignore]
        elif head[:3] == b"BZh":
            with bz2.BZ2File(buffered) as content:
                yield content  # type: ignore[misc,unused-ignore]
        elif head == b"\xfd7zX":
            with lzma.LZMAFile(buffered) as content:
                yield content  # type: ignore[misc,unused-ignore]
        else:
            yield buffered
    finally:
        buffered.detach()


class Member(tarfile.TarInfo):
    """A member whose damaged or oversized header is an error, not the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "Member":  # noqa: D102
        try:
            return super().fromtarfile(tarfile_)  # type: ignore[return-value,unused-ignore]
        except _BROKEN as error:
            raise BadImage(f"a damaged archive: {error}") from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _EXTENDED and self.size > _HEADER):
            raise BadImage("a damaged archive: a header of an absurd size")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]


def read_tar(file: BinaryIO, *, seek: bool = False) -> tarfile.TarFile:
    """Headers are read one by one with `next`; content is skipped by reading, or by seeking."""
    return tarfile.open(
        fileobj=file, mode="r:" if seek else "r|", tarinfo=Member,
        encoding="utf-8", errors="surrogateescape",
    )  # fmt: skip
