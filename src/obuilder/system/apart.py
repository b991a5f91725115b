"""Doing something in a process apart: a fork of this one, which is watched, ended and reaped.

For what can't be left again (namespaces), and for what may hang or break.
"""

import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from obuilder.system import linux
from obuilder.system.files import write_all

_GRACE = 15.0
_PIECE = 1 << 16


def apart(work: Callable[[], bytes], *, seconds: float, until: int | None = None) -> bytes | None:
    """What `work` returns in a process of its own; None if it came to no end there.

    This process must have one thread. The other one gets SIGTERM when time is up, or when the
    descriptor `until` is at its end, and is killed when it does not heed that; it never outlives
    this one.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            linux.die_with_parent()
            write_all(writer, work())
            status = 0
        except Exception:  # noqa: BLE001 # nobody else is there to tell
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    pidfd = os.pidfd_open(child)
    try:
        said = _watch(pidfd, reader, until, seconds)
        _, ended = os.waitpid(child, 0)
    finally:
        os.close(pidfd)
        os.close(reader)
    return said if ended == 0 else None


def _watch(pidfd: int, reader: int, until: int | None, seconds: float) -> bytes:
    """All that it says; it has ended, or was killed, when this returns."""
    said, asked = b"", False
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    waiting.register(reader, select.POLLIN)
    if until is not None:
        waiting.register(until, select.POLLIN)
    end = time.monotonic() + seconds
    while True:
        ready = dict(waiting.poll(max(0.0, end - time.monotonic()) * 1000))
        if reader in ready:
            piece = os.read(reader, _PIECE)
            said += piece
            if not piece:
                waiting.unregister(reader)
        elif pidfd in ready:
            return said
        elif until is not None and until in ready and os.read(until, _PIECE):
            continue
        elif asked:
            _signal(pidfd, signal.SIGKILL)
            return said
        else:
            asked, end = True, time.monotonic() + _GRACE
            _signal(pidfd, signal.SIGTERM)
            if until is not None:
                waiting.unregister(until)


def _signal(pidfd: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
