"""A build as the stream of its events."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from obuilder import events
from obuilder.engine.run import first_error
from obuilder.errors import ObuilderError


@asynccontextmanager
async def streamed(
    build: Callable[[events.Sink], Awaitable[object]],
) -> AsyncIterator[AsyncIterator[events.Event]]:
    """The events that `build` sends to its sink. Leaving the context raises what it raised; leaving
    it before the last event cancels it.
    """
    send, receive = anyio.create_memory_object_stream[events.Event](math.inf)
    failed: list[ObuilderError] = []

    async def run() -> None:
        with send:
            try:
                await build(send.send_nowait)
            except ObuilderError as error:
                failed.append(error)

    try:
        with receive:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                yield receive
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    if failed:
        raise failed[0]
