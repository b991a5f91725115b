"""A pool at a glance: its workers, who shares it, and what waits. Changes nothing."""

from collections.abc import Iterable

from msgspec import Struct

from obuilder.cluster import names
from obuilder.cluster.engine import Engine, Stored
from obuilder.cluster.messages import Known, Paused, Pool, Presence, Share, Ticket, decode
from obuilder.errors import Incompatible, UsageError

_LISTED = 100
"""Tickets of a queue that are shown."""


class Worker(Struct, frozen=True):
    """A worker as an administrator sees it: `presence` is None for one that is not connected."""

    name: str
    presence: Presence | None = None
    paused: Paused | None = None
    seen: float = 0.0
    waiting: int = 0
    """Jobs that wait for it alone."""

    @property
    def is_paused(self) -> bool:
        """Whether it takes no jobs, or would take none: by an administrator, or by itself."""
        return self.paused is not None or bool(self.presence and self.presence.paused)


class Sharer(Struct, frozen=True):
    """A client in a pool."""

    name: str
    rate: float = 1.0
    penalty: float = 0.0
    """Seconds of work that it has had before others."""
    waiting: int = 0
    running: int = 0


class View(Struct, frozen=True):
    """A pool at a glance."""

    pool: Pool
    workers: tuple[Worker, ...]
    clients: tuple[Sharer, ...]
    queue: tuple[Ticket, ...]
    """The first tickets, by when they were put; those that run are among them until they end."""

    @property
    def capacity(self) -> int:
        """Of the workers that are connected."""
        return sum(worker.presence.capacity for worker in self.workers if worker.presence)

    def named(self, name: str) -> Worker:
        """One worker. UsageError."""
        for worker in self.workers:
            if worker.name == name:
                return worker
        known = ", ".join(worker.name for worker in self.workers)
        raise UsageError(
            f"the worker {name!r} is not known in the pool {self.pool.name}",
            hint=f"known are: {known}" if known else "no worker was ever there",
        )


async def presences(engine: Engine, pool: str) -> dict[str, Presence]:
    """The workers that are there, by name."""
    found = await _states(engine, names.worker(pool))
    return {_last_part(each): decode(each.data, Presence) for each in found}


async def _states(engine: Engine, subject: str) -> list[Stored]:
    stream = names.state_of(subject.split(".")[1])
    return [each for each in await engine.each(stream, subject) if each.data]


async def view(engine: Engine, pool: Pool) -> View:
    """A pool, its workers and clients. ClusterError."""
    name = pool.name
    there = await presences(engine, name)
    known = {
        _last_part(each): decode(each.data, Known)
        for each in await _states(engine, names.known(name))
    }
    paused = await pauses(engine, name)
    waiting = await engine.pending(names.queue_of(name), ">")
    own: dict[str, int] = {}
    queued: dict[str, int] = {}
    for subject, count in waiting.items():
        kind, first, second, _ = subject.split(".")
        if kind == "run":
            own[second] = own.get(second, 0) + count
        else:
            queued[first] = queued.get(first, 0) + count
    workers = [
        Worker(
            name=worker, presence=there.get(worker), paused=paused.get(worker),
            seen=known[worker].last if worker in known else 0.0, waiting=own.get(worker, 0),
        )
        for worker in sorted({*there, *known, *paused})
    ]  # fmt: skip
    return View(
        pool, tuple(workers), await _sharers(engine, name, queued, there.values()),
        tuple(await _tickets(engine, name)),
    )  # fmt: skip


async def pauses(engine: Engine, pool: str) -> dict[str, Paused]:
    """The workers that an administrator paused, by name."""
    found = await _states(engine, names.pause(pool))
    return {_last_part(each): decode(each.data, Paused) for each in found}


async def _sharers(
    engine: Engine, pool: str, queued: dict[str, int], there: Iterable[Presence]
) -> tuple[Sharer, ...]:
    shares = {
        _last_part(each): decode(each.data, Share)
        for each in await _states(engine, names.fair(pool))
    }
    running: dict[str, int] = {}
    for presence in there:
        for job in presence.running:
            running[job.client] = running.get(job.client, 0) + 1
    floor = min((share.time for share in shares.values()), default=0.0)
    return tuple(
        Sharer(
            name=client, rate=shares.get(client, Share()).rate,
            penalty=max(0.0, shares.get(client, Share(time=floor)).time - floor),
            waiting=max(0, queued.get(client, 0) - running.get(client, 0)),
            running=running.get(client, 0),
        )
        for client in sorted({*shares, *queued, *running})
    )  # fmt: skip


async def _tickets(engine: Engine, pool: str) -> list[Ticket]:
    tickets = []
    async for found in engine.read(names.queue_of(pool), ">"):
        try:
            tickets.append(decode(found.data, Ticket))
        except Incompatible:
            continue
        if len(tickets) == _LISTED:
            break
    return tickets


def _last_part(stored: Stored) -> str:
    return stored.subject.rpartition(".")[2]
