"""What one worker knows of its pool: read when a choice needs it, and used as long as it is worth it.

A pool of a thousand workers can't tell each of them of every other. So nothing is followed here but
the tickets for this worker, and urgent ones. Of the rest only that is read which a choice is made from:
how many tickets clients have, what they have had, the workers that have the cache of a job. What was
read serves again for some times as long as reading it took: a slow cluster is asked less often.
"""

import random
import time
from collections.abc import Collection
from typing import TypeVar

from msgspec import Struct

from obuilder.cluster import names, policy
from obuilder.cluster.engine import Engine
from obuilder.cluster.ledger import Ledger
from obuilder.cluster.messages import Message, Pool, Presence, Warmth, decode
from obuilder.cluster.tasks import together
from obuilder.errors import Incompatible, NoSuchPool

M = TypeVar("M", bound=Message)

_POOL = 60.0
"""Seconds for which a pool's own settings are used."""
_WORTH = 10.0
"""What was read serves for that many times what reading it took."""
_LEAST, _MOST = 0.02, 2.0
_EMPTY = 1.0
"""Seconds for which a client that had no ticket for us is passed over, if it has no more than then."""
_HINTS = 2000
"""Hints that are remembered."""
_WARMTH = 60.0
"""Seconds for which what is known of a hint serves."""
_STRAYS = 30.0
"""Seconds after which what waits for others is looked at first, however much waits for anybody."""
_IDLE = 5.0
"""Seconds after which a worker looks though nothing was heard, in a pool of few."""
_FEW = 40.0
_LONGEST = 60.0


class _Age:
    """How old something is that was read, and whether it serves."""

    def __init__(self) -> None:
        self._until = 0.0

    def over(self) -> bool:
        return time.monotonic() >= self._until

    def read(self, began: float) -> None:
        now = time.monotonic()
        self._until = now + min(max(_WORTH * (now - began), _LEAST), _MOST)

    def forget(self) -> None:
        self._until = 0.0


class Hint(Struct):
    """What is known of a hint."""

    warmth: Warmth | None
    """Its record, with what was learned here since."""
    stored: Warmth | None
    """Its record as others can read it."""
    seq: int
    at: float


