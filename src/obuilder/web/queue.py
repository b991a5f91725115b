"""The order in which the jobs of a pool are expected to start, by the workers' own policy. Pure."""

from collections import deque

from msgspec import Struct

from obuilder.cluster import policy
from obuilder.cluster.messages import Pool, Share
from obuilder.web import views
from obuilder.web.mirror import Mirror


class Waiting(Struct, frozen=True):
    """A job in a queue; `start` is its fair start, in seconds of virtual time from now."""

    row: views.JobRow
    start: float


MOST = 500
"""Jobs whose order is worked out."""


def waiting(mirror: Mirror, pool: str) -> list[Waiting]:
    """The first `MOST` of a pool's queue: urgent jobs before others, each kind by fair start.

    Every job is taken to cost what the pool says of unknown ones; what workers know of caches may let
    one take another job first.
    """
    cost = mirror.pools.get(pool, Pool(name=pool)).cold
    shares = dict(mirror.shares(pool))
    lines: dict[tuple[str, bool], deque[views.JobRow]] = {}
    for row in views.active(mirror, "queued", pool=pool):
        lines.setdefault((row.job.client, row.state.urgent), deque()).append(row)
    clients = {client for client, _ in lines}
    order: list[Waiting] = []
    begin: float | None = None
    while any(lines.values()) and len(order) < MOST:
        counts = {
            client: policy.Waiting(
                urgent=len(lines.get((client, True), ())),
                normal=len(lines.get((client, False), ())),
            )
            for client in clients
        }
        now = policy.floor(counts, shares)
        begin = now if begin is None else begin
        turn = policy.turns(counts, shares)[0]
        share = shares.get(turn.client, Share())
        row = lines[turn.client, turn.urgent].popleft()
        order.append(Waiting(row, policy.start(share, now) - begin))
        shares[turn.client] = policy.charged(share, now, cost)
    return order


def ahead(mirror: Mirror, row: views.JobRow) -> int:
    """How many jobs are expected to start before one that waits."""
    if row.state.phase != "queued":
        return 0
    order = waiting(mirror, row.job.pool)
    return next((place for place, one in enumerate(order) if one.row.job == row.job), len(order))
