"""Sessions: what lives exactly as long as a process does, and is known by name.

A session is a file under `<directory>/sessions` that its process holds locked; the kernel lets go
of the lock when the process ends, however it ends. So whoever finds something that bears a
session's name can tell whether its owner still lives.
"""

import contextlib
import fcntl
import os
from typing import Final, final


def _path(directory: str, name: str) -> str:
    return os.path.join(directory, "sessions", name)


@final
class Session:
    """A live session. `close` ends it; so does the end of the process."""

    def __init__(self, directory: str, name: str, fd: int) -> None:
        self.name: Final = name
        self._directory, self._fd = directory, fd

    def close(self) -> None:
        """End the session and take its file away. May be called twice."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_path(self._directory, self.name))
            os.close(self._fd)
            self._fd = -1


def open_session(directory: str) -> Session:
    """Start a session in `directory`, which must exist."""
    os.makedirs(os.path.join(directory, "sessions"), mode=0o700, exist_ok=True)
    while True:
        name = os.urandom(8).hex()
        path = _path(directory, name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # A sweep may have come between making and locking: then the name is nobody's.
            if os.fstat(fd).st_nlink:
                return Session(directory, name, fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def alive(directory: str, name: str) -> bool:
    """Whether the session's process still lives. Never waits."""
    try:
        fd = os.open(_path(directory, name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who ask at the same time don't take each other for the owner.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def dead_sessions(directory: str) -> list[str]:
    """The sessions that ended without a `close`, and that nobody removed since."""
    try:
        names = os.listdir(os.path.join(directory, "sessions"))
    except FileNotFoundError:
        return []
    return [name for name in names if not alive(directory, name)]


def identity(directory: str) -> str:
    """A random name that stays with a directory that has sessions; a copy of it has the same."""
    path = os.path.join(directory, "sandbox-id")
    while not os.path.exists(path):
        name = os.urandom(8).hex()
        temporary = _path(directory, name)  # left behind, it is swept as a dead session is
        with open(temporary, "x", encoding="ascii") as file:
            file.write(name)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(temporary, path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    with open(path, encoding="ascii") as file:
        return file.read()


def remove_session(directory: str, name: str) -> None:
    """Take the file of a dead session away."""
    try:
        fd = os.open(_path(directory, name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        # It may have been in the making when it looked dead.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(_path(directory, name))
    except (BlockingIOError, FileNotFoundError):
        return
    finally:
        os.close(fd)
