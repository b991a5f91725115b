"""The program run as a process, and what it left on the machine."""

import os
import re
import subprocess  # the program under test is a process
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from obuilder import Settings

REPO = Path(__file__).parents[1]

Process = subprocess.Popen[bytes]


class Done(NamedTuple):
    """How a run of the program ended: exit status, standard output and error."""

    status: int
    out: str
    err: str


STREAMS: dict[str, Any] = {
    "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
}  # fmt: skip


_MEASURE = (
    "import resource, subprocess, sys; status = subprocess.run(sys.argv[1:]).returncode; "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
)


def start(
    *arguments: str,
    cwd: str | Path,
    streams: dict[str, Any] = STREAMS,
    before: tuple[str, ...] = (),
    **variables: str,
) -> Process:
    """Start the program; `variables` go over an environment without any of ours."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OBUILDER_")}
    return subprocess.Popen(
        [*before, sys.executable, "-m", "obuilder", *arguments],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(REPO / "src"), **variables},
        **streams,
        bufsize=0,  # who reads a line of it leaves the rest to who reads all
    )


def finish(process: Process, *, timeout: float = 120) -> Done:
    """Wait for the end. It never shows a traceback, whatever happened."""
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    assert b"Traceback" not in err, err.decode()
    return Done(
        process.returncode, *(data.decode("utf-8", "surrogateescape") for data in (out, err))
    )


def obuilder(*arguments: str, cwd: str | Path, **variables: str) -> Done:
    """Run the program to its end."""
    return finish(start(*arguments, cwd=cwd, **variables))


def heard(process: Process, word: bytes) -> None:
    """Read the program's output until `word` stands in a line of it."""
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(process.stderr.read().decode())


class Program:
    """The program with a store and a context directory in `place`, and nothing else there."""

    def __init__(self, place: str, *, kind: str = "overlayfs") -> None:
        self._place, self._kind = place, kind
        self.context = os.path.join(place, "context")
        self.temporary = os.path.join(place, "temporary")
        for path in (self.context, self.temporary):
            os.mkdir(path)
        self.use("store")

    def use(self, name: str) -> None:
        """Use the store of that name."""
        self.settings = Settings(store=f"{self._kind}:{self._place}/{name}")
        self.store = self.settings.directory
        self.variables = {"OBUILDER_STORE": self.settings.store, "TMPDIR": self.temporary}

    def spec(
        self, *ops: str, before: str = "", base: str = "micro", name: str = "obuilder.spec"
    ) -> None:
        """Write a spec; `build` finds the one of the usual name."""
        text = f"({before}(from {base}) (shell /bin/sh -c)\n " + "\n ".join(ops) + ")\n"
        self.file(name, text.encode("utf-8", "surrogateescape"))

    def file(self, name: str, data: bytes) -> str:
        """Write a file into the context."""
        path = os.path.join(self.context, name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def start(self, *arguments: str, **streams: Any) -> Process:
        """Start the program in the context."""
        given = {**STREAMS, **streams}
        return start(*arguments, cwd=self.context, streams=given, **self.variables)

    def run(self, *arguments: str) -> Done:
        """Run the program to its end."""
        return finish(self.start(*arguments))

    def ok(self, *arguments: str) -> str:
        """What the program printed; it must succeed."""
        done = self.run(*arguments)
        assert done.status == 0, done
        return done.out

    def measured(self, *arguments: str) -> tuple[str, int]:
        """What the program printed, and the most memory that it had, in KiB; it must succeed.

        It is started by a small process, for a process counts as as large as who forked it.
        """
        small = (sys.executable, "-S", "-c", _MEASURE)
        done = finish(start(*arguments, cwd=self.context, before=small, **self.variables))
        assert done.status == 0, done
        *lines, memory = done.out.splitlines(keepends=True)
        return "".join(lines), int(memory)


def said(out: str) -> list[str]:
    """The lines of a build of several stages, without the stage's name in front of them."""
    return [re.sub(r"^\[\w+\] ", "", line) for line in out.splitlines()]


def shell(command: str) -> str:
    """A `run` of a spec."""
    text = command.replace("\\", "\\\\").replace('"', '\\"')
    return f'(run (shell "{text}"))'


def cached(command: str, **modes: str) -> str:
    """A `run` that sees volumes of these names at /v/NAME, in these modes."""
    caches = " ".join(f"({name} (target /v/{name}) (mode {mode}))" for name, mode in modes.items())
    return shell(command).replace("(run ", f"(run (cache {caches}) ", 1)


def compile_c(source: Path, target: str) -> None:
    """Make a program that runs in any root."""
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-o", target, source], check=True)


def running(*words: str) -> list[int]:
    """The processes whose command line has these words, one after the other."""
    wanted = b"\0".join(word.encode() for word in words)
    return [pid for pid, line in _each("cmdline") if wanted in line]


def _each(name: str) -> list[tuple[int, bytes]]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/{name}", "rb") as file:
                    found.append((int(entry), file.read()))
            except OSError:
                continue  # gone, or somebody else's
    return found


def until(condition: Callable[[], object], what: str, *, seconds: float = 5.0) -> float:
    """Wait until `condition()` is true; how long it took. AssertionError when time is up."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - began
