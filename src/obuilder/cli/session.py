"""Running something with an open builder: the event loop, and signals that cancel it."""

import gc
import os
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from obuilder.engine.builder import Builder
from obuilder.engine.run import first_error
from obuilder.engine.settings import Settings

T = TypeVar("T")


class Cancelled(KeyboardInterrupt):
    """SIGINT or SIGTERM came: exit status 130."""


def in_session(
    settings: Settings, work: Callable[[Builder], Awaitable[T]], *, to_delete: bool = False
) -> T:
    """What `work` returns, given an open builder. Cancelled by SIGINT and SIGTERM."""

    async def with_builder() -> T:
        async with Builder.open(settings, to_delete=to_delete) as builder:
            return await work(builder)

    return in_loop(with_builder)


def in_loop(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns. Cancelled by SIGINT and SIGTERM."""
    gc.enable()
    return anyio.run(_main, work)


async def _main(work: Callable[[], Awaitable[T]]) -> T:
    result: list[T] = []
    failure: list[BaseException] = []
    stopped = False

    async def watch(scope: anyio.CancelScope) -> None:
        nonlocal stopped
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                if stopped and number == signal.SIGINT:
                    # Asked twice: go now. What is left is the next builder's to put right.
                    os._exit(130)
                stopped = True
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(watch, scope)
            try:
                result.append(await work())
            except ExceptionGroup as group:
                failure.append(first_error(group))
            except Exception as error:  # noqa: BLE001 # raised below, outside of the task group
                failure.append(error)
        tasks.cancel_scope.cancel()
    if stopped:
        raise Cancelled
    if failure:
        raise failure[0]
    return result[0]
