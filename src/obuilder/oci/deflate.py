"""Gzip on all cores: the same bytes for the same content, however many there are."""

import os
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

BLOCK = 1 << 18
"""Bytes that are compressed at one time; each block but the last has so many."""
_WINDOW = 1 << 15
_LEVEL = 6
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""Without a name, a time or a system."""
_END = b"\x03\0"
"""An empty last block: all others end at a byte, and say that more follows."""


class Gzip:
    """A stream of one member. To be closed, also where it was not ended."""

    def __init__(self) -> None:
        self._width = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._width)
        self._waiting = deque[Future[bytes]]()
        self._before = b""
        self._crc = self._size = 0
        self._head = _HEADER

    def compress(self, block: bytes) -> bytes:
        """Take the next block; what is ready of those before it."""
        self._crc = zlib.crc32(block, self._crc)
        self._size += len(block)
        self._waiting.append(self._pool.submit(_deflated, block, self._before))
        self._before = block[-_WINDOW:]
        return self._taken(2 * self._width)

    def flush(self) -> bytes:
        """What is left, and the end."""
        end = (
            _END + self._crc.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little")
        )
        return self._taken(0) + end

    def _taken(self, left: int) -> bytes:
        found = [self._head]
        self._head = b""
        while len(self._waiting) > left:
            found.append(self._waiting.popleft().result())
        return b"".join(found)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def _deflated(block: bytes, before: bytes) -> bytes:
    """A block that may refer to what stands before it."""
    if before:
        stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=before)
    else:
        stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return stream.compress(block) + stream.flush(zlib.Z_SYNC_FLUSH)
