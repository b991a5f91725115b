"""Blobs on their way into a store: a file for each, by its digest, that outlives who fetches it.

In a store's directory, `downloads/HEX` is a whole blob, checked, and `downloads/HEX.part` what there
is of one. Who fetches it holds that file locked (flock): another process waits for it, and goes on
with it when its owner is gone, however it ended. Whoever unpacked a blob removes it; what was never
unpacked is `swept`.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import anyio.to_thread

from obuilder.errors import (
    DigestMismatch,
    FetchError,
    ObuilderError,
    StoreError,
    StoreFull,
    Unreachable,
)
from obuilder.system.files import write_all

_PIECE = 1 << 20
_POLL = 0.05
_OFTEN = 0.2
"""Seconds from one word of how far it got to the next."""


class Source(Protocol):
    """Where blobs come from: a repository of a registry, or a cache."""

    name: str

    async def blob(
        self, digest: str, size: int, take: Callable[[bytes], Awaitable[None]], *, start: int = 0
    ) -> None:
        """Hand over the bytes of a blob from `start` on; who takes them checks the digest."""


class Downloads:
    """The folder of a store's blobs."""

    def __init__(self, directory: str) -> None:
        self._folder = os.path.join(directory, "downloads")

    def whole(self, digest: str) -> int | None:
        """A descriptor of a blob that is there; None if it is not. Takes its time: it looks again,
        since nothing here is safe from a power cut.
        """
        try:
            fd = os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with open(fd, "rb", closefd=False) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if f"sha256:{found}" == digest:
            return fd
        os.close(fd)
        self.remove(digest)
        return None

    def claim(self, digest: str) -> "Part | None":
        """What there is of a blob, to be gone on with and closed; None if somebody does so."""
        path = self._path(digest)
        fd = os.open(self._made(f"{path}.part"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _owned(fd, f"{path}.part"):
            if not os.path.exists(path):
                return Part(fd, path)
            os.unlink(f"{path}.part")
        os.close(fd)
        return None

    def remove(self, digest: str) -> None:
        """Drop a whole blob. Who reads it goes on reading."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(digest))

    def _made(self, path: str) -> str:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        return path

    def _path(self, digest: str) -> str:
        return os.path.join(self._folder, digest.rpartition(":")[2])


def _owned(fd: int, path: str) -> bool:
    """Lock a file that is to be `path` still. False if somebody has it, or it is there no more."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there, mine = os.stat(path), os.fstat(fd)
    except (BlockingIOError, FileNotFoundError):
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def sweep(directory: str, *, before: float | None = None) -> None:
    """Remove what pulls left that were never finished: of those nobody is at, all that was not
    written to since `before` (seconds since 1970).
    """
    folder = os.path.join(directory, "downloads")
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        path = os.path.join(folder, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            old = before is None or os.fstat(fd).st_mtime < before
            if old and _owned(fd, path):
                os.unlink(path)
        finally:
            os.close(fd)


class Part:
    """A file that grows to a blob, locked. All but `size` and `close` take their time."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd, self._path = fd, path
        self._hash = hashlib.sha256()
        self.size = 0

    def look(self, most: int) -> None:
        """Find out what is there; more than a blob's whole size is none of it."""
        if os.fstat(self._fd).st_size > most:
            self.reset()
        os.lseek(self._fd, 0, os.SEEK_SET)
        while data := os.read(self._fd, _PIECE):
            self._hash.update(data)
            self.size += len(data)

    def append(self, data: bytes) -> None:
        """Put what comes next. StoreFull."""
        try:
            write_all(self._fd, data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(
                    "no space left for a layer on its way", hint="`obuilder prune` makes room"
                ) from error
            raise StoreError(f"can't write {self._path}: {error.strerror}") from error
        self._hash.update(data)
        self.size += len(data)

    def finish(self, digest: str, what: str) -> None:
        """Give the blob its name. DigestMismatch if it is another one, which is dropped."""
        if f"sha256:{self._hash.hexdigest()}" != digest:
            self.reset()
            raise DigestMismatch(
                f"{what}: what came is not what was asked for",
                hint="something on the way changes it, or the registry is damaged",
            )
        os.rename(f"{self._path}.part", self._path)

    def reset(self) -> None:
        """Begin anew."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.size = 0

    def reader(self) -> int:
        """A descriptor to read it by, whatever becomes of the name."""
        return os.dup(self._fd)

    def close(self) -> None:
        """Leave it to the next one."""
        if os.fstat(self._fd).st_size == 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._path}.part")
        os.close(self._fd)


class Blob:
    """A blob that is brought in a task, and read in a thread while it comes."""

    def __init__(self, digest: str, size: int) -> None:
        self.digest, self.size = digest, size
        self.got = 0
        self.error: ObuilderError | None = None
        self.ended = anyio.Event()
        self.scope = anyio.CancelScope()
        self._changed = threading.Condition()
        self._fd: int | None = None
        self._readable = 0
        self._over = self._left = False

    async def bring(
        self, downloads: Downloads, source: Source, width: anyio.CapacityLimiter
    ) -> None:
        """Fetch what is not there yet, when there is room. `error` says what went wrong."""
        error: ObuilderError | None = Unreachable(f"{self.digest} was given up on its way")
        try:
            with self.scope:
                async with width:
                    await self._bring(downloads, source)
                error = None
        except ObuilderError as told:
            error = told
        except OSError as told:
            error = StoreError(f"can't keep a layer on its way: {told.strerror}")
        finally:
            with self._changed:
                self.error = error
                self._over = True
                self._changed.notify_all()
            self.ended.set()

    async def _bring(self, downloads: Downloads, source: Source) -> None:
        while True:
            found = await anyio.to_thread.run_sync(downloads.whole, self.digest)
            if found is not None:
                self._show(found, self.size)
                return
            part = downloads.claim(self.digest)
            if part is not None:
                break
            await anyio.sleep(_POLL)
        try:
            await anyio.to_thread.run_sync(part.look, self.size)
            # The beginning that another process left may be damaged: it is not shown before all
            # is there, so that all can still be fetched anew.
            left = part.size > 0
            if not left:
                self._show(part.reader(), 0)
            what = f"{source.name}@{self.digest}"
            try:
                await self._fetch(part, source)
                part.finish(self.digest, what)
            except DigestMismatch:
                if not left:
                    raise
                part.reset()
                await self._fetch(part, source)
                part.finish(self.digest, what)
            if left:
                self._show(part.reader(), self.size)
        finally:
            part.close()

    async def _fetch(self, part: Part, source: Source) -> None:
        async def take(data: bytes) -> None:
            await anyio.to_thread.run_sync(part.append, data)
            self.got = part.size
            with self._changed:
                if self._fd is not None:
                    self._readable = part.size
                    self._changed.notify_all()

        self.got = part.size
        await source.blob(self.digest, self.size, take, start=part.size)

    def _show(self, fd: int, readable: int) -> None:
        with self._changed:
            self._fd, self._readable = fd, readable
            self.got = readable
            self._changed.notify_all()

    async def unpacked(
        self, unpack: Callable[[], Awaitable[None]], progress: Callable[[int, int], None] | None
    ) -> None:
        """Wait for `unpack`, which reads it while it comes, and until all was checked. What either
        raises; of both, what was wrong with the blob.
        """

        async def watch() -> None:
            try:
                while progress is not None:
                    progress(self.got, self.size)
                    await anyio.sleep(_OFTEN)
                await anyio.sleep_forever()
            finally:
                self.leave()

        failed: ObuilderError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                await unpack()
            except ObuilderError as error:
                failed = error
            if failed is None or isinstance(failed, FetchError):
                # What is wrong with its content may be that something else came.
                await self.ended.wait()
            tasks.cancel_scope.cancel()
        await anyio.lowlevel.checkpoint_if_cancelled()
        failed = self.error if self.ended.is_set() and self.error is not None else failed
        if failed is not None:
            raise failed

    def reader(self) -> "Reader":
        """Its bytes from the start, for a thread: it waits for what is to come."""
        return Reader(self)

    def read_at(self, place: int, most: int) -> bytes:
        """What is at a place, waited for; b"" at the end, which comes when all was checked.

        OSError if it does not come: `error` has the reason.
        """
        with self._changed:
            while not (place < self._readable or self._over or self._left):
                self._changed.wait()
            if self._left or (self._over and self.error is not None) or self._fd is None:
                raise OSError(errno.ECANCELED, "it did not come whole")
            fd, most = self._fd, min(most, self._readable - place)
        return os.pread(fd, most, place)

    def leave(self) -> None:
        """Nobody wants to read it any more: whoever waits in a thread need not."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of the file, when nobody reads any more and `ended` is set."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Reader(io.RawIOBase):
    """A blob as a file."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._place = 0

    def readable(self) -> bool:  # noqa: D102
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override] # noqa: D102
        data = self._blob.read_at(self._place, len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
