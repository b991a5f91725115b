"""Locks between processes: one file for each key, held with flock, freed by the kernel.

A lock's file is removed by its last holder, so who gets a lock checks that the file it locked is
still the one that the name stands for.
"""

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

_POLL = 0.02


class KeyLock:
    """The lock of one key (or volume), in one store. Not shared between tasks."""

    def __init__(self, directory: str, name: str) -> None:
        self._path = os.path.join(directory, "locks", name)
        self._fd: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it. Creates the folder of locks when it is missing."""
        while True:
            try:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            except BaseException:
                os.close(fd)
                raise
            try:
                current = os.stat(self._path)
            except FileNotFoundError:
                os.close(fd)
                continue
            mine = os.fstat(fd)
            if (current.st_dev, current.st_ino) == (mine.st_dev, mine.st_ino):
                self._fd = fd
                return True
            os.close(fd)

    def release(self) -> None:
        """Give the lock back and take its file away."""
        if self._fd is not None:
            os.unlink(self._path)
            os.close(self._fd)
            self._fd = None


@asynccontextmanager
async def held(directory: str, name: str) -> AsyncIterator[None]:
    """The lock `name`, waited for."""
    lock = KeyLock(directory, name)
    while not lock.try_acquire():
        await anyio.sleep(_POLL)
    try:
        yield
    finally:
        lock.release()


def sweep_locks(directory: str) -> None:
    """Remove the files of locks that nobody holds."""
    folder = os.path.join(directory, "locks")
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        lock = KeyLock(directory, name)
        if lock.try_acquire():
            lock.release()
