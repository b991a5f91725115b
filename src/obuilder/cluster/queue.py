"""The queue of a pool, as one worker sees it: which ticket it takes, where others go.

There is no scheduler. A worker with room reads what waits, asks `policy` whose turn it is, pulls a
ticket of that client, and runs it, or sends it on to the worker that has its cache. What is read of
other workers may be some seconds old: all that comes of it is a worse choice.

Its flow: `outlook` says what is known, `bell` when there is something to look at, `policy` what to do.
"""

import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct
from msgspec.structs import replace

from obuilder.cluster import names, policy, records
from obuilder.cluster.bell import Bell
from obuilder.cluster.engine import Conflict, Delivery, Engine
from obuilder.cluster.messages import Outcome, Pool, Presence, Share, Ticket, encode
from obuilder.cluster.outlook import Outlook, decoded, makers
from obuilder.cluster.records import Held, Place
from obuilder.cluster.tasks import together
from obuilder.errors import ClusterError, Incompatible

_TRIES = 6
"""Of a compare-and-set that others disturb, where it matters little."""
_SENDING = 8
"""Tickets that are being sent on at a time."""
_LAST = 3.0
"""Seconds for them when the worker ends."""
_GRACE = 0.25
"""Seconds for a ticket that was told of: its copy may be here before the queue gives it out."""
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


