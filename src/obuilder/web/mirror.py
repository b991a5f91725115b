"""A live copy of what the cluster's streams say of pools, workers, clients and jobs.

`take` is pure: a subject and its last message in, the copy changed. `follow` keeps it up to date from
the engine. Pages and metrics are made from the copy, so that however many are asked for, the engine is
asked for nothing.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import anyio
from msgspec import Struct
from msgspec.structs import replace

from obuilder.cluster import names
from obuilder.cluster.engine import Engine
from obuilder.cluster.messages import (
    ENDED,
    Client,
    Known,
    M,
    Paused,
    Phase,
    Pool,
    Presence,
    Share,
    State,
    decode,
)
from obuilder.errors import ClusterError, Incompatible, UsageError

KEPT = 100_000
"""Jobs that are remembered: of those that have ended, the newest."""
_TITLE, _MESSAGE, _IMAGES = 300, 4000, 20
"""Characters of titles and messages, and images, that are remembered of a job."""
_FIRST = (names.CLUSTER, ">")
_EVERY = 300.0
"""Seconds after which what is watched is compared as a whole."""
_AGAIN = 2.0
"""Seconds until a stream that can't be watched is tried again."""
K = TypeVar("K")
V = TypeVar("V")


class JobId(Struct, frozen=True, order=True):
    """A job's whole name. The later it was submitted, the greater."""

    id: str
    client: str
    pool: str


class Worker(Struct, frozen=True):
    """What is known of a worker: its last heart-beat while it is there, and an administrator's pause."""

    pool: str
    name: str
    presence: Presence | None = None
    known: Known | None = None
    paused: Paused | None = None


Change = Callable[[JobId, State | None, State | None], None]
"""Told of each change of a job: what it was, None for a new one, and what it is."""


