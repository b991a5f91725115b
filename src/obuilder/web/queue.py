"""The order in which the jobs of a pool are expected to start. Pure."""

import heapq

from msgspec import Struct

from obuilder.web import views
from obuilder.web.mirror import Mirror


class Waiting(Struct, frozen=True):
    """A job in a queue; `start` is its fair start, in seconds of virtual time after the first one's."""

    row: views.JobRow
    start: float


def waiting(mirror: Mirror, pool: str) -> list[Waiting]:
    """The queue of a pool: urgent jobs before others, each kind by fair start.

    A client's next job starts at its virtual time and moves that on by the job's cost over the client's
    rate; a client that had nothing to do begins where the others are. Costs are taken to be alike here:
    what a worker knows of caches may let it take another job first.
    """
    found, shares = mirror.pools.get(pool), mirror.shares(pool)
    rows = views.active(mirror, "queued", pool=pool)
    cost = found.cold if found else 1.0
    order: list[Waiting] = []
    for urgent in (True, False):
        by_client: dict[str, list[views.JobRow]] = {}
        for row in rows:
            if row.state.urgent is urgent:
                by_client.setdefault(row.job.client, []).append(row)
        times = {name: shares[name].time if name in shares else 0.0 for name in by_client}
        floor = min(times.values(), default=0.0)
        next_ones = [
            (time - floor, jobs[0].job, name, 0)
            for name, jobs in by_client.items()
            if (time := times[name]) is not None
        ]
        heapq.heapify(next_ones)
        while next_ones:
            start, _, name, index = heapq.heappop(next_ones)
            order.append(Waiting(by_client[name][index], start))
            if index + 1 < len(by_client[name]):
                rate = shares[name].rate if name in shares else 1.0
                after = start + cost / max(rate, 1e-9)
                heapq.heappush(next_ones, (after, by_client[name][index + 1].job, name, index + 1))
    return order


def ahead(mirror: Mirror, row: views.JobRow) -> int:
    """How many jobs are expected to start before one that waits."""
    if row.state.phase != "queued":
        return 0
    order = waiting(mirror, row.job.pool)
    return next((place for place, one in enumerate(order) if one.row.job == row.job), 0)
