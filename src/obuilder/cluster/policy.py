"""Which job a worker takes next, and where a job is best run. Pure: no clock, no engine, no chance.

There is no scheduler. Each worker that has room reads what waits and what clients have had, and decides
with these functions; what it decides is written by compare-and-set, so that two never decide on the
same ground. All of it is preference: no rule here is needed for a job to run, or to run once.

- *Fairness*: start-time fair queueing. A client's virtual time grows by what its jobs cost, divided by
  its rate; who has the least goes first. Urgent jobs go before all others, fairly among themselves.
- *Affinity*: a job goes to a worker that has the cache of its hint, or is making it, until what waits
  there would take longer than to do the work again.
- *Capacity*: a slot is an equal part of a worker. A job that is too big for the room there is waits on
  one worker, which takes no other meanwhile: it isn't overtaken for ever by small ones.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from obuilder.cluster.messages import Job, Pool, Presence, Share, Ticket, Warmth

REMEMBERED = 16
"""Workers that a hint knows of, at most: those that used it last."""
EXPIRES = 14 * 86400.0
"""Seconds after its last use that a cache is thought to be gone."""
REFRESHED = 3600.0
"""Seconds after which a use of a cache is written down again."""
NEAR = 1.25
"""An estimate that has changed by less than that is not."""
OVERDUE = 3.0
"""A job that takes that many times what was expected isn't waited for."""
LEARNING = 0.3
OUTLIER = 4.0
"""A job counts as at most that many times longer, or shorter, than was expected."""
RETRY = 15.0
"""Seconds until a job that no worker is big enough for is looked at again."""


# --- fairness ------------------------------------------------------------------------------------


class Waiting(NamedTuple):
    """How many tickets of a client wait."""

    urgent: int = 0
    normal: int = 0


def waiting(
    pending: Mapping[tuple[str, bool], int], workers: Iterable[Presence]
) -> dict[str, Waiting]:
    """What waits, by client. `pending`: tickets in the queue by client and whether they are urgent.

    The queue keeps a ticket until its job has ended, so those of jobs that run are taken off.
    """
    left = dict(pending)
    for worker in workers:
        for job in worker.running:
            if not job.forwarded and (job.client, job.urgent) in left:
                left[job.client, job.urgent] -= 1
    return {
        client: Waiting(max(0, left.get((client, True), 0)), max(0, left.get((client, False), 0)))
        for client, _ in left
    }


class Turn(NamedTuple):
    """Whose tickets are to be tried."""

    client: str
    urgent: bool


def turns(
    waiting: Mapping[str, Waiting],
    shares: Mapping[str, Share],
    running: Mapping[str, int] | None = None,
    *,
    spread: float = 0.0,
    draw: Callable[[], float] = lambda: 0.0,
) -> list[Turn]:
    """The clients with tickets that wait, in the order in which a worker tries them.

    A client that `shares` hasn't got is new. Who has as many jobs `running` as its share allows
    is left out; of two that have had the same, the one with fewer of them goes first.

    Workers that choose at the same moment don't see each other's choices, and would all choose the same
    client. So they may `spread` over those that are less than about that much virtual time (`spread`)
    behind the first, in proportion to their rates; `draw` gives random numbers from 0 up to 1.
    """
    runs = running or {}
    now = floor(waiting, shares, runs)

    def order(client: str) -> tuple[float, float, str]:
        share = shares.get(client, Share())
        luck = -math.log1p(-draw()) * spread / share.rate if spread else 0.0
        return start(share, now) + luck, runs.get(client, 0) / share.rate, client

    able = sorted(contenders(waiting, shares, runs), key=order)
    return [
        *(Turn(client, urgent=True) for client in able if waiting[client].urgent),
        *(Turn(client, urgent=False) for client in able if waiting[client].normal),
    ]


def contenders(
    waiting: Mapping[str, Waiting],
    shares: Mapping[str, Share],
    running: Mapping[str, int] | None = None,
) -> list[str]:
    """The clients that something could be taken of: tickets wait, and fewer jobs run than may.

    If there is only one, nobody need be charged: a newcomer would start where it is anyway.
    """
    return [
        client
        for client, wait in waiting.items()
        if wait.urgent + wait.normal > 0
        and not 0 < shares.get(client, Share()).limit <= (running or {}).get(client, 0)
    ]


def spread(rivals: float, cost: float, shares: Iterable[Share]) -> float:
    """How far the choices of so many `rivals` should spread: what their jobs move virtual time by."""
    return rivals * cost / max(sum(share.rate for share in shares), 1e-9)


def raced(rivals: float, *, lost: bool) -> float:
    """How many others are thought to choose at the same moment, after a compare-and-set of a share.

    So one of them, drawn by chance, may write for all: fair on average. It settles where one write in
    three is disturbed.
    """
    return min(2 * rivals + 1, 1024.0) if lost else rivals / 2 if rivals >= 1 else 0.0