class Queue:
    """The queue of one pool for one worker. `take` is called by one task at a time."""

    def __init__(self, engine: Engine, pool: str, worker: str, session: str) -> None:
        self._engine, self._name = engine, pool
        self._worker, self._session = worker, session
        self._stream = names.queue_of(pool)
        self._outlook = Outlook(engine, pool, worker)
        self._bell = Bell(engine, pool, worker, self._outlook)
        self._tasks: TaskGroup | None = None
        self._sending = anyio.Semaphore(_SENDING)
        self._ledger = self._outlook.ledger
        self.is_running: Callable[[str], bool] = lambda _: False
        """Whether this very worker runs a job."""
        self.adopt: Callable[[str, Delivery], None] = lambda _, __: None
        """Called with a ticket, delivered anew, of a job that this worker runs."""

    async def pool(self) -> Pool:
        """The pool. NoSuchPool, ClusterError."""
        return await self._outlook.pool()

    # --- waiting ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Hear of what comes: `take` and `wait` are for within. ClusterError."""
        await self._outlook.pool()
        async with self._bell.heard(), together() as tasks:
            self._tasks = tasks
            yield
            with anyio.move_on_after(_LAST):  # what isn't sent on by then is given out again
                for _ in range(_SENDING):
                    await self._sending.acquire()
            tasks.cancel_scope.cancel()

    def wake(self) -> None:
        """End `wait`: something has changed here."""
        self._bell.wake()

    async def wait(self) -> None:
        """Wait until there may be something to take: for some seconds if nothing is heard."""
        await self._bell.wait(self._outlook.idle)

    async def full(self) -> None:
        """Let others be woken for what comes: there is no room here. ClusterError."""
        await self._bell.leave()

    # --- taking ----------------------------------------------------------------------------------

    async def take(self, me: Presence) -> Taken | Holding | None:
        """The next job for a worker that is as `me` says; None if nothing waits for it now.

        ClusterError.
        """
        await self._outlook.pool()
        try:
            found = await self._called(me) or await self._search(me)
            if found is None and await self._bell.stand():
                self._outlook.doubt()  # something may have come before we stood there
                self._bell.search = True
                found = await self._search(me)
            await self._ledger.settle_old(everything=found is None)
        except ClusterError:
            self._outlook.forget()
            self._bell.wake()
            raise
        self._bell.search |= found is not None  # there may be more
        return found

    async def _search(self, me: Presence) -> Taken | Holding | None:
        """Look everywhere, if there may be anything."""
        if not self._bell.search:
            return None
        self._bell.search = False
        return await self._searched(me)

    async def _called(self, me: Presence) -> Taken | Holding | None:
        """A job of those that only this worker was told of. Where there is room, nobody is charged."""
        while self._bell.called:
            client, urgent = max(self._bell.called, key=lambda call: call[1])
            self._bell.called.discard((client, urgent))
            if self._ledger.shares.get(client, Share()).limit:
                self._bell.search = True
                continue  # not without counting what runs
            turn = policy.Turn(client, urgent)
            found = await self._of_client(turn, me, None, wait=_GRACE)
            if found is not None:
                return found
        return None

    async def _searched(self, me: Presence) -> Taken | Holding | None:
        outlook = self._outlook
        found: Taken | Holding | None = None
        if outlook.strays_are_due():
            found = await self._stray(me)
        if found is None:
            found = await self._own(me, urgent=True)
        if found is None and outlook.urgent:
            found = await self._turn(me, urgent=True)
        if found is None:
            found = await self._own(me, urgent=False)
        return found or await self._turn(me) or await self._stray(me)

    async def _own(self, me: Presence, *, urgent: bool) -> Taken | Holding | None:
        """A job that was sent on to this worker."""
        own, consumer = self._outlook.own, names.running(self._worker, urgent=urgent)
        while own[urgent]:
            own[urgent] = False  # until one more is heard of
            delivery = await self._engine.pull(self._stream, consumer, wait=0)
            if delivery is None:
                return None
            own[urgent] = True
            found = await self._considered(delivery, me, None)
            if found is not None:
                return found
        return None

    async def _turn(self, me: Presence, *, urgent: bool = False) -> Taken | Holding | None:
        """A job of the client whose turn it is; `urgent`: none but an urgent one."""
        outlook, pool = self._outlook, await self.pool()
        while True:
            await outlook.look()
            waits, shares, runs = outlook.waiting(), self._ledger.shares, await self._runs(me)
            spread = self._ledger.spread(waits, policy.costs(None, pool).cold)
            turns = policy.turns(waits, shares, runs, spread=spread, draw=random.random)
            if not turns or (urgent and not turns[0].urgent):
                return None
            alone = len(policy.contenders(waits, shares, runs)) < 2
            floor = None if alone else policy.floor(waits, shares, runs)
            found = await self._of_client(turns[0], me, floor)
            if found is not None:
                return found

    async def _runs(self, me: Presence) -> dict[str, int]:
        """How many jobs of each client run: here, or in the whole pool if anybody has a limit."""
        limited = any(share.limit for share in self._ledger.shares.values())
        everybody = await self._outlook.everybody() if limited else {}
        runs: dict[str, int] = {}
        for worker in {**everybody, self._worker: me}.values():
            for job in worker.running:
                runs[job.client] = runs.get(job.client, 0) + 1
        return runs

    async def _of_client(
        self, turn: policy.Turn, me: Presence, floor: float | None, *, wait: float = 0.0
    ) -> Taken | Holding | None:
        """The next job of a client, if it is for this worker."""
        consumer = names.waiting(turn.client, urgent=turn.urgent)
        delivery = await self._engine.pull(self._stream, consumer, wait=wait)
        if delivery is None or not delivery.left:
            self._outlook.none_left(turn.client, urgent=turn.urgent)
        if delivery is None:
            return None
        found = await self._considered(delivery, me, floor)
        if delivery.left and found is not None:
            self._bell.more(turn.client, urgent=turn.urgent)
        return found

    async def _stray(self, me: Presence) -> Taken | Holding | None:
        """A job that was sent on to a worker that doesn't get to it."""
        backlog = await self._outlook.waits()
        others = [worker for worker in backlog if worker != self._worker]
        if not others:
            return None
        peers = await self._outlook.peers(others)
        costs = policy.costs(None, await self.pool())
        for stray in policy.strays(backlog, self._worker, peers, costs):
            for urgent in (True, False):
                consumer = names.running(stray.worker, urgent=urgent)
                while True:
                    delivery = await self._engine.pull(
                        self._stream, consumer, wait=0, min_pending=stray.at_least or None
                    )
                    if delivery is None:
                        break
                    found = await self._considered(delivery, me, None)
                    if found is not None:
                        return found
        return None

    async def resume(self, holding: Holding, me: Presence) -> Taken | None:
        """The job that was held, once there is room for it. None if it is not wanted any more."""
        found = await self._considered(holding.delivery, me, holding.charge, stay=True)
        return found if isinstance(found, Taken) else None

    # --- what becomes of a ticket ----------------------------------------------------------------

    async def _considered(
        self, delivery: Delivery, me: Presence, charge: float | None, *, stay: bool = False
    ) -> Taken | Holding | None:
        """What becomes of a ticket that was pulled: None if it isn't for this worker now."""
        ticket = decoded(delivery.data, Ticket)
        if ticket is None:
            await delivery.term()
            return None
        stay = stay or self.is_running(ticket.id)
        route: policy.Route | None = None if stay else await self._route(ticket, me)
        if isinstance(route, policy.Forward):
            await self._forward(ticket, delivery, route.worker, me, charge)
            return None
        held = await self._wanted(ticket, delivery)
        if held is None:
            return None
        while True:
            match route:
                case policy.Forward(worker=worker):
                    await self._forward(ticket, delivery, worker, me, charge)
                    return None
                case policy.Hold(slots=wanted):
                    return Holding(ticket, delivery, charge, wanted)
                case policy.Back(delay=delay):
                    await delivery.back(delay)
                    return None
                case policy.Take() | None:
                    pass
            with suppress(Conflict):  # else somebody makes its cache: look again
                return await self._started(ticket, delivery, held, me, charge)
            await self._outlook.hint(ticket.hint, now=True)
            route = None if stay else await self._route(ticket, me)

    async def _wanted(self, ticket: Ticket, delivery: Delivery) -> Held | None:
        """The job's record, if it is to be run, and by us; else the ticket is dealt with."""
        place = Place(ticket.client, self._name, ticket.id)
        try:
            held, cancel = await records.read_with_cancel(self._engine, place)
        except Incompatible:
            await delivery.back(_BUSY)
            return None
        if held is None or held.ended:
            await self._drop(ticket, delivery)
            return None
        if self.is_running(ticket.id):
            self.adopt(ticket.id, delivery)
            return None
        if held.state.phase == "running" and await self._is_held(held):
            await delivery.back(_BUSY)
            return None
        if cancel is not None:
            message = f"cancelled: {cancel.reason}" if cancel.reason else "cancelled"
            outcome = Outcome(code="cancelled", message=message, exit_status=130)
            await records.finish(
                self._engine, held, "cancelled", outcome, now=time.time(), log_end=0
            )
            await self._drop(ticket, delivery)
            return None
        return held

    async def _drop(self, ticket: Ticket, delivery: Delivery) -> None:
        await delivery.ack()
        if not ticket.forwarded:
            self._outlook.over(ticket.client, urgent=ticket.urgent)

    async def _is_held(self, held: Held) -> bool:
        """Whether the worker that claimed a job is there now, and says that it runs it."""
        subject = names.worker(self._name, held.state.worker)
        found = await self._engine.last(names.state_of(self._name), subject)
        worker = decoded(found.data, Presence) if found else None
        return (
            worker is not None
            and worker.session == held.state.session
            and any(job.id == held.place.id for job in worker.running)
        )

    async def _route(self, ticket: Ticket, me: Presence) -> policy.Route:
        """Where a ticket is best run, by what is known."""
        warmth = (await self._outlook.hint(ticket.hint)).warmth
        expected, now = policy.costs(warmth, await self.pool()), time.time()
        peers: Mapping[str, Presence] = {}
        if policy.slots(ticket, me) > me.capacity - me.in_use:
            peers = await self._outlook.everybody()
        elif ticket.forwarded != me.name and not policy.is_warm(warmth, me.name, now):
            peers = await self._outlook.peers((makers(warmth) | {ticket.forwarded}) - {"", me.name})
        backlog = await self._outlook.waits() if peers else {}
        return policy.route(ticket, warmth, me, peers, backlog, expected, now)

    async def _started(
        self, ticket: Ticket, delivery: Delivery, held: Held, me: Presence, charge: float | None
    ) -> Taken:
        """Take it. Conflict: what was known of its hint was old."""
        known, now = await self._outlook.hint(ticket.hint), time.time()
        warmth = known.warmth
        expected, slots = policy.costs(warmth, await self.pool()), policy.slots(ticket, me)
        warm = policy.is_warm(warmth, self._worker, now)
        if ticket.hint and not warm and not policy.makes(warmth, me, expected, now):
            making = policy.started(warmth, self._worker, self._session, now)
            subject = names.hint(self._name, ticket.hint)
            seq = await self._engine.put(subject, encode(making), expect=known.seq)
            self._outlook.learn(ticket.hint, making, seq)
        cost = policy.cost(expected, warm=warm, slots=slots)
        if charge is not None:
            await self._ledger.charge(ticket.client, charge, cost)
        return Taken(ticket, delivery, held, warm, cost, charged=charge is not None, slots=slots)

    async def _forward(
        self, ticket: Ticket, delivery: Delivery, worker: str, me: Presence, charge: float | None
    ) -> None:
        """Send a ticket on. It is done by the way: others are looked at meanwhile."""
        if charge is not None:
            warmth = (await self._outlook.hint(ticket.hint)).warmth
            expected = policy.costs(warmth, await self.pool())
            cost = policy.cost(expected, warm=True, slots=policy.slots(ticket, me))
            await self._ledger.charge(ticket.client, charge, cost)
        backlog = self._outlook.backlog
        backlog[worker] = backlog.get(worker, 0) + 1
        assert self._tasks is not None, "the queue is not open"
        await self._sending.acquire()
        self._tasks.start_soon(self._send_on, ticket, delivery, worker)

    async def _send_on(self, ticket: Ticket, delivery: Delivery, worker: str) -> None:
        """It waits at its new place before it is gone from the old one. If that fails it comes again."""
        sent = replace(ticket, forwarded=worker)
        subject = names.forwarded(self._name, worker, urgent=ticket.urgent)
        try:
            with suppress(ClusterError):
                await self._engine.put(subject, encode(sent), once=f"{ticket.id}.{delivery.seq}")
                await delivery.gone()
                if not ticket.forwarded:
                    self._outlook.over(ticket.client, urgent=ticket.urgent)
        finally:
            self._sending.release()

    # --- what is remembered ----------------------------------------------------------------------

    async def ended(self, taken: Taken, seconds: float, *, well: bool, useful: bool) -> None:
        """Remember what a job took, and settle with its client. Trouble is passed over: it is advice."""
        if not taken.ticket.forwarded:
            self._outlook.over(taken.ticket.client, urgent=taken.ticket.urgent)
        if taken.charged:
            with suppress(ClusterError):
                await self._ledger.settle(
                    taken.ticket.client, taken.expected, seconds * taken.slots
                )
        hint, now = taken.ticket.hint, False
        if not hint:
            return
        with suppress(ClusterError):
            for _ in range(_TRIES):
                known = await self._outlook.hint(hint, now=now)
                known.warmth = policy.ended(
                    known.warmth, self._worker, time.time(), seconds=seconds, warm=taken.warm,
                    well=well, useful=useful,
                )  # fmt: skip
                if not policy.is_news(known.stored, known.warmth, self._worker):
                    return
                after, subject = known.warmth, names.hint(self._name, hint)
                with suppress(Conflict):
                    seq = await self._engine.put(subject, encode(after), expect=known.seq)
                    self._outlook.learn(hint, after, seq)
                    return
                now = True