class Outlook:
    """The pool of one worker, as that worker sees it."""

    def __init__(self, engine: Engine, pool: str, worker: str) -> None:
        self._engine, self._name, self._worker = engine, pool, worker
        self._queue, self._state = names.queue_of(pool), names.state_of(pool)
        self.ledger = Ledger(engine, pool)
        self._pool = Pool(name=pool)
        self._pool_at = -_POOL
        self._crowd = 0
        self._strays_at = time.monotonic()
        self.forget()

    def forget(self) -> None:
        """Read everything again: nothing may have been heard for a while."""
        self.own = {True: True, False: True}
        """Whether there may be tickets for this worker, urgent ones and others."""
        self.urgent: set[str] = set()
        """Clients whose urgent tickets were heard of."""
        self._tickets: dict[tuple[str, bool], int] = {}
        self._empty: dict[tuple[str, bool], tuple[int, float]] = {}
        self.backlog: dict[str, int] = {}
        """Tickets by the worker that they were sent on to, as it was read last."""
        self._peers: dict[str, tuple[float, Presence | None]] = {}
        self._hints: dict[str, Hint] = {}
        self._looked, self._backlogged, self._met = _Age(), _Age(), _Age()

    # --- the pool --------------------------------------------------------------------------------

    async def pool(self) -> Pool:
        """The pool. NoSuchPool, ClusterError."""
        if time.monotonic() - self._pool_at >= _POOL:
            found = await self._engine.last(names.CLUSTER, names.pool(self._name))
            if found is None or not found.data:
                raise NoSuchPool(
                    f"there is no pool {self._name!r}",
                    hint=f"an administrator makes it: obuilder cluster add-pool {self._name}",
                )
            self._crowd = await self._engine.consumer_count(self._queue)
            self._pool, self._pool_at = decode(found.data, Pool), time.monotonic()
        return self._pool

    @property
    def idle(self) -> float:
        """Seconds after which to look though nothing was heard: the more workers look, the later."""
        seconds = min(_IDLE * max(1.0, self._crowd / _FEW), _LONGEST)
        return seconds * random.uniform(0.6, 1.4)  # noqa: S311 # not all at once

    # --- what waits ------------------------------------------------------------------------------

    async def look(self) -> None:
        """See which clients have tickets, and what they have had. ClusterError."""
        if not self._looked.over():
            return
        began = time.monotonic()
        async with together() as tasks:
            tasks.start_soon(self._see_tickets)
            tasks.start_soon(self.ledger.read)
        self._looked.read(began)

    async def _see_tickets(self) -> None:
        pending = await self._engine.pending(self._queue, "sub.>")
        self._tickets = {}
        for subject, count in pending.items():
            _, client, _, urgency = subject.split(".")
            self._tickets[client, urgency == "u"] = count

    def waiting(self) -> dict[str, policy.Waiting]:
        """What clients may have waiting: tickets of jobs that run are counted until that is known."""
        now = time.monotonic()
        found: dict[str, list[int]] = {}
        for (client, urgent), count in self._tickets.items():
            most, until = self._empty.get((client, urgent), (0, 0.0))
            if count > (most if now < until else 0):
                found.setdefault(client, [0, 0])[not urgent] = count
        for client in self.urgent:
            counts = found.setdefault(client, [0, 0])
            counts[0] = max(1, counts[0])
        return {client: policy.Waiting(*counts) for client, counts in found.items()}

    def heard(self, client: str, *, urgent: bool) -> None:
        """A ticket has come."""
        self._looked.forget()
        self._empty.pop((client, urgent), None)
        if urgent:
            self.urgent.add(client)

    def doubt(self) -> None:
        """See again what waits before the next choice.

        A ticket that came as one of its client's jobs ended doesn't show: who ended that finds it.
        """
        self._looked.forget()

    def none_left(self, client: str, *, urgent: bool) -> None:
        """Whatever tickets of a client there still are, they are those of jobs that run."""
        most = self._tickets.get((client, urgent), 0)
        self._empty[client, urgent] = (most, time.monotonic() + _EMPTY)
        if urgent:
            self.urgent.discard(client)

    def over(self, client: str, *, urgent: bool) -> None:
        """One of the client's tickets is no more: as many as before may be one that waits."""
        self._empty.pop((client, urgent), None)
        if self._tickets.get((client, urgent), 0) > 0:
            self._tickets[client, urgent] -= 1

    # --- other workers ---------------------------------------------------------------------------

    async def waits(self) -> dict[str, int]:
        """How many tickets were sent on to each worker, and have not ended. ClusterError."""
        if self._backlogged.over():
            began = time.monotonic()
            pending = await self._engine.pending(self._queue, f"run.{self._name}.>")
            self.backlog = {}
            for subject, count in pending.items():
                worker = subject.split(".")[2]
                self.backlog[worker] = self.backlog.get(worker, 0) + count
            self._backlogged.read(began)
        return self.backlog

    async def peers(self, workers: Collection[str]) -> dict[str, Presence]:
        """Those of these workers that are there. ClusterError."""
        now = time.monotonic()
        unknown = [name for name in workers if self._peers.get(name, (0.0, None))[0] <= now]
        if unknown:
            asked = {names.worker(self._name, name): name for name in unknown}
            found = {m.subject: m.data for m in await self._engine.named(self._state, list(asked))}
            took = time.monotonic() - now
            until = now + took + min(max(_WORTH * took, _LEAST), _MOST)
            for subject, name in asked.items():
                self._peers[name] = until, decoded(found.get(subject, b""), Presence)
        known = {name: self._peers[name][1] for name in workers}
        return {name: peer for name, peer in known.items() if peer is not None}

    async def everybody(self) -> dict[str, Presence]:
        """All workers that are there. ClusterError."""
        if self._met.over():
            began = time.monotonic()
            found = await self._engine.each(self._state, names.worker(self._name))
            until = time.monotonic() + _MOST
            self._peers = {
                each.subject.rpartition(".")[2]: (until, decoded(each.data, Presence))
                for each in found
            }
            self._met.read(began)
        return {name: peer for name, (_, peer) in self._peers.items() if peer is not None}

    def strays_are_due(self) -> bool:
        """Whether it is time to see to what waits for workers that may be gone."""
        now = time.monotonic()
        if now - self._strays_at < _STRAYS * random.uniform(0.5, 1.5):  # noqa: S311
            return False
        self._strays_at = now
        return True

    # --- hints -----------------------------------------------------------------------------------

    async def hint(self, hint: str, *, now: bool = False) -> Hint:
        """Who has the cache of a hint, and the number to change that by. ClusterError.

        It may be old, unless it is to be read `now`: who changes it finds out.
        """
        if not hint:
            return Hint(None, None, 0, 0.0)
        known = self._hints.get(hint)
        if known is None or now or time.monotonic() - known.at > _WARMTH:
            found = await self._engine.last(self._state, names.hint(self._name, hint))
            warmth = None if found is None else decoded(found.data, Warmth)
            return self.learn(hint, warmth, 0 if found is None else found.seq)
        return known

    def learn(self, hint: str, warmth: Warmth | None, seq: int) -> Hint:
        """Remember what a hint's record is."""
        self._hints.pop(hint, None)
        known = self._hints[hint] = Hint(warmth, warmth, seq, time.monotonic())
        while len(self._hints) > _HINTS:
            del self._hints[next(iter(self._hints))]
        return known


def decoded(data: bytes, kind: type[M]) -> M | None:
    """A message, or None for what is none that we know."""
    try:
        return decode(data, kind) if data else None
    except Incompatible:
        return None


def makers(warmth: Warmth | None) -> set[str]:
    """The workers that a hint's record names."""
    known = warmth or Warmth()
    return {name for name, _ in known.workers} | {name for name, _, _ in known.making}