def floor(
    waiting: Mapping[str, Waiting],
    shares: Mapping[str, Share],
    running: Mapping[str, int] | None = None,
) -> float:
    """The pool's virtual time: the least start of the contenders, and never less than it was.

    Who comes, or comes back, starts there: time that nobody asked for is not saved up.
    """
    was = max((share.floor for share in shares.values()), default=0.0)
    starts = [
        start(shares.get(client, Share()), was) for client in contenders(waiting, shares, running)
    ]
    return min(starts, default=was)


def start(share: Share, now: float) -> float:
    """The virtual time at which the client's next job starts, if the pool's is `now`."""
    return max(share.time, now)


def charged(share: Share, now: float, cost: float) -> Share:
    """A client's share after a job of its was taken, that is thought to `cost` that.

    `now` is the `floor` that the choice was made by.
    """
    begins = start(share, now)
    return replace(share, time=begins + cost / share.rate, floor=max(share.floor, now))


def settled(share: Share, expected: float, real: float) -> Share:
    """The share after the job has ended: `expected` was charged, it cost `real`."""
    return replace(share, time=max(0.0, share.time + (real - expected) / share.rate))


# --- costs ---------------------------------------------------------------------------------------


class Costs(NamedTuple):
    """What a job is expected to take where its cache is not, and where it is; in seconds."""

    cold: float
    warm: float


def costs(warmth: Warmth | None, pool: Pool) -> Costs:
    """What jobs of a hint are expected to take: as before, or else in the pool's proportions."""
    known = warmth or Warmth()
    if known.cold is not None:
        cold = known.cold
        warm = known.warm if known.warm is not None else cold * pool.warm / pool.cold
    elif known.warm is not None:
        cold, warm = max(pool.cold, known.warm), known.warm
    else:
        cold, warm = pool.cold, pool.warm
    return Costs(cold, min(warm, cold))


def cost(expected: Costs, *, warm: bool, slots: int) -> float:
    """What a client is charged for a job: seconds times slots."""
    return (expected.warm if warm else expected.cold) * max(1, slots)


def estimate(was: float | None, seconds: float) -> float:
    """A running estimate of a time. It is geometric: one job that hung hardly moves it."""
    seconds = max(seconds, 1e-3)
    if was is None or was <= 0:
        return seconds
    change = min(max(seconds / was, 1 / OUTLIER), OUTLIER)
    return was * math.pow(change, LEARNING)


# --- affinity and capacity -----------------------------------------------------------------------


class Take(NamedTuple):
    """Run it here, now. `warm`: this worker is thought to have its cache."""

    warm: bool


class Hold(NamedTuple):
    """It is to be run here when `slots` are free. Take no other until then."""

    slots: int


class Forward(NamedTuple):
    """Send it on to that worker."""

    worker: str


class Back(NamedTuple):
    """No worker that is there could ever run it: put it back for some seconds."""

    delay: float


Route = Take | Hold | Forward | Back


def route(
    ticket: Ticket,
    warmth: Warmth | None,
    me: Presence,
    others: Mapping[str, Presence],
    backlog: Mapping[str, int],
    expected: Costs,
    now: float,
) -> Route:
    """What the worker `me`, which has just got the ticket, does with it.

    `me` is what is so at this moment; `others` are the workers that are there by their last heart-beat
    (`me` may be among them). `backlog`: how many tickets that were sent on to a worker have not ended,
    those that run included.

    A ticket that was sent to a worker that is there isn't sent on to a better cache, whoever has it now:
    so none goes round in circles.
    """
    here = is_warm(warmth, me.name, now)
    peers = [other for other in others.values() if other.name != me.name and not other.paused]
    needs = slots(ticket, me)
    sent = ticket.forwarded in (me.name, *(peer.name for peer in peers))
    if ticket.hint and not (here or sent or makes(warmth, me, expected, now)):
        best = _nearest(ticket, warmth, peers, backlog, expected, now)
        if best is not None:
            return Forward(best)
    if needs <= me.capacity - me.in_use:
        return Take(here)
    able = [other for other in peers if slots(ticket, other) <= other.capacity]
    roomy = [other for other in able if slots(ticket, other) <= _free(other, backlog)]
    if roomy and ticket.forwarded != me.name:
        return Forward(max(roomy, key=lambda other: (_free(other, backlog), other.name)).name)
    if needs <= me.capacity:
        return Hold(needs)
    if able:
        return Forward(max(able, key=lambda other: (_free(other, backlog), other.name)).name)
    return Back(RETRY)


def _nearest(
    ticket: Ticket,
    warmth: Warmth | None,
    peers: Iterable[Presence],
    backlog: Mapping[str, int],
    expected: Costs,
    now: float,
) -> str | None:
    """The worker with the cache where the wait is least, if it is less than to do the work again."""
    waits = [
        (wait(other, backlog.get(other.name, 0), expected), other.name)
        for other in peers
        if slots(ticket, other) <= other.capacity
        and (is_warm(warmth, other.name, now) or makes(warmth, other, expected, now))
    ]
    seconds, name = min(waits, default=(math.inf, ""))
    return name if seconds <= expected.cold else None


def wait(worker: Presence, forwarded: int, expected: Costs) -> float:
    """Seconds that what waits for a worker will take it; `forwarded` is its part of the `backlog`."""
    own = sum(job.slots for job in worker.running if not job.forwarded)
    waits = max(0, forwarded + own - worker.capacity)
    return waits * expected.warm / max(1, worker.capacity)


