"""The log of a job: the events of its build in batches, written by the worker, read by its client.

A batch is a message: a msgpack list of events, with its number in the attempt (`n`, from 0), and how
many bytes of output came before it (`at`). Each attempt writes to subjects of its own. Once half of
what may be kept is written, output goes to four subjects by turns, each emptied (`Nats-Rollup`) when
its turn comes again: so the start and the tail are kept, at every moment, and the worker needs no
right to delete anything. Readers see by the numbers what is left out between them. All that is no
output is kept.
"""

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct

from obuilder import events
from obuilder.cluster import names
from obuilder.cluster.accounts import live
from obuilder.cluster.batches import (
    Message,
    Order,
    Piece as Piece,  # noqa: PLC0414 - what `follow` gives
    follows,
    merged,
    message_of,
    packed,
)
from obuilder.cluster.engine import Engine, Stored
from obuilder.cluster.layout import replicas_of
from obuilder.cluster.messages import ENDED, State, decode
from obuilder.cluster.tasks import together
from obuilder.errors import ClusterError, Incompatible

CAP = 64 << 20
"""Bytes of output of one attempt that are kept, if nothing else is said."""
_BATCH = 24 << 10
"""Bytes of output that make a batch worth sending at once."""
_LARGE = 256 << 10
"""Bytes of a batch at most, where batches can't be sent as fast as they come."""
_PAUSE = 0.01
"""Seconds from one batch of output to the next: what comes after a silence is sent at once."""
_AT_ONCE = 8
"""Batches on the way at one time."""
_WAITING = 16 << 20
"""Bytes of output that wait for a connection; more, and the oldest are left out."""
_PATIENCE = 10.0
"""Seconds for which one who was interrupted still sends."""
_PARTS = 4
_KEPT = "kept"
_QUIET = 5.0
"""Seconds without a live message after which what is stored is looked at."""
_LAST = 5.0
"""Seconds for which the rest of a log is waited for, once its job has ended."""

Show = Callable[[Piece], Awaitable[None]]


# --- writing -------------------------------------------------------------------------------------


class _Batch(Struct):
    events: list[events.Event]
    loose: bool = False
    """Whether it is nothing but output and progress, which may be left out."""
    output: int = 0
    """Bytes."""


