"""A person in a container: this process's own streams, and its terminal if it has one."""

import os
import shutil
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import anyio
import anyio.from_thread
import anyio.to_thread

from obuilder.backends.docker.api import Answer, Refused
from obuilder.backends.docker.engine import Engine, beside
from obuilder.backends.docker.streams import pieces
from obuilder.errors import Unreachable
from obuilder.system.files import write_all

_PIECE = 1 << 16


async def attend(engine: Engine, container: str, *, terminal: bool) -> None:
    """Start a container, and stay with it to its end."""
    query = {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}
    answer = engine.api.ask(
        "POST", f"/containers/{container}/attach", query, timeout=None, upgrade=True
    )
    started = anyio.Event()

    def work() -> None:
        with answer:
            engine.api.call("POST", f"/containers/{container}/start")
            anyio.from_thread.run_sync(started.set)
            _show(answer, terminal=terminal)

    async def say() -> None:
        await started.wait()
        with suppress(Unreachable):  # it ended while somebody still had something to say
            await _say(answer)

    async def fit() -> None:
        await started.wait()
        await _fit(engine, container)

    with _raw() if terminal else nullcontext():
        async with beside(say, *([fit] if terminal else [])):
            await engine.streamed(work, answer)


def _show(answer: Answer, *, terminal: bool) -> None:
    if terminal:
        while data := answer.receive(_PIECE):
            write_all(1, data)
        return
    for stream, data in pieces(answer):
        write_all(2 if stream == 2 else 1, data)


async def _say(answer: Answer) -> None:
    while True:
        with suppress(PermissionError):  # a file, which can always be read
            await anyio.wait_readable(0)
        data = os.read(0, _PIECE)
        await anyio.to_thread.run_sync(answer.send, data)
        if not data:
            return


async def _fit(engine: Engine, container: str) -> None:
    """Keep the container's terminal as large as this one."""
    with anyio.open_signal_receiver(signal.SIGWINCH) as changes:
        await _resize(engine, container)
        async for _ in changes:
            await _resize(engine, container)


async def _resize(engine: Engine, container: str) -> None:
    size = shutil.get_terminal_size()
    query = {"h": str(size.lines), "w": str(size.columns)}
    with suppress(Refused):  # it has just ended
        await engine.call("POST", f"/containers/{container}/resize", query)


@contextmanager
def _raw() -> Iterator[None]:
    """The terminal gives every key to the container, which makes of it what it will."""
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