def _free(worker: Presence, backlog: Mapping[str, int]) -> int:
    own = sum(job.slots for job in worker.running if not job.forwarded)
    return worker.capacity - max(worker.in_use, own + backlog.get(worker.name, 0))


def is_warm(warmth: Warmth | None, worker: str, now: float) -> bool:
    """Whether a worker is thought to have the cache of a hint."""
    return any(
        name == worker and now - used < EXPIRES for name, used in (warmth.workers if warmth else ())
    )


def makes(warmth: Warmth | None, worker: Presence, expected: Costs, now: float) -> bool:
    """Whether a worker is making the cache of a hint: it runs a job of it, which is not long overdue."""
    limit = OVERDUE * expected.cold
    return any(
        name == worker.name and session == worker.session and now - began < limit
        for name, session, began in (warmth.making if warmth else ())
    )


def slots(job: Ticket | Job, worker: Presence) -> int:
    """The slots that a job takes of a worker: those it asks for, or its part of what is there."""
    parts = [job.slots, 1]
    if job.memory is not None and worker.memory:
        parts.append(math.ceil(job.memory * worker.capacity / worker.memory))
    if job.cpus is not None and worker.cpus:
        parts.append(math.ceil(job.cpus * worker.capacity / worker.cpus))
    return max(parts)


class Stray(NamedTuple):
    """Another worker's tickets may be taken, if at least so many wait (the engine's `min_pending`)."""

    worker: str
    at_least: int


def strays(
    backlog: Mapping[str, int],
    me: str,
    others: Mapping[str, Presence],
    expected: Costs,
    *,
    most: int = 4,
) -> list[Stray]:
    """Where a worker that has found nothing else may take tickets, the longest queues first.

    Of workers that are gone or paused, whatever waits; of others, what is more than a rebuild costs.
    """
    found: list[tuple[bool, float, Stray]] = []
    for worker, count in backlog.items():
        there = others.get(worker)
        if worker == me or count <= 0:
            continue
        if there is None or there.paused:
            found.append((True, count, Stray(worker, 0)))
        elif (seconds := wait(there, count, expected)) > expected.cold:
            at_least = math.ceil(expected.cold / max(expected.warm, 1e-3) * there.capacity)
            found.append((False, seconds, Stray(worker, max(1, at_least))))
    found.sort(key=lambda item: (not item[0], -item[1], item[2].worker))
    return [stray for _, _, stray in found[:most]]


# --- what is remembered --------------------------------------------------------------------------


def started(warmth: Warmth | None, worker: str, session: str, now: float) -> Warmth:
    """The hint's record when a worker begins a job of it without its cache.

    To be written by compare-and-set *before* the job starts; who loses routes the ticket again, and
    finds the winner. So a cache is made once, however many jobs of a hint come at the same time.
    """
    was = warmth or Warmth()
    others = tuple(maker for maker in was.making if maker[0] != worker)
    return replace(was, making=(*others, (worker, session, now))[-REMEMBERED:])


def ended(
    warmth: Warmth | None,
    worker: str,
    now: float,
    *,
    seconds: float,
    warm: bool,
    well: bool,
    useful: bool,
) -> Warmth:
    """The hint's record when a job of it ended after `seconds` on a worker that was taken for `warm`.

    `well`: it did what it should, so that the time it took counts. `useful`: the worker has its cache
    now; a build that failed in its last step has left all those before.
    """
    was = warmth or Warmth()
    fresh = [(name, used) for name, used in was.workers if name != worker and now - used < EXPIRES]
    mine = [(worker, now)] if useful else [item for item in was.workers if item[0] == worker]
    cold, hot = was.cold, was.warm
    if well and warm:
        hot = estimate(hot, seconds)
    elif well:
        cold = estimate(cold, seconds)
    return replace(
        was,
        workers=tuple(sorted((*fresh, *mine), key=lambda item: item[1])[-REMEMBERED:]),
        making=tuple(maker for maker in was.making if maker[0] != worker),
        cold=cold,
        warm=hot,
    )


def is_news(before: Warmth | None, after: Warmth, worker: str) -> bool:
    """Whether a hint's record is worth writing, or says the same as it did but for small changes."""
    if before is None or after.making != before.making:
        return True
    was, now = dict(before.workers), dict(after.workers)
    if was.keys() != now.keys() or now.get(worker, 0.0) - was.get(worker, 0.0) > REFRESHED:
        return True
    times = ((before.cold, after.cold), (before.warm, after.warm))
    return any(old != new and not _near(old, new) for old, new in times)


def _near(old: float | None, new: float | None) -> bool:
    return old is not None and new is not None and old / NEAR < new < old * NEAR


def forgotten(warmth: Warmth, worker: str) -> Warmth:
    """The hint's record without a worker: it was forgotten, or its cache was dropped."""
    return replace(
        warmth,
        workers=tuple(item for item in warmth.workers if item[0] != worker),
        making=tuple(item for item in warmth.making if item[0] != worker),
    )
