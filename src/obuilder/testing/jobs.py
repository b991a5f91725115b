"""Custom jobs for simulations and tests: what a worker does with them costs it nothing."""

import anyio

from obuilder import events
from obuilder.cluster.jobs import Call
from obuilder.errors import UsageError


async def sleep(call: Call) -> bytes:
    """Wait for as many seconds as the payload says; return it."""
    try:
        seconds = float(call.payload)
    except ValueError:
        raise UsageError(f"{call.payload!r} is no number of seconds") from None
    call.sink(events.Note(text=f"sleeping for {seconds:g} s"))
    await anyio.sleep(seconds)
    return call.payload
