"""A terminal with a program on it, as a person has it: what is typed, what is seen."""

import os
import pty
import re
import select
import subprocess  # the program under test is a process
import termios
import time
from collections.abc import Mapping
from typing import Self


class Terminal:
    """A program on a terminal of its own, of that many columns. Closing it ends the program."""

    def __init__(self, argv: list[str], *, cwd: str, env: Mapping[str, str], columns: int) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, columns))
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv], cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs,
            env=env,
        )  # fmt: skip
        os.close(theirs)
        self.seen = b""

    def __enter__(self) -> Self:
        """Keep it for a while."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        os.close(self._ours)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._ours, text.encode())

    def until(self, word: bytes) -> None:
        """Read until `word` was shown."""
        deadline = time.monotonic() + 30
        while word not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._ours], [], [], 1)[0]:
                self.seen += os.read(self._ours, 1 << 16)

    def end(self) -> int:
        """Read to the end: the exit status."""
        while True:
            try:
                data = os.read(self._ours, 1 << 16)
            except OSError:  # how Linux says that a terminal has no more users
                break
            if not data:
                break
            self.seen += data
        return self.process.wait(timeout=30)

    def lines(self) -> list[str]:
        """What was written, without what steers."""
        text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", self.seen).decode()
        return re.split(r"[\r\n]+", text)