class Mirror:
    """The copy. `version` rises with every change."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}
        self.clients: dict[str, Client] = {}
        self.jobs: dict[JobId, State] = {}
        self.order: list[JobId] = []
        """All jobs, the oldest first."""
        self.active: defaultdict[str, set[JobId]] = defaultdict(set)
        """Those that have not ended, by pool."""
        self.numbers: defaultdict[tuple[str, str], Counter[Phase]] = defaultdict(Counter)
        """How many jobs are how, by client and pool."""
        self.version = 0
        self.ready = anyio.Event()
        """Set when all that was there at the start has been read."""
        self._workers: dict[tuple[str, str], Worker] = {}
        self._shares: dict[tuple[str, str], Share] = {}
        self._listeners: list[Change] = []
        self._more = anyio.Event()
        """Set when there may be more streams to look at."""

    # --- what is known ---------------------------------------------------------------------------

    def workers(self, pool: str) -> list[Worker]:
        """Of a pool, by name: those that are there, and those that were."""
        return sorted(
            (found for (where, _), found in self._workers.items() if where == pool),
            key=lambda worker: worker.name,
        )

    def worker(self, pool: str, name: str) -> Worker | None:
        """One of them."""
        return self._workers.get((pool, name))

    def shares(self, pool: str) -> dict[str, Share]:
        """What each client has had of a pool."""
        return {who: share for (where, who), share in self._shares.items() if where == pool}

    def job(self, client: str, pool: str, job: str) -> State | None:
        """Where a job is."""
        return self.jobs.get(JobId(id=job, client=client, pool=pool))

    @contextmanager
    def listening(self, listener: Change) -> Iterator[None]:
        """Tell of changes of jobs from now on."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    # --- what comes in ---------------------------------------------------------------------------

    def take(self, subject: str, data: bytes) -> None:
        """The last message of a subject; no bytes: it is gone. What is newer than we are is left out."""
        kind, *rest = subject.split(".")
        try:
            match kind, rest:
                case "pool", [name]:
                    _set(self.pools, name, _decoded(data, Pool))
                    self._more.set()
                case "client", [name]:
                    _set(self.clients, name, _decoded(data, Client))
                    self._more.set()
                case "worker" | "known" | "pause", [pool, name]:
                    self._worker(kind, pool, name, data)
                case "fair", [pool, name]:
                    _set(self._shares, (pool, name), _decoded(data, Share))
                case "job", [client, pool, job, "state"]:
                    place = JobId(id=names.checked("job", job), client=client, pool=pool)
                    self._job(place, _bounded(_decoded(data, State)))
                case _:
                    return
        except (Incompatible, UsageError):
            return
        self.version += 1

    def _worker(self, kind: str, pool: str, name: str, data: bytes) -> None:
        old = self._workers.get((pool, name), Worker(pool=pool, name=name))
        new = Worker(
            pool=pool,
            name=name,
            presence=_decoded(data, Presence) if kind == "worker" else old.presence,
            known=_decoded(data, Known) if kind == "known" else old.known,
            paused=_decoded(data, Paused) if kind == "pause" else old.paused,
        )
        gone = new.presence is None and new.known is None and new.paused is None
        _set(self._workers, (pool, name), None if gone else new)

    def _job(self, job: JobId, state: State | None) -> None:
        old = self.jobs.get(job)
        if old == state:
            return
        if state is None:
            self._drop(job)
        else:
            self._keep(job, old, state)
            if len(self.order) > KEPT:
                ended = (each for each in self.order if each not in self.active[each.pool])
                if (oldest := next(ended, None)) is not None:
                    self._drop(oldest)
        for listener in tuple(self._listeners):
            listener(job, old, state)

    def _keep(self, job: JobId, old: State | None, state: State) -> None:
        numbers = self.numbers[job.client, job.pool]
        if old is None:
            insort(self.order, job)
        else:
            numbers[old.phase] -= 1
        numbers[state.phase] += 1
        self.jobs[job] = state
        active = self.active[job.pool]
        (active.discard if state.phase in ENDED else active.add)(job)

    def _drop(self, job: JobId) -> None:
        del self.order[bisect_left(self.order, job)]
        self.numbers[job.client, job.pool][self.jobs.pop(job).phase] -= 1
        self.active[job.pool].discard(job)

    # --- where it comes from ---------------------------------------------------------------------

    async def follow(self, engine: Engine) -> None:
        """Keep the copy up to date, until cancelled. `ready` is set once it is whole."""
        await self._read(engine, *_FIRST)
        for place in self._streams():
            with suppress(ClusterError):  # it is about to be made: watching finds it
                await self._read(engine, *place)
        self.ready.set()
        watched: set[tuple[str, str]] = set()

        async with anyio.create_task_group() as tasks:

            async def watch(stream: str, filter_: str) -> None:
                await self._watch(engine, stream, filter_)
                watched.discard((stream, filter_))

            while True:
                self._more = anyio.Event()
                for place in set(self._streams()) - watched:
                    watched.add(place)
                    tasks.start_soon(watch, *place)
                await self._more.wait()

    async def _read(self, engine: Engine, stream: str, filter_: str) -> None:
        for found in await engine.each(stream, filter_):
            self.take(found.subject, found.data)

    async def _watch(self, engine: Engine, stream: str, filter_: str) -> None:
        """Follow a stream until it is no more of those to look at."""
        while (stream, filter_) in self._streams():
            try:
                async with engine.watch(stream, filter_, every=_EVERY) as live:
                    async for found in live:
                        self.take(found.subject, b"" if found.removed else found.data)
            except* ClusterError:  # it was removed, or is about to be made
                pass
            await anyio.sleep(_AGAIN)

    def _streams(self) -> list[tuple[str, str]]:
        """Streams to look at, and what in them."""
        found = [_FIRST]
        for pool in self.pools:
            found += [
                (names.state_of(pool), subject)
                for subject in (
                    names.worker(pool),
                    names.known(pool),
                    names.pause(pool),
                    names.fair(pool),
                )
            ]
        found += [
            (names.jobs_of(name), names.job(name, "*", "*", "state")) for name in self.clients
        ]
        return found


def _bounded(state: State | None) -> State | None:
    """A state without what no page shows: clients and workers may say any amount of it."""
    if state is None:
        return None
    outcome = state.outcome
    if outcome is not None:
        outcome = replace(
            outcome, message=outcome.message[:_MESSAGE], value=b"", images=outcome.images[:_IMAGES]
        )
    return replace(state, title=state.title[:_TITLE], hint=state.hint[:_TITLE], outcome=outcome)


def _decoded(data: bytes, kind: type[M]) -> M | None:
    return decode(data, kind) if data else None


def _set(table: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
