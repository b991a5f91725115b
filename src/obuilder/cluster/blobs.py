"""Files in the cluster, by content: each once for each client, in pieces, checked when they are read.

NATS has an object store of its own. Whoever reads from it makes a consumer, which clients may not:
here a piece is a message under the file's digest, and is read directly.
"""

import hashlib
import math
import os
import time
from collections.abc import AsyncIterator, Iterable

import anyio

from obuilder.cluster import names
from obuilder.cluster.engine import Engine, Stored
from obuilder.cluster.tasks import together
from obuilder.errors import ClusterError

PIECE = 512 << 10
"""Bytes of a piece, but for the last."""
_END = "end"
_STALE = 24 * 3600.0
"""A file that was sent that long ago is sent again: it may be about to be dropped."""
_AT_ONCE = 32
"""Pieces on the way at one time."""
_ASKED = 512
"""Files that are asked for in one request."""


def digest_of(data: bytes) -> str:
    """What data is known by."""
    return hashlib.sha256(data).hexdigest()


class Blobs:
    """The files of one client."""

    def __init__(self, engine: Engine, client: str) -> None:
        self._engine, self._client = engine, client
        self._stream = names.blobs_of(client)
        self._slots = anyio.CapacityLimiter(_AT_ONCE)

    async def missing(self, digests: Iterable[str], *, small: bool = False) -> set[str]:
        """Which of these files are not there whole, or may soon not be. `small`: those that `send_small`
        sends.
        """
        wanted, last = sorted(set(digests)), 0 if small else _END
        found: list[Stored] = []
        for at in range(0, len(wanted), _ASKED):
            ends = [names.blob(self._client, each, last) for each in wanted[at : at + _ASKED]]
            if len(ends) == 1:  # workers may ask so, and not for lists
                end = await self._engine.last(self._stream, ends[0])
                found += [] if end is None else [end]
            else:
                found += await self._engine.named(self._stream, ends)
        since = time.time() - _STALE
        return set(wanted) - {end.subject.split(".")[2] for end in found if end.time > since}

    async def put(self, data: bytes) -> str:
        """Send data, if it is not there. Its digest."""
        digest = digest_of(data)
        if await self.missing([digest]):
            pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
            async with together() as tasks:
                for number, piece in enumerate(pieces):
                    tasks.start_soon(self._piece, digest, number, piece)
            await self._finish(digest, len(data))
        return digest

    async def send(self, fd: int, digest: str) -> bool:
        """Send an open file. False if its content has another digest, and then it is not there."""
        found, size, number = hashlib.sha256(), 0, 0
        while piece := os.pread(fd, PIECE, size):
            await self._piece(digest, number, piece)
            found.update(piece)
            size, number = size + len(piece), number + 1
        if found.hexdigest() != digest:
            return False
        await self._finish(digest, size)
        return True

    async def send_small(self, fd: int, digest: str) -> bool:
        """Send an open file of one piece as one message, which `small` reads. False as `send` is."""
        piece = os.pread(fd, PIECE + 1, 0)
        if digest_of(piece) != digest:
            return False
        await self._piece(digest, 0, piece)
        return True

    async def _piece(self, digest: str, number: int, piece: bytes) -> None:
        async with self._slots:
            await self._engine.put(names.blob(self._client, digest, number), piece)

    async def _finish(self, digest: str, size: int) -> None:
        async with self._slots:
            await self._engine.put(names.blob(self._client, digest, _END), b"%d" % size)

    async def get(self, digest: str, *, most: int = 256 << 20) -> bytes:
        """A whole file, checked, of at most `most` bytes. ClusterError."""
        found = bytearray()
        async for piece in self.pieces(digest):
            found += piece
            if len(found) > most:
                raise ClusterError(f"the file {digest[:12]} has more than {most} bytes")
        return bytes(found)

    async def pieces(self, digest: str) -> AsyncIterator[bytes]:
        """A file piece by piece. ClusterError if it is not there whole, or is not what it should be:
        the last is known at the end alone, so what came before may not be used till then.
        """
        end = await self._engine.last(self._stream, names.blob(self._client, digest, _END))
        if end is None or not end.data.isdigit():
            raise _gone(digest)
        found, size = hashlib.sha256(), 0
        for number in range(math.ceil(int(end.data) / PIECE)):
            piece = await self._engine.last(self._stream, names.blob(self._client, digest, number))
            if piece is None:
                raise _gone(digest)
            found.update(piece.data)
            size += len(piece.data)
            yield piece.data
        _check(digest, found.hexdigest())

    async def small(self, digest: str) -> bytes:
        """A file of one piece, checked. ClusterError."""
        async with self._slots:
            piece = await self._engine.last(self._stream, names.blob(self._client, digest, 0))
        if piece is None:
            raise _gone(digest)
        _check(digest, digest_of(piece.data))
        return piece.data


def _check(digest: str, found: str) -> None:
    if found != digest:
        raise ClusterError(
            f"the file {digest[:12]} is not what it was when it was sent", hint="submit it again"
        )


def _gone(digest: str) -> ClusterError:
    return ClusterError(
        f"the file {digest[:12]} is not in the cluster any more", hint="submit it again"
    )