class LogWriter:
    """A sink that never waits, to use in an `async with`. Leaving it waits until all is stored."""

    def __init__(
        self, engine: Engine, client: str, pool: str, job: str, attempt: int, *, cap: int = CAP
    ) -> None:
        self._engine = engine
        self._subject = (client, pool, job, attempt)
        self._sure = replicas_of(engine.credentials.urls) > 1  # see `layout.ensure_client`
        self._half = max(cap // 2, 1)
        self._batches: deque[_Batch] = deque()
        self._size = 0
        """Bytes of output that wait to be sent."""
        self._at = 0
        """Bytes of output before the next batch."""
        self._kept = 0
        self._part, self._part_size = -1, 0
        self._more = anyio.Event()
        self._closing = False
        self._stored = anyio.Event()
        self._slots = anyio.Semaphore(_AT_ONCE)
        self._tasks: TaskGroup | None = None
        self.count = 0
        """Batches that were sent: what `State.log_end` says once the log has ended."""

    def __call__(self, event: events.Event) -> None:
        """Take an event."""
        if isinstance(event, events.Output | events.Progress):
            self._loose(event)
        elif self._batches and not self._batches[-1].loose:
            self._batches[-1].events.append(event)
        else:
            self._batches.append(_Batch([event]))
        self._more.set()

    def _loose(self, event: events.Output | events.Progress) -> None:
        """Take what may be left out: output joins what came before of the same step."""
        size = len(event.data) if isinstance(event, events.Output) else 0
        last = self._batches[-1] if self._batches else None
        if last is None or not last.loose or last.output + size > _LARGE:
            if size > _LARGE and isinstance(event, events.Output):
                for at in range(0, size, _LARGE):
                    self._loose(events.Output(event.key, event.data[at : at + _LARGE]))
                return
            last = _Batch([], loose=True)
            self._batches.append(last)
        before = last.events[-1] if last.events else None
        if isinstance(event, events.Progress) and follows(event, before):
            last.events.pop()
        last.events.append(event)
        last.output += size
        self._size += size
        while self._size > _WAITING:
            oldest = next(batch for batch in self._batches if batch.output)
            self._batches.remove(oldest)
            self._size -= oldest.output
            self._at += oldest.output

    async def __aenter__(self) -> Self:
        """Start sending."""
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._send)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send the rest and the end, for as long as it takes; a cancelled one, a few seconds."""
        assert self._tasks is not None
        self._closing = True
        self._more.set()
        rest = math.inf if error is None else _PATIENCE
        with anyio.move_on_after(rest, shield=error is not None):
            await self._stored.wait()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)  # whose error it is raises it

    async def _send(self) -> None:
        assert self._tasks is not None
        sent = -math.inf
        while True:
            if not self._batches:
                if self._closing:
                    break
                self._more = anyio.Event()
                await self._more.wait()
            pause = sent + _PAUSE - anyio.current_time()
            if pause > 0 and self._size < _BATCH and not self._closing:
                await anyio.sleep(pause)
            await self._slots.acquire()
            sent = anyio.current_time()
            if not self._batches:
                self._slots.release()
                continue
            batch = self._batches.popleft()
            self._size -= batch.output
            part, headers = self._place(batch)
            self._tasks.start_soon(self._put, part, headers, packed(merged(batch.events)))
        headers = {"n": str(self.count), "at": str(self._at), "end": "1"}
        self.count += 1
        await self._slots.acquire()
        self._tasks.start_soon(self._put, _KEPT, headers, packed([]))
        for _ in range(_AT_ONCE):
            await self._slots.acquire()
        self._stored.set()

    def _place(self, batch: _Batch) -> tuple[str, dict[str, str]]:
        headers = {"n": str(self.count), "at": str(self._at)}
        self.count += 1
        self._at += batch.output
        if not batch.loose or self._kept + batch.output <= self._half:
            self._kept += batch.output
            return _KEPT, headers
        self._part_size += batch.output
        if self._part < 0 or self._part_size > self._half // _PARTS:
            self._part, self._part_size = self._part + 1, batch.output
            headers["Nats-Rollup"] = "sub"
        return str(self._part % _PARTS), headers

    async def _put(self, part: str, headers: Mapping[str, str], data: bytes) -> None:
        subject = names.log(*self._subject, part)
        try:
            while True:
                try:
                    await self._engine.put(
                        subject, data, once=f"{subject}.{headers['n']}", headers=headers,
                        sure=self._sure or part != _KEPT,  # an old one of the tail would end a new
                    )  # fmt: skip
                    return
                except Incompatible:
                    raise
                except ClusterError:  # it is away: it comes back, or the worker ends
                    await anyio.sleep(1)
        finally:
            self._slots.release()


# --- reading -------------------------------------------------------------------------------------


@asynccontextmanager
async def follow(
    engine: Engine, client: str, pool: str, job: str, *, offset: int = 0, live: bool = True
) -> AsyncIterator[AsyncIterator[Piece]]:
    """The log of a job from batch `offset` of its last attempt: what is stored, then what comes.

    It ends with the job's end; unless `live`, with what is there now. ClusterError while the
    cluster can't be reached is waited out once the first answer has come.
    """
    send, receive = anyio.create_memory_object_stream[Piece](64)
    follower = _Follower(engine, (client, pool, job), Order(offset))
    async with together() as tasks:

        async def run() -> None:
            async with send:
                if live:
                    await follower.run(send.send)
                else:
                    await follower.catch_up(send.send)

        tasks.start_soon(run)
        async with receive:
            yield receive
        tasks.cancel_scope.cancel()


class _Follower:
    def __init__(self, engine: Engine, job: tuple[str, str, str], order: Order) -> None:
        self._engine, self._job, self._order = engine, job, order
        self._seq = 0
        self._state: State | None = None
        self._wake = anyio.Event()
        self._live: deque[Message] = deque()
        self._missed = False

    async def run(self, show: Show) -> None:
        """Until the job ends."""
        stop = self._engine.on_reconnect(self._again)
        try:
            await self._run(show)
        finally:
            stop()

    async def _run(self, show: Show) -> None:
        state = names.job(*self._job, "state")
        async with (
            self._engine.subscribe(live(names.log(*self._job))) as messages,
            self._engine.watch(names.jobs_of(self._job[0]), state) as states,
            together() as tasks,
        ):
            tasks.start_soon(self._listen, messages)
            tasks.start_soon(self._watch, states)
            await self.catch_up(show)
            await self._follow(show)
            tasks.cancel_scope.cancel()

    async def catch_up(self, show: Show) -> None:
        """Show what is stored and was not shown yet."""
        client, order = self._job[0], self._order
        stored = self._engine.read(names.logs_of(client), names.log(*self._job), after=self._seq)
        async for found in stored:
            self._seq = found.seq
            message = message_of(found.subject, found.headers, found.data, found.time)
            if message is not None:
                await _all(show, order.take(message))
                await _all(show, order.skip(room=4 * _AT_ONCE))
        await _all(show, order.skip())

    async def _follow(self, show: Show) -> None:
        deadline = math.inf
        while not self._finished():
            self._wake = anyio.Event()
            while self._live:
                await _all(show, self._order.take(self._live.popleft()))
            if self._finished():
                return
            if self._state is not None and self._state.phase in ENDED:
                deadline = min(deadline, anyio.current_time() + _LAST)
            late = anyio.current_time() > deadline
            with anyio.move_on_after(0.2 if deadline < math.inf else _QUIET) as quiet:
                if not self._order.gap:
                    await self._wake.wait()
            if quiet.cancelled_caught or self._order.gap or self._missed:
                self._missed = False
                try:
                    await self.catch_up(show)
                except ClusterError:
                    await anyio.sleep(1)
                    continue
            if late:
                return

    def _finished(self) -> bool:
        state, order = self._state, self._order
        if state is None or state.phase not in ENDED:
            return False
        return not state.attempt or (order.attempt >= state.attempt and order.ended)

    async def _listen(self, messages: AsyncIterator[Stored]) -> None:
        async for found in messages:
            subject = found.subject.removeprefix(live(""))
            message = message_of(subject, found.headers, found.data, found.time)
            if message is not None:
                self._live.append(message)
                self._wake.set()

    async def _watch(self, states: AsyncIterator[Stored]) -> None:
        async for found in states:
            if found.data:
                self._state = decode(found.data, State)
                self._wake.set()

    def _again(self) -> None:
        self._missed = True  # what came meanwhile is in the store
        self._wake.set()


async def _all(show: Show, pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        await show(piece)
