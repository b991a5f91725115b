"""Logs: whole for a page, live as server-sent events, raw as a file.

A live log is the same state (`logview`) as the page's. It is fed silently up to what the page has, by
the number of its last batch, and what is new then goes out as patches: pieces of HTML
made by the page's own templates, and where they go. A browser that lost the connection says which
batch it had last.
"""

import io
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from obuilder.cluster import logs, names
from obuilder.cluster.batches import Piece
from obuilder.cluster.engine import Engine
from obuilder.cluster.messages import ENDED, Job, Signed, State, decode
from obuilder.engine.run import first_error
from obuilder.errors import ClusterError
from obuilder.ui.plain import PlainSink
from obuilder.ui.terminal import visible
from obuilder.web import charts, graph, queue, views
from obuilder.web.logview import Fresh, LogView, Step
from obuilder.web.mirror import JobId
from obuilder.web.session import Session
from obuilder.web.site import Site, site_of

_ALIVE = 15.0
"""Seconds of silence after which a live log says that it is there: proxies cut what is silent."""
_FASTEST = 20_000
"""Lines in a second that are sent: a browser has to lay them out."""
_AGAIN = b"retry: 1000\n\n"
"""After so many milliseconds a browser that was cut off asks again."""


async def spec(engine: Engine, job: JobId) -> Job | None:
    """A job itself, if it can be had and is of a version that we know."""
    subject = names.job(job.client, job.pool, job.id, "spec")
    try:
        found = await engine.last(names.jobs_of(job.client), subject)
        return decode(decode(found.data, Signed).job, Job) if found else None
    except ClusterError:
        return None


@asynccontextmanager
async def _log(engine: Engine, job: JobId, *, live: bool) -> AsyncIterator[AsyncIterator[Piece]]:
    """A log, with plain errors."""
    try:
        async with logs.follow(engine, job.client, job.pool, job.id, live=live) as pieces:
            yield pieces
    except BaseExceptionGroup as group:
        raise first_error(group) from None


async def read_log(engine: Engine, job: JobId, view: LogView) -> str:
    """Feed a view all that a log has by now. Where a live one is to go on from."""
    place = Place()
    async with _log(engine, job, live=False) as pieces:
        async for piece in pieces:
            _feed(view, piece)
            place = Place(piece.attempt, piece.number)
    return str(place)


class Place(NamedTuple):
    """A batch of a log."""

    attempt: int = 0
    number: int = -1

    def __str__(self) -> str:
        """As browsers give it back."""
        return f"{self.attempt}.{self.number}"


def _place(text: str) -> Place:
    """A place as a browser gives it; the log's start if it is none."""
    found = re.fullmatch(r"(\d{1,9})\.(-?\d{1,9})", text, re.ASCII)
    return Place(int(found[1]), int(found[2])) if found else Place()


def _feed(view: LogView, piece: Piece) -> None:
    if piece.attempt != view.attempt:
        if view.attempt:
            view.anew()
        view.attempt = piece.attempt
    for event in piece.events:
        view.feed(event, piece.time or time.time())


async def raw(request: Request) -> Response:
    """The log as plain lines, as `obuilder job log` prints them."""
    site, job = asked_job(request)
    site.reach()

    async def pieces() -> AsyncIterator[bytes]:
        attempt, out = 0, io.BytesIO()
        sink = PlainSink(out, colour=False, guard=False)
        async with _log(site.engine, job, live=False) as found:
            async for piece in found:
                if piece.attempt != attempt:
                    sink, attempt = PlainSink(out, colour=False, guard=False), piece.attempt
                for event in piece.events:
                    sink(event)
                yield out.getvalue()
                out.seek(0)
                out.truncate()

    return StreamingResponse(
        pieces(),
        media_type="text/plain; charset=utf-8",
        headers={"Content-Disposition": f'inline; filename="{job.id}.log"'},
    )


async def live(request: Request) -> Response:
    """A job's log from now on, and what becomes of the job."""
    site, job = asked_job(request)
    given = request.headers.get("last-event-id") or request.query_params.get("after", "")
    after = _place(given)
    if site.readers.available_tokens < 1:
        raise HTTPException(503, "Too many people look at logs just now.")
    return LiveLog(site, job, await spec(site.engine, job), site.session(request), after)


def asked_job(request: Request) -> tuple[Site, JobId]:
    """The job that an address names. HTTPException."""
    site = site_of(request)
    found = request.path_params
    job = JobId(id=found["job"], client=found["client"], pool=found["pool"])
    if job not in site.mirror.jobs:
        raise HTTPException(404, "There is no such job.")
    return site, job


Patch = tuple[str, ...]
"""What to do, where, the HTML, and what else that takes; `patches` in obuilder.js does it."""


