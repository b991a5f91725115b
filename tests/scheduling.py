"""A pool in memory, driven by the cluster's policy with a clock of its own: what workers do with
the engine.
"""

from collections import defaultdict, deque
from collections.abc import Iterable

from msgspec.structs import replace

from obuilder.cluster import messages, policy
from obuilder.cluster.messages import Pool, Presence, Running, Share, Ticket, Warmth

SETTINGS = Pool(name="p", cold=10.0, warm=2.0)
"""What OCluster's own tests take for a job whose cache is not there, and for one whose is."""


class Farm:
    """Workers and what waits for them. Nothing happens but by a call."""

    def __init__(self, rates: dict[str, float] | None = None, *, settings: Pool = SETTINGS) -> None:
        """A pool without workers."""
        self.settings, self.now = settings, 0.0
        self.shares = {client: Share(rate=rate) for client, rate in (rates or {}).items()}
        self.hints: dict[str, Warmth] = {}
        self.workers: dict[str, Presence] = {}
        self.queues: dict[tuple[str, bool], deque[Ticket]] = defaultdict(deque)
        self.local: dict[tuple[str, bool], deque[Ticket]] = defaultdict(deque)
        self.held: dict[str, Ticket] = {}
        self.late: list[tuple[float, Ticket]] = []
        self.running: dict[str, tuple[str, Ticket, bool, float | None]] = {}
        self.misses: list[str] = []
        self.forwards = 0
        self.sessions = 0

    # --- what clients and administrators do

    def submit(self, client: str, *ids: str, hint: str = "", urgent: bool = False, slots: int = 1) -> None:  # fmt: skip
        """Queue jobs."""
        for id_ in ids:
            ticket = Ticket(id=id_, client=client, hint=hint, urgent=urgent, slots=slots)
            self.queues[client, urgent].append(ticket)

    def cancel(self, id_: str) -> bool:
        """Take a queued job out of wherever it waits."""
        for queue in (*self.queues.values(), *self.local.values()):
            for ticket in queue:
                if ticket.id == id_:
                    queue.remove(ticket)
                    return True
        return False

    def join(self, *names: str, capacity: int = 1) -> None:
        """Workers come, or come back."""
        for name in names:
            self.sessions += 1
            self.workers[name] = Presence(
                pool="p", name=name, session=str(self.sessions), capacity=capacity, in_use=0
            )

    def leave(self, name: str) -> None:
        """A worker is gone, and what it had runs elsewhere."""
        del self.workers[name]
        for id_ in [id_ for id_, job in self.running.items() if job[0] == name]:
            self._again(name, self.running.pop(id_)[1])
        if ticket := self.held.pop(name, None):
            self._again(name, ticket)

    def pause(self, name: str, *reasons: messages.Reason) -> None:
        """A worker takes no more jobs, for these reasons; for none, it does."""
        self.workers[name] = replace(
            self.workers[name], paused=tuple((reason, "") for reason in reasons)
        )

    # --- what a worker does

    def take(self, name: str) -> str | None:
        """The job that a worker starts now, if it finds one."""
        me = self.workers[name]
        if me.paused or me.in_use >= me.capacity:
            return None
        for item in [item for item in self.late if item[0] <= self.now]:
            self.late.remove(item)
            self.queues[item[1].client, item[1].urgent].append(item[1])
        if name in self.held:
            ticket = self.held.pop(name)
            return self._routed(name, ticket)
        looks = 2 * len(self.queued()) + 1
        while ticket := self._own(name) or self._next() or self._stray(name):
            assert (looks := looks - 1) >= 0, "tickets go round in circles"
            if (id_ := self._routed(name, ticket)) is not None:
                return id_
            if name in self.held:
                return None
        return None

    def flow(self, names: Iterable[str] | None = None) -> list[str]:
        """All that workers start until none of them finds more."""
        began: list[str] = []
        found = True
        while found:
            found = False
            for name in names or sorted(self.workers):
                while (id_ := self.take(name)) is not None:
                    began.append(id_)
                    found = True
        return began

    def finish(self, id_: str, *, well: bool = True, seconds: float | None = None) -> None:
        """A job ends after that time, or what it was expected to take."""
        name, ticket, warm, charge = self.running.pop(id_)
        expected = policy.costs(self.hints.get(ticket.hint), self.settings)
        took = seconds if seconds is not None else expected.warm if warm else expected.cold
        self._room(name, -ticket.slots, ticket)
        if charge is not None:
            share = self.shares[ticket.client]
            self.shares[ticket.client] = policy.settled(share, charge, took * ticket.slots)
        if ticket.hint:
            self.hints[ticket.hint] = policy.ended(
                self.hints.get(ticket.hint), name, self.now,
                seconds=took, warm=warm, well=well, useful=well,
            )  # fmt: skip

    def drained(self) -> list[str]:
        """All that is started from now on, one job at a time ending as it began."""
        order: list[str] = []
        while began := self.flow():
            order += began
            for id_ in list(self.running):
                self.finish(id_)
        return order

    # --- what waits

    def backlog(self) -> dict[str, int]:
        """Tickets that were sent on and have not ended, by worker."""
        counts: dict[str, int] = defaultdict(int)
        for (name, _), queue in self.local.items():
            counts[name] += len(queue)
        for name, ticket, _, _ in self.running.values():
            if ticket.forwarded == name:
                counts[name] += 1
        return {name: count for name, count in counts.items() if count}

    def waits(self) -> dict[str, policy.Waiting]:
        """What clients have in the pool's queue."""
        clients = {client for client, _ in self.queues}
        return {
            client: policy.Waiting(len(self.queues[client, True]), len(self.queues[client, False]))
            for client in clients
        }

    def queued(self) -> list[str]:
        """Every job that waits, in no order."""
        late = [ticket for _, ticket in self.late]
        every = (*self.queues.values(), *self.local.values(), self.held.values(), late)
        return [ticket.id for queue in every for ticket in queue]

    def stored(self) -> "Farm":
        """A pool in which only what the engine keeps is as here: as after all were started again."""
        other = Farm(settings=self.settings)
        other.now = self.now
        other.shares = {
            name: messages.decode(messages.encode(share), Share)
            for name, share in self.shares.items()
        }
        other.hints = {
            name: messages.decode(messages.encode(warmth), Warmth)
            for name, warmth in self.hints.items()
        }
        other.sessions = self.sessions
        return other

    # --- inside

    def _own(self, name: str) -> Ticket | None:
        for urgent in (True, False):
            if queue := self.local[name, urgent]:
                return queue.popleft()
        return None

    def _next(self) -> Ticket | None:
        turns = policy.turns(self.waits(), self.shares, self._runs())
        return self.queues[turns[0].client, turns[0].urgent].popleft() if turns else None

    def _stray(self, name: str) -> Ticket | None:
        expected = policy.costs(None, self.settings)
        for stray in policy.strays(self.backlog(), name, self.workers, expected):
            queues = [self.local[stray.worker, urgent] for urgent in (True, False)]
            for queue in queues:
                if queue and len(queue) >= stray.at_least:
                    return queue.popleft()
        return None

    def _routed(self, name: str, ticket: Ticket) -> str | None:
        me = self.workers[name]
        warmth = self.hints.get(ticket.hint)
        expected = policy.costs(warmth, self.settings)
        choice = policy.route(ticket, warmth, me, self.workers, self.backlog(), expected, self.now)
        match choice:
            case policy.Take(warm):
                self._start(name, ticket, expected, warm=warm)
                return ticket.id
            case policy.Forward(worker):
                self.forwards += 1
                self.local[worker, ticket.urgent].append(replace(ticket, forwarded=worker))
            case policy.Hold():
                self.held[name] = ticket
            case policy.Back(delay):
                self.late.append((self.now + delay, ticket))
        return None

    def _start(self, name: str, ticket: Ticket, expected: policy.Costs, *, warm: bool) -> None:
        waits = dict(self.waits())
        before = waits.get(ticket.client, policy.Waiting())
        waits[ticket.client] = policy.Waiting(before.urgent, before.normal + 1)
        charge: float | None = None
        if len(policy.contenders(waits, self.shares, self._runs())) > 1:
            charge = policy.cost(expected, warm=warm, slots=ticket.slots)
            now = policy.floor(waits, self.shares, self._runs())
            share = self.shares.get(ticket.client, Share())
            self.shares[ticket.client] = policy.charged(share, now, charge)
        if ticket.hint and not warm:
            session = self.workers[name].session
            warmth = self.hints.get(ticket.hint)
            if not policy.makes(warmth, self.workers[name], expected, self.now):
                self.misses.append(ticket.id)
            self.hints[ticket.hint] = policy.started(warmth, name, session, self.now)
        self.running[ticket.id] = (name, ticket, warm, charge)
        self._room(name, ticket.slots, ticket)

    def _room(self, name: str, slots: int, ticket: Ticket) -> None:
        me = self.workers[name]
        jobs = [job for job in me.running if job.id != ticket.id]
        if slots > 0:
            jobs.append(
                Running(
                    id=ticket.id, client=ticket.client, slots=slots, started=self.now,
                    forwarded=ticket.forwarded == name,
                )
            )  # fmt: skip
        self.workers[name] = replace(me, in_use=me.in_use + slots, running=tuple(jobs))

    def _runs(self) -> dict[str, int]:
        counts: dict[str, int] = defaultdict(int)
        for _, ticket, _, _ in self.running.values():
            counts[ticket.client] += 1
        return counts

    def _again(self, name: str, ticket: Ticket) -> None:
        queue = self.local if ticket.forwarded == name else self.queues
        owner = name if ticket.forwarded == name else ticket.client
        queue[owner, ticket.urgent].appendleft(ticket)
