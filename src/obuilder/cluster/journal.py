"""What a worker notes in its directory for the next one there: if it is killed, its jobs need not wait.

DIRECTORY/sessions     who worked here, the last one at the end: all but that are dead
DIRECTORY/tickets/JOB  what lets a job's ticket go

Who has the directory to itself (the caller sees to that) knows that those before are dead. Nobody
else can: a connection that ended, or silence, may be a break that the job lives through.
"""

import os
from collections.abc import Iterator
from contextlib import suppress

_REMEMBERED = 16


class Journal:
    """The notes of one session. OSError."""

    def __init__(self, directory: str, session: str) -> None:
        self._tickets = os.path.join(directory, "tickets")
        os.makedirs(self._tickets, mode=0o700, exist_ok=True)
        path = os.path.join(directory, "sessions")
        with open(path, "a+", encoding="ascii", errors="replace") as file:
            file.seek(0)
            self.dead = frozenset(before := file.read().split()[-_REMEMBERED:])
            file.truncate(0)
            file.write(" ".join([*before, session]))
        self.left = dict(self._read())
        """The jobs of the dead, and what lets their tickets go."""

    def hold(self, job: str, receipt: str) -> None:
        """Note a ticket that is held."""
        with open(self._path(job), "w", encoding="utf-8") as file:
            file.write(receipt)

    def drop(self, job: str) -> None:
        """Note that it isn't any more."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(job))

    def _read(self) -> Iterator[tuple[str, str]]:
        for job in os.listdir(self._tickets):
            with open(self._path(job), encoding="utf-8", errors="replace") as file:
                if receipt := file.read():  # one that was killed at this very line has none
                    yield job, receipt

    def _path(self, job: str) -> str:
        return os.path.join(self._tickets, job)
