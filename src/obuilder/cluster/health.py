"""A worker's health and room: looked at all the time, busy or idle, and never in the way of its loop.

What is wrong pauses the worker, with a reason that everybody sees; what is right again resumes it.
Jobs that run go on.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import anyio
from msgspec import Struct

from obuilder.cluster.messages import Reason
from obuilder.engine.builder import Builder
from obuilder.engine.checkup import look_over, space
from obuilder.errors import ObuilderError

Pause = Callable[[Reason, str | None], None]
"""Sets why the worker takes no jobs, or (None) that this reason is gone."""


class Care(Struct, frozen=True):
    """How well a worker looks after itself."""

    check_every: float = 600.0
    """Seconds from one trial build to the next; 0: only at the start."""
    retry: float = 60.0
    """Seconds until another, if one failed."""
    space_every: float = 30.0
    free: float = 30.0
    """Percent of the store's disk that are to be free; 0: no matter."""
    prune: int = 100
    """Results that are deleted at a time to make room."""
    recent: float = 0.0
    """Results used in the last so many seconds are kept."""


async def illness(builder: Builder) -> str | None:
    """What is wrong with a builder, found by building something; None if it is well."""
    try:
        findings = await look_over(builder)
    except ObuilderError as error:
        return error.message
    failed = [f"{found.check}: {found.detail}" for found in findings if found.status == "failed"]
    return "; ".join(failed) or None


class Guard:
    """Looks after a builder. `seconds` is what the last trial took, `healthy` how it ended."""

    def __init__(self, builder: Builder, care: Care, pause: Pause) -> None:
        self._builder, self._care, self._pause = builder, care, pause
        self.healthy = True
        self.seconds = 0.0
        self.pruned = 0
        self.free: int | None = None
        self.total: int | None = None

    async def watch_health(self) -> None:
        """Try the builder from time to time. It was well at the start."""
        if not self._care.check_every:
            return
        while True:
            await anyio.sleep(self._care.check_every if self.healthy else self._care.retry)
            await self.check()

    async def check(self) -> str | None:
        """Try the builder now. What is wrong."""
        began = time.monotonic()
        wrong = await illness(self._builder)
        self.seconds, self.healthy = time.monotonic() - began, wrong is None
        self._pause("health", wrong)
        return wrong

    async def watch_space(self) -> None:
        """See that there is room, by pruning where there is not."""
        while True:
            with suppress(ObuilderError):  # a store that can't be asked: the trial build tells
                await self.make_room()
            await anyio.sleep(self._care.space_every)

    async def make_room(self) -> None:
        """Prune while the disk has too little room. StoreError."""
        low = await self._is_low()
        if low is not None:
            self._pause("disk", low)
        while low is not None:
            before = time.time() - self._care.recent
            try:
                gone = await self._builder.prune(before=before, limit=self._care.prune)
            except ObuilderError as error:
                self._pause("disk", f"{low}; it can't be pruned: {error.message}")
                return
            self.pruned += len(gone)
            low = await self._is_low()
            if not gone and low is not None:
                self._pause("disk", f"{low}; nothing is left to prune")
                return
        self._pause("disk", None)

    async def _is_low(self) -> str | None:
        usage = await self._builder.usage()
        self.free, self.total = usage.free, usage.total
        if usage.free * 100 >= usage.total * self._care.free:
            return None
        return f"{space(usage)}, and {self._care.free:g} % should be"
