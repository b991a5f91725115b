"""Tasks that stand and fall together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from obuilder.engine.run import first_error


@asynccontextmanager
async def together() -> AsyncIterator[TaskGroup]:
    """A task group that raises the first error in it, not a group of errors."""
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        raise first_error(group) from None
