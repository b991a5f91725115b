"""Cells: where steps run. A bundle, a control group, and a process in it that becomes the runtime.

To join a group takes the kernel longer than a whole trivial step. So while one step runs, the
cell of the next is made, and its process joins the group and waits. What dies without a word is
put right by the next builder: bundles and groups are named after the session, and the waiting
process ends with its standard input.

Nothing runs on when this process dies, at whatever instant. The kernel ends a process with its
parent only once it has asked for it: so the one that becomes the runtime looks whether its parent
still is who started it, and a guard, who waits for this process's end, ends what is in the groups
by then. Where there are no groups, an init that just starts is not seen.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from obuilder.backends.protocols import Exit
from obuilder.system import process
from obuilder.system.cgroups import Hierarchies, Leaf
from obuilder.system.files import remove_tree
from obuilder.values import Limits

_GUARD = (
    'read -r _; cd "/proc/self/fd/$1" && for _ in $(seq 200); do '
    'pids=$(cat "$2".*/cgroup.procs 2>/dev/null); [ -n "$pids" ] || exit 0; '
    "kill -9 $pids; sleep 0.01; done"
)
_JOIN = (
    '[ "$PPID" = "$1" ] || exit 125; shift; '
    'for fd in $1; do echo 0 > "/proc/self/fd/$fd" || exit 125; done; shift; '
)
# Standard input, at its end by then, stays a pipe: a runtime gives it to the step's root.
_WAIT = "read -r go || exit 0; "
_BECOME = 'exec "$@"'


class Cell:
    """One step's place: `bundle` is its directory, `name` its own among all sessions' cells."""

    def __init__(self, bundle: str, runtime: list[str], leaf: Leaf | None, *, waits: bool) -> None:
        self.bundle, self.name = bundle, os.path.basename(bundle)
        self._runtime, self._leaf, self._waits = runtime, leaf, waits
        self._waiting: process.Started | None = None

    def wait(self) -> None:
        """Start the process that joins the group and waits there. OSError."""
        self._waiting = self._start(held=True)

    def _start(self, *, held: bool = False, terminal: bool = False) -> process.Started:
        joiners = self._leaf.joiners() if self._leaf else []
        script = _JOIN + (_WAIT if held and not self._waits else "") + _BECOME
        # The runtime dies with this process, and init with the runtime.
        words = ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", script, "sh"]
        words += [str(os.getpid()), " ".join(map(str, joiners)), *self._runtime]
        words += ["wait"] if held and self._waits else []
        try:
            return process.start(words, pass_fds=joiners, held=held, terminal=terminal)
        finally:
            for fd in joiners:
                os.close(fd)

    def start(self, limits: Limits, *, terminal: bool) -> process.Started:
        """Become the runtime, whose bundle is filled. OSError."""
        if self._leaf is not None:
            self._leaf.limit(memory=limits.memory, cpus=limits.cpus, pids=limits.pids)
        started, self._waiting = self._waiting, None
        if started is None:
            return self._start(terminal=terminal)
        with suppress(BrokenPipeError):  # it ended while it waited: the runtime never ran
            started.release()
        return started

    async def finish(
        self, started: process.Started, limits: Limits, output: Callable[[bytes], None] | None
    ) -> Exit:
        """Follow the step to its end."""
        ended = await started.finish(output, timeout=limits.seconds, kill=self._kill)
        return Exit(
            status=ended.status,
            timed_out=ended.timed_out,
            out_of_memory=self._leaf is not None and self._leaf.out_of_memory(),
        )

    def _kill(self) -> None:
        """End a step at once: its group, or its PID 1, whose end is that of all below."""
        if self._leaf is not None:
            self._leaf.kill()
            return
        try:
            with open(os.path.join(self.bundle, "pid"), encoding="ascii") as stream:
                os.kill(int(stream.read()), 9)
        except (OSError, ValueError):
            return  # not started yet, or gone: the runtime's own end is the rest

    def remove(self) -> None:
        """End what is left in the cell, and take it away."""
        if self._waiting is not None:
            self._waiting.discard()
            self._waiting = None
        if self._leaf is not None:
            self._leaf.remove()
        remove_tree(self.bundle)


class Cells:
    """Makes the cells of one session; `runtime` gives the command line for a bundle.

    `waits`: with the argument `wait` more, it is started before its bundle is filled, and reads a
    line when that is done.
    """

    def __init__(
        self, folder: str, session: str, groups: Hierarchies, mark: str,
        runtime: Callable[[str], list[str]], *, waits: bool = False,
    ) -> None:  # fmt: skip
        self._folder, self._session, self._mark = folder, session, mark
        self._groups, self._runtime, self._waits = groups, runtime, waits
        self._numbers = itertools.count()
        self._spare: Cell | None = None
        self._guard: process.Started | None = None

    @contextmanager
    def cell(self, *, terminal: bool) -> Iterator[Cell]:
        """A cell, for as long as the context lasts. OSError."""
        cell = None
        if not terminal:  # a spare one reads its command to start, not the terminal
            cell, self._spare = self._spare, None
        cell = cell or self._make()
        try:
            yield cell
        finally:
            cell.remove()

    def prepare(self) -> None:
        """Make the next cell, now that one is in use."""
        if self._spare is None:
            with suppress(OSError):  # then the next step makes its own, and tells what is wrong
                self._spare = self._make()
                self._spare.wait()

    def _make(self) -> Cell:
        if self._guard is None and self._groups.limits:
            self._guard = self._watch()
        name = f"{self._session}.{next(self._numbers)}"
        bundle = os.path.join(self._folder, name)
        os.mkdir(bundle, 0o711)
        leaf = self._groups.leaf(self._mark + name) if self._groups.limits else None
        return Cell(bundle, self._runtime(bundle), leaf, waits=self._waits)

    def _watch(self) -> process.Started:
        """Start the guard of this session's groups."""
        folder = self._groups.folder()
        words = ["sh", "-c", _GUARD, "sh", str(folder), self._mark + self._session]
        return process.start(words, pass_fds=[folder], held=True)

    def close(self) -> None:
        """Take the spare cell away."""
        if self._spare is not None:
            self._spare.remove()
            self._spare = None
        if self._guard is not None:
            self._guard.discard()
            self._guard = None
