"""The queue of a pool, as one worker sees it: which ticket it takes, where others go.

There is no scheduler. A worker with room reads what waits, asks `policy` whose turn it is, pulls a
ticket of that client, and runs it, or sends it on to the worker that has its cache. What is read of
other workers may be some seconds old: all that comes of it is a worse choice.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from obuilder.cluster import names, policy, records
from obuilder.cluster.engine import Conflict, Delivery, Engine
from obuilder.cluster.messages import (
    Message,
    Outcome,
    Pool,
    Presence,
    Share,
    Ticket,
    Warmth,
    decode,
    encode,
)
from obuilder.cluster.records import Held, Place
from obuilder.errors import ClusterError, Incompatible, NoSuchPool

M = TypeVar("M", bound=Message)

_TRIES = 6
"""Of a compare-and-set that others disturb, where it matters little."""
_SURVEY = 1.0
"""Seconds for which what was read of a pool is used, and for each of its workers that much more."""
_EACH = 0.01
_POOL = 60.0
"""Seconds for which a pool's own settings are used."""
_BUSY = 15.0
"""Seconds until a ticket is looked at again whose job another worker has."""


class Taken(Struct, frozen=True):
    """A job that is to be run here: its ticket, its state before, and what was thought of it."""

    ticket: Ticket
    delivery: Delivery
    held: Held
    warm: bool
    expected: float
    """Seconds times slots that its client was charged."""
    charged: bool
    slots: int


class Holding(Struct, frozen=True):
    """A job that is to be run here once `slots` are free."""

    ticket: Ticket
    delivery: Delivery
    charge: float | None
    """The pool's virtual time that its client will be charged from."""
    slots: int


class _Survey(Struct):
    """What is known of a pool at one moment."""

    at: float
    pending: dict[str, int]
    workers: dict[str, Presence]
    shares: dict[str, Share]
    seqs: dict[str, int]