class LiveLog(Response):
    """A stream of patches that ends when the job has, or nobody listens any more."""

    media_type = "text/event-stream"

    def __init__(
        self, site: Site, job: JobId, spec: Job | None, session: Session | None, after: Place
    ) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._site, self._job, self._spec = site, job, spec
        self._session, self._after = session, after
        self._log: Any = site.templates.get_template("log.html").module
        self._head: Any = site.templates.get_template("jobhead.html").module
        self._place = Place()
        """The batch that was read last."""
        self._more = anyio.Event()
        self._read, self._broken = anyio.Event(), False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        out, ready = anyio.create_memory_object_stream[bytes](8)
        async with self._site.readers, anyio.create_task_group() as tasks:

            async def until_nobody_listens() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            await send(head)
            await send({"type": "http.response.body", "body": _AGAIN, "more_body": True})
            tasks.start_soon(until_nobody_listens)
            tasks.start_soon(self._lines, out.clone())
            tasks.start_soon(self._states, out)
            with ready:
                async for data in _lively(ready):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            # Without the end the browser asks again.
            end = b"" if self._broken else b"event: end\ndata: -\n\n"
            await send({"type": "http.response.body", "body": end})
            tasks.cancel_scope.cancel()

    async def _states(self, out: MemoryObjectSendStream[bytes]) -> None:
        """What becomes of the job, until it has ended and its log was read."""
        changed = anyio.Event()

        def listen(job: JobId, _: State | None, __: State | None) -> None:
            if job == self._job:
                changed.set()

        with out, self._site.mirror.listening(listen):
            while state := self._site.mirror.jobs.get(self._job):
                await out.send(_event(self._head_of(state)))
                if state.phase in ENDED:
                    break
                await changed.wait()
                changed = anyio.Event()
            with anyio.move_on_after(_ALIVE):
                await self._read.wait()

    def _head_of(self, state: State) -> list[Patch]:
        row = views.JobRow(self._job, state)
        html = self._head.head(
            row,
            self._spec,
            self._site.clock(),
            queue.ahead(self._site.mirror, row),
            self._session if self._site.changes else None,
        )
        return [("head", "", html), ("say", "", f"The job is {state.phase}.")]

    async def _lines(self, out: MemoryObjectSendStream[bytes]) -> None:
        """Read the log as fast as it comes, and send what is new as fast as somebody reads it.

        Who is slower than the log misses lines, and nobody's memory is filled.
        """
        view = LogView(following=True)
        with out:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._feed, view)
                place, ended = self._after, False
                while not ended:
                    await self._more.wait()
                    self._more, ended = anyio.Event(), self._read.is_set()
                    if self._place > place:
                        place, fresh = self._place, view.fresh()
                        if patches := list(self._patches(view, fresh)):
                            await out.send(_event(patches, place))
                            await anyio.sleep(sum(map(len, fresh.lines.values())) / _FASTEST)

    async def _feed(self, view: LogView) -> None:
        try:
            async with _log(self._site.engine, self._job, live=True) as pieces:
                async for piece in pieces:
                    _feed(view, piece)
                    self._place = Place(piece.attempt, piece.number)
                    if self._place <= self._after:
                        view.fresh()
                    self._more.set()
        except ClusterError:
            self._broken = True
        self._read.set()
        self._more.set()

    def _patches(self, view: LogView, fresh: Fresh) -> Iterator[Patch]:
        """What is new, as a page takes it."""
        now = self._site.clock()
        if fresh.anew:
            yield ("anew",)
        if fresh.planned or fresh.anew or (view.result and fresh.heads):
            yield "plan", "", self._log.plan(view, graph.plan(view.steps), now, charts.span)
        for item in fresh.items:
            place = item.id if isinstance(item, Step) else ""
            yield "item", place, self._log.item(item, now, text=False)
        for step, lines in fresh.lines.items():
            if lines:
                html = "".join(self._log.line(number, text) for number, text in lines)
                yield "lines", step.id, html, "skipped" if step in fresh.skipped else ""
        for step in fresh.open:
            yield "open", step.id, step.text.open
        for step in fresh.heads:
            message = visible(step.message)
            yield "step", step.id, self._log.head(step, now), step.status, message


async def _lively(ready: MemoryObjectReceiveStream[bytes]) -> AsyncIterator[bytes]:
    """What comes, and a sign of life where nothing does for long."""
    while True:
        data = b": still here\n\n"
        with anyio.move_on_after(_ALIVE):
            try:
                data = await ready.receive()
            except anyio.EndOfStream:
                return
        yield data


def _event(patches: list[Patch], place: Place | None = None) -> bytes:
    """A server-sent event."""
    data = msgspec.json.encode(patches, enc_hook=str)  # HTML is of a class of its own
    number = f"id: {place}\n".encode() if place else b""
    return number + b"data: " + data + b"\n\n"
