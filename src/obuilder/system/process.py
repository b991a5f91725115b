"""Starting programs: the only place that does. Every child is reaped, and killed when nobody waits.

Children stand in a session of their own, so a Ctrl-C at the terminal reaches this process alone
and it decides what to end.
"""

import os
import select
import subprocess  # noqa: TID251 - the one place
import threading
from collections.abc import Callable, Mapping, Sequence

import anyio
import anyio.to_thread
from msgspec import Struct

_PIECE = 1 << 16
_PATIENCE = 5.0


class Ended(Struct, frozen=True):
    """How a program ended: its status (128 + signal for a signal), and whether time was up."""

    status: int
    timed_out: bool = False


def capture(
    argv: Sequence[str],
    *,
    given: bytes = b"",
    errors: bool = True,
    timeout: float = 10.0,
    env: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Run a short program to its end, blocking: its status and what it said on both outputs.

    It reads what is `given`; without `errors`, its standard error is nobody's. 127 if there is no
    such program; 124 and what was said so far when time is up.
    """
    try:
        done = subprocess.run(
            argv,
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
            timeout=timeout,
            env=env,
            check=False,
        )
    except OSError as error:
        return 127, os.fsencode(str(error))
    except subprocess.TimeoutExpired as error:
        return 124, error.stdout or b""
    return _status(done.returncode), done.stdout


async def run(
    argv: Sequence[str],
    *,
    output: Callable[[bytes], None] | None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    timeout: float | None = None,  # noqa: ASYNC109 - reported, not raised
    kill: Callable[[], None] | None = None,
) -> Ended:
    """Run a program to its end; `output` gets each piece of its merged stdout and stderr.

    `output` None: the program has this process's own streams. `kill` is called before the
    program itself is killed, when time is up or the caller is cancelled, to end what hangs on
    it. OSError if it can't be started.
    """
    started = start(argv, env=env, pass_fds=pass_fds, terminal=output is None)
    return await started.finish(output, timeout=timeout, kill=kill)


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    held: bool = False,
    terminal: bool = False,
) -> "Started":
    """Start a program; `finish` or `discard` has to follow. OSError.

    `held`: its standard input stays open until `Started.release`, so that it can wait there;
    else it is at its end from the start. `terminal`: it has this process's own terminal, and
    streams that are none through pipes, for what it is given it may change (an OCI runtime
    gives it to the step's user).
    """
    if terminal:
        return _attached(argv, env, pass_fds)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    waiting, gate = os.pipe2(os.O_CLOEXEC)  # never /dev/null, which is the whole machine's
    try:
        os.set_blocking(reader, False)
        child = subprocess.Popen(
            argv,
            stdin=waiting,
            stdout=writer,
            stderr=writer,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except BaseException:
        os.close(reader)
        os.close(gate)
        raise
    finally:
        os.close(writer)
        os.close(waiting)
    started = Started(child, reader, gate)
    if not held:
        started.end_input()
    return started


def interactive() -> bool:
    """Whether a person sits at this process's terminal."""
    return os.isatty(0) and os.isatty(1)


def _attached(
    argv: Sequence[str], env: Mapping[str, str] | None, pass_fds: Sequence[int]
) -> "Started":
    here = interactive()
    piped = [fd for fd in range(3) if not (here and os.isatty(fd))]
    pipes = {fd: os.pipe2(os.O_CLOEXEC) for fd in piped}
    theirs = {fd: pair[0 if fd == 0 else 1] for fd, pair in pipes.items()}
    ours = {fd: pair[1 if fd == 0 else 0] for fd, pair in pipes.items()}
    try:
        child = subprocess.Popen(
            argv,
            stdin=theirs.get(0),
            stdout=theirs.get(1),
            stderr=theirs.get(2),
            env=env,
            pass_fds=pass_fds,
            start_new_session=not here,
        )
    except BaseException:
        for fd in ours.values():
            os.close(fd)
        raise
    finally:
        for fd in theirs.values():
            os.close(fd)
    if 0 in ours:
        _relay(0, ours[0], close=ours[0])
    return Started(child, None, None, [_relay(ours[fd], fd, close=ours[fd]) for fd in piped if fd])


def _relay(source: int, target: int, *, close: int) -> threading.Thread:
    """Carry bytes in a thread of its own until one side ends; then close the side that is ours."""
    sides = select.poll()
    sides.register(source, select.POLLIN)
    sides.register(target, 0)

    def carry() -> None:
        try:
            # Nothing is read that nobody takes any more: it may be for who comes after.
            while target not in dict(sides.poll()):
                piece = memoryview(os.read(source, _PIECE))
                if not piece:
                    break
                while piece:
                    piece = piece[os.write(target, piece) :]
        except OSError:
            pass  # nobody reads any more, or the stream was never open
        finally:
            os.close(close)

    thread = threading.Thread(target=carry, daemon=True)
    thread.start()
    return thread


class Started:
    """A program that runs. `relays` carry what it says."""

    def __init__(
        self,
        child: "subprocess.Popen[bytes]",
        pipe: int | None,
        gate: int | None,
        relays: Sequence[threading.Thread] = (),
    ) -> None:
        self._child, self._pipe, self._gate, self._relays = child, pipe, gate, relays

    @property
    def pid(self) -> int:
        """Its number."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.status is None

    @property
    def status(self) -> int | None:
        """How it ended, as `Ended` has it; None while it runs."""
        code = self._child.poll()
        return None if code is None else _status(code)

    def release(self) -> None:
        """Send a line to a held program, then the end of its input. BrokenPipeError if it ended."""
        if self._gate is not None:
            try:
                os.write(self._gate, b"\n")
            finally:
                self.end_input()

    def end_input(self) -> None:
        """Its standard input is at its end from now on."""
        if self._gate is not None:
            os.close(self._gate)
            self._gate = None

    def discard(self) -> None:
        """End a program that nobody needs."""
        self._child.kill()
        self._child.wait(_PATIENCE)
        self._close()

    async def finish(
        self,
        output: Callable[[bytes], None] | None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - reported, not raised
        kill: Callable[[], None] | None = None,
    ) -> Ended:
        """Follow it to its end; see `run`."""
        child, pipe = self._child, self._pipe
        finished = False
        try:
            pidfd = os.pidfd_open(child.pid)
            try:
                with anyio.move_on_after(timeout):
                    await _follow(pidfd, pipe, output)
                    finished = True
            finally:
                if not finished:
                    _end(child, kill)
                    with anyio.CancelScope(shield=True), anyio.move_on_after(_PATIENCE):
                        await anyio.wait_readable(pidfd)
                os.close(pidfd)
            if not finished and output is not None and pipe is not None:
                _drain(pipe, output)
            for relay in self._relays:
                await anyio.to_thread.run_sync(relay.join, abandon_on_cancel=True)
        finally:
            if child.poll() is None:
                _end(child, kill)
                child.wait(_PATIENCE)
            self._close()
        return Ended(status=_status(child.returncode), timed_out=not finished)

    def _close(self) -> None:
        self.end_input()
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


async def _follow(pidfd: int, pipe: int | None, output: Callable[[bytes], None] | None) -> None:
    """Until the program is gone and what it wrote was read.

    Something that outlives the program may hold the pipe open: nobody waits for that.
    """
    if pipe is None or output is None:
        await anyio.wait_readable(pidfd)
        return

    async def read() -> None:
        while True:
            await anyio.wait_readable(pipe)
            piece = os.read(pipe, _PIECE)
            if not piece:
                return
            output(piece)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_readable(pidfd)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # what `output` raised, as it is
    _drain(pipe, output)


def _drain(pipe: int, output: Callable[[bytes], None]) -> None:
    while True:
        try:
            piece = os.read(pipe, _PIECE)
        except BlockingIOError:
            return
        if not piece:
            return
        output(piece)


def _end(child: "subprocess.Popen[bytes]", kill: Callable[[], None] | None) -> None:
    if kill is not None:
        kill()
    child.kill()


def _status(code: int) -> int:
    return 128 - code if code < 0 else code