class Queue:
    """The queue of one pool for one worker. `take` is called by one task at a time."""

    def __init__(self, engine: Engine, pool: str, worker: str, session: str) -> None:
        self._engine, self._name = engine, pool
        self._worker, self._session = worker, session
        self._pool = Pool(name=pool)
        self._pool_at = -_POOL
        self._survey: _Survey | None = None
        self.is_running: Callable[[str], bool] = lambda _: False
        """Whether this very worker runs a job."""
        self.adopt: Callable[[str, Delivery], None] = lambda _, __: None
        """Called with a ticket, delivered anew, of a job that this worker runs."""

    async def pool(self) -> Pool:
        """The pool. NoSuchPool, ClusterError."""
        if time.monotonic() - self._pool_at >= _POOL:
            found = await self._engine.last(names.CLUSTER, names.pool(self._name))
            if found is None or not found.data:
                raise NoSuchPool(
                    f"there is no pool {self._name!r}",
                    hint=f"an administrator makes it: obuilder cluster add-pool {self._name}",
                )
            self._pool, self._pool_at = decode(found.data, Pool), time.monotonic()
        return self._pool

    # --- taking ----------------------------------------------------------------------------------

    async def take(self, me: Presence) -> Taken | Holding | None:
        """The next job for a worker that is as `me` says; None if nothing waits for it now.

        ClusterError.
        """
        survey = await self._look()
        workers = {**survey.workers, self._worker: me}
        backlog = _backlog(survey.pending)
        tickets = _tickets(survey.pending)
        waiting = policy.waiting(tickets, workers.values())
        runs: dict[str, int] = {}
        for worker in workers.values():
            for job in worker.running:
                runs[job.client] = runs.get(job.client, 0) + 1
        turns = policy.turns(waiting, survey.shares, runs)
        floor = policy.floor(waiting, survey.shares, runs)
        alone = len(policy.contenders(waiting, survey.shares, runs)) < 2
        for urgent in (True, False):
            if backlog.get(self._worker):
                found = await self._pull(
                    names.running(self._worker, urgent=urgent), me, workers, backlog, None
                )
                if found is not None:
                    return found
            for turn in turns:
                if turn.urgent == urgent:
                    consumer = names.waiting(turn.client, urgent=urgent)
                    charge = None if alone else floor
                    found = await self._pull(consumer, me, workers, backlog, charge)
                    if found is not None:
                        return found
        costs = policy.costs(None, await self.pool())
        for stray in policy.strays(backlog, self._worker, workers, costs):
            for urgent in (True, False):
                consumer = names.running(stray.worker, urgent=urgent)
                found = await self._pull(
                    consumer, me, workers, backlog, None, at_least=stray.at_least
                )
                if found is not None:
                    return found
        return None

    async def take_from(self, subject: str, me: Presence) -> Taken | Holding | None:
        """The next job of those that were put under a subject, if one is left. ClusterError."""
        kind, first, second, urgency = (*subject.split("."), "", "", "")[:4]
        urgent = urgency == "u"
        consumer = (
            names.running(second, urgent=urgent)
            if kind == "run"
            else names.waiting(first, urgent=urgent)
        )
        stream = names.queue_of(self._name)
        delivery = await self._engine.pull(stream, consumer, wait=0)
        if delivery is None:
            return None  # another worker was faster: nothing need be read
        survey = await self._look()
        workers = {**survey.workers, self._worker: me}
        return await self._consider(delivery, me, workers, _backlog(survey.pending), charge=None)

    async def resume(self, holding: Holding, me: Presence) -> Taken | None:
        """The job that was held, once there is room for it. None if it is not wanted any more."""
        found = await self._consider(holding.delivery, me, {}, {}, charge=holding.charge, stay=True)
        return found if isinstance(found, Taken) else None

    async def _look(self) -> _Survey:
        """What waits in the pool, and who works there."""
        now, old = time.monotonic(), self._survey
        pending = await self._engine.pending(names.queue_of(self._name), ">")
        if old is not None and now - old.at < _SURVEY + _EACH * len(old.workers):
            old.pending = pending
            return old
        stream = names.state_of(self._name)
        workers: dict[str, Presence] = {}
        shares: dict[str, Share] = {}
        seqs: dict[str, int] = {}
        asked = (names.worker(self._name), names.fair(self._name))
        for found in await self._engine.each(stream, *asked):
            kind, _, name = found.subject.split(".", 2)
            if kind == "worker" and (worker := _decoded(found.data, Presence)):
                workers[name] = worker
            elif kind == "fair" and (share := _decoded(found.data, Share)):
                shares[name], seqs[name] = share, found.seq
        self._survey = _Survey(now, pending, workers, shares, seqs)
        return self._survey

    async def _pull(
        self,
        consumer: str,
        me: Presence,
        workers: Mapping[str, Presence],
        backlog: dict[str, int],
        charge: float | None,
        *,
        at_least: int | None = None,
    ) -> Taken | Holding | None:
        """A ticket of one consumer that stays here; those before it were sent on, or were over."""
        while True:
            delivery = await self._engine.pull(
                names.queue_of(self._name), consumer, wait=0, min_pending=at_least or None
            )
            if delivery is None:
                return None
            found = await self._consider(delivery, me, workers, backlog, charge=charge)
            if found is not None:
                return found

    async def _consider(
        self,
        delivery: Delivery,
        me: Presence,
        workers: Mapping[str, Presence],
        backlog: dict[str, int],
        *,
        charge: float | None,
        stay: bool = False,
    ) -> Taken | Holding | None:
        """What becomes of a ticket that was pulled: None if it isn't for this worker now."""
        ticket = _decoded(delivery.data, Ticket)
        if ticket is None:
            await delivery.term()
            return None
        place = Place(ticket.client, self._name, ticket.id)
        try:
            held = await records.read(self._engine, place)
        except Incompatible:
            await delivery.back(_BUSY)
            return None
        if held is None or held.ended:
            await delivery.ack()
            return None
        if self.is_running(ticket.id):
            self.adopt(ticket.id, delivery)
            return None
        if held.state.phase == "running" and await self._is_held(held):
            await delivery.back(_BUSY)
            return None
        if cancel := await records.is_cancelled(self._engine, place):
            message = f"cancelled: {cancel.reason}" if cancel.reason else "cancelled"
            outcome = Outcome(code="cancelled", message=message, exit_status=130)
            await records.finish(
                self._engine, held, "cancelled", outcome, now=time.time(), log_end=0
            )
            await delivery.ack()
            return None
        return await self._routed(ticket, delivery, held, me, workers, backlog, charge, stay=stay)

    async def _routed(
        self,
        ticket: Ticket,
        delivery: Delivery,
        held: Held,
        me: Presence,
        workers: Mapping[str, Presence],
        backlog: dict[str, int],
        charge: float | None,
        *,
        stay: bool,
    ) -> Taken | Holding | None:
        pool, slots = await self.pool(), policy.slots(ticket, me)
        while True:
            warmth, seq = await self._warmth(ticket.hint)
            expected, now = policy.costs(warmth, pool), time.time()
            route: policy.Route = policy.Take(policy.is_warm(warmth, self._worker, now))
            if not stay:
                route = policy.route(ticket, warmth, me, workers, backlog, expected, now)
            match route:
                case policy.Take(warm=warm):
                    if ticket.hint and not warm:
                        making = policy.started(warmth, self._worker, self._session, now)
                        subject = names.hint(self._name, ticket.hint)
                        try:
                            await self._engine.put(subject, encode(making), expect=seq)
                        except Conflict:
                            continue  # somebody makes its cache: look again
                    cost = policy.cost(expected, warm=warm, slots=slots)
                    if charge is not None:
                        await self._charge(ticket.client, charge, cost)
                    return Taken(
                        ticket, delivery, held, warm, cost, charged=charge is not None, slots=slots
                    )
                case policy.Forward(worker=worker):
                    if charge is not None:
                        cost = policy.cost(expected, warm=True, slots=slots)
                        await self._charge(ticket.client, charge, cost)
                    await self._forward(ticket, delivery, worker)
                    backlog[worker] = backlog.get(worker, 0) + 1
                    return None
                case policy.Hold(slots=wanted):
                    return Holding(ticket, delivery, charge, wanted)
                case policy.Back(delay=delay):
                    await delivery.back(delay)
                    return None

    async def _forward(self, ticket: Ticket, delivery: Delivery, worker: str) -> None:
        """Send a ticket on: it waits at its new place before it is gone from the old one."""
        sent = replace(ticket, forwarded=worker)
        subject = names.forwarded(self._name, worker, urgent=ticket.urgent)
        await self._engine.put(subject, encode(sent), once=f"{ticket.id}.{delivery.seq}")
        await delivery.ack()

    async def _is_held(self, held: Held) -> bool:
        """Whether the worker that claimed a job is there now, and says that it runs it."""
        subject = names.worker(self._name, held.state.worker)
        found = await self._engine.last(names.state_of(self._name), subject)
        worker = _decoded(found.data, Presence) if found else None
        return (
            worker is not None
            and worker.session == held.state.session
            and any(job.id == held.place.id for job in worker.running)
        )

    # --- what is remembered ----------------------------------------------------------------------

    async def ended(self, taken: Taken, seconds: float, *, well: bool, useful: bool) -> None:
        """Remember what a job took, and settle with its client. Trouble is passed over: it is advice."""
        with suppress(ClusterError):
            if taken.charged:
                await self._settle(taken, seconds * taken.slots)
            if not taken.ticket.hint:
                return
            subject = names.hint(self._name, taken.ticket.hint)
            for _ in range(_TRIES):
                warmth, seq = await self._warmth(taken.ticket.hint)
                after = policy.ended(
                    warmth, self._worker, time.time(), seconds=seconds, warm=taken.warm,
                    well=well, useful=useful,
                )  # fmt: skip
                with suppress(Conflict):
                    await self._engine.put(subject, encode(after), expect=seq)
                    return

    async def _warmth(self, hint: str) -> tuple[Warmth | None, int]:
        if not hint:
            return None, 0
        stream = names.state_of(self._name)
        found = await self._engine.last(stream, names.hint(self._name, hint))
        if found is None:
            return None, 0
        return _decoded(found.data, Warmth), found.seq

    async def _charge(self, client: str, floor: float, cost: float) -> None:
        await self._share(client, lambda share: policy.charged(share, floor, cost))

    async def _settle(self, taken: Taken, real: float) -> None:
        await self._share(
            taken.ticket.client, lambda share: policy.settled(share, taken.expected, real)
        )

    async def _share(self, client: str, changed: Callable[[Share], Share]) -> None:
        """Change what a client has had; fairness bears that it fails now and then."""
        subject, survey = names.fair(self._name, client), self._survey
        share = survey.shares.get(client, Share()) if survey else Share()
        seq = survey.seqs.get(client, 0) if survey else 0
        for _ in range(_TRIES):
            after = changed(share)
            try:
                seq = await self._engine.put(subject, encode(after), expect=seq)
            except Conflict:
                found = await self._engine.last(names.state_of(self._name), subject)
                share = (_decoded(found.data, Share) if found else None) or Share()
                seq = found.seq if found else 0
                continue
            if survey is not None:
                survey.shares[client], survey.seqs[client] = after, seq
            return


def _decoded(data: bytes, kind: type[M]) -> M | None:
    """A message, or None for what is none that we know."""
    try:
        return decode(data, kind) if data else None
    except Incompatible:
        return None


def _backlog(pending: Mapping[str, int]) -> dict[str, int]:
    """Tickets by the worker that they were sent on to."""
    found: dict[str, int] = {}
    for subject, count in pending.items():
        kind, _, worker, _ = subject.split(".")
        if kind == "run":
            found[worker] = found.get(worker, 0) + count
    return found


def _tickets(pending: Mapping[str, int]) -> dict[tuple[str, bool], int]:
    """Tickets that were sent on to nobody, by client and whether they are urgent."""
    found: dict[tuple[str, bool], int] = {}
    for subject, count in pending.items():
        kind, client, _, urgency = subject.split(".")
        if kind == "sub":
            found[client, urgency == "u"] = count
    return found
