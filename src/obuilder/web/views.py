"""What pages show, from the copy of the cluster (`mirror`) and the time. Pure."""

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from msgspec import Struct

from obuilder.cluster.messages import Phase, Presence, Share, State
from obuilder.errors import UsageError
from obuilder.web.mirror import JobId, Mirror, Worker

PAGE = 50
"""Jobs on a page."""
PHASES: tuple[Phase, ...] = get_args(Phase)


def duration(seconds: float | None) -> str:
    """A time as people say it: 1.2 s, 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds is None:
        return ""
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, part, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def size(number: float | None) -> str:
    """Bytes as people read them."""
    if number is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


# --- jobs ----------------------------------------------------------------------------------------


class JobRow(Struct, frozen=True):
    """A job in a list. Times are seconds since 1970, or seconds."""

    job: JobId
    state: State

    @property
    def path(self) -> str:
        """Where its page is."""
        return f"/job/{self.job.client}/{self.job.pool}/{self.job.id}"

    @property
    def title(self) -> str:
        """What it is, for people."""
        return self.state.title or self.state.hint or self.job.id

    def waited(self, now: float) -> float:
        """Seconds in queues."""
        until = self.state.started or self.state.ended or now
        return max(0.0, until - self.state.submitted)

    def ran(self, now: float) -> float | None:
        """Seconds on the worker that has it, or had it last."""
        if self.state.started is None:
            return None
        return max(0.0, (self.state.ended or now) - self.state.started)


class Filter(Struct, frozen=True):
    """Which jobs are wanted; empty: all. `since` is in seconds before now."""

    client: str = ""
    pool: str = ""
    phase: str = ""
    worker: str = ""
    text: str = ""
    since: float | None = None

    def matches(self, job: JobId, state: State, now: float) -> bool:
        """Whether a job is wanted."""
        return (
            self.client in ("", job.client)
            and self.pool in ("", job.pool)
            and self.phase in ("", state.phase)
            and self.worker in ("", state.worker)
            and (self.since is None or now - state.submitted <= self.since)
            and (not self.text or self._has_text(job, state))
        )

    def _has_text(self, job: JobId, state: State) -> bool:
        wanted = self.text.casefold()
        found = state.title, state.hint, job.id, state.outcome.message if state.outcome else ""
        return any(wanted in text.casefold() for text in found)


RANGES = {"1h": 3600.0, "24h": 86400.0, "7d": 7 * 86400.0, "30d": 30 * 86400.0}
"""Times to look back, by what they are called in addresses."""
RANGES_SAID = {"1h": "hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}
"""And by what people call them."""


def asked(query: Mapping[str, str]) -> Filter:
    """The filter that an address asks for. UsageError."""
    phase, since = query.get("phase", ""), query.get("since", "")
    if phase and phase not in PHASES:
        raise UsageError(f"no job is {phase!r}", hint=f"a job is {', '.join(PHASES)}")
    if since and since not in RANGES:
        raise UsageError(f"{since!r} is no time to look back", hint=f"take {', '.join(RANGES)}")
    words = {name: query.get(name, "").strip() for name in ("client", "pool", "worker", "text")}
    return Filter(phase=phase, since=RANGES.get(since), **words)


class JobsPage(Struct, frozen=True):
    """A page of a list. `older` is what `before` is for the next; empty: there is none."""

    rows: list[JobRow]
    older: str


def jobs(
    mirror: Mirror, wanted: Filter, now: float, *, before: str = "", length: int = PAGE
) -> JobsPage:
    """The newest jobs that are wanted, older than the job whose id is `before`."""
    rows: list[JobRow] = []
    for row in _newest(mirror, wanted, now, before):
        if len(rows) == length:
            return JobsPage(rows, rows[-1].job.id)
        rows.append(row)
    return JobsPage(rows, "")


def _newest(mirror: Mirror, wanted: Filter, now: float, before: str = "") -> Iterator[JobRow]:
    for job in reversed(mirror.order):
        if (not before or job.id < before) and wanted.matches(job, mirror.jobs[job], now):
            yield JobRow(job, mirror.jobs[job])


def active(mirror: Mirror, phase: Phase, *, pool: str = "", client: str = "") -> list[JobRow]:
    """Jobs that wait, or that run, in the order they were submitted."""
    found = (
        job
        for place in ([pool] if pool else list(mirror.active))
        for job in mirror.active.get(place, ())
        if client in ("", job.client) and mirror.jobs[job].phase == phase
    )
    return [JobRow(job, mirror.jobs[job]) for job in sorted(found)]


# --- pools and workers ---------------------------------------------------------------------------

Standing = Literal["ready", "full", "paused", "gone"]


class WorkerRow(Struct, frozen=True):
    """A worker in a list."""

    worker: Worker

    @property
    def presence(self) -> Presence | None:
        """Its last heart-beat."""
        return self.worker.presence

    @property
    def path(self) -> str:
        """Where its page is."""
        return f"/pool/{self.worker.pool}/worker/{self.worker.name}"

    @property
    def reasons(self) -> list[str]:
        """Why it takes no jobs."""
        found = [] if self.presence is None else list(self.presence.paused)
        lines = [f"{_WHY[reason]}: {text}" if text else _WHY[reason] for reason, text in found]
        paused = self.worker.paused
        if paused is not None and not any(reason == "admin" for reason, _ in found):
            lines.append(f"{_WHY['admin']}: {paused.reason}" if paused.reason else _WHY["admin"])
        return lines

    @property
    def standing(self) -> Standing:
        """Whether it takes jobs."""
        if self.presence is None:
            return "gone"
        if self.reasons:
            return "paused"
        return "full" if self.presence.in_use >= self.presence.capacity else "ready"

    @property
    def free(self) -> float | None:
        """The part of its store's space that is free, from 0 to 1."""
        found = self.presence
        return (
            None
            if found is None or found.free is None or not found.total
            else found.free / found.total
        )

    @property
    def hit_rate(self) -> float | None:
        """The part of its steps that were cached, from 0 to 1."""
        found = self.presence
        steps = 0 if found is None else found.hits + found.misses
        return None if found is None or not steps else found.hits / steps


_WHY = {
    "admin": "an administrator paused it",
    "worker": "it paused itself",
    "shutdown": "it is shutting down",
    "health": "its health check fails",
    "disk": "its disk is full",
    "starting": "it is starting",
}


class PoolRow(Struct, frozen=True):
    """A pool in a list."""

    name: str
    platform: str
    workers: list[WorkerRow]
    queued: int
    urgent: int
    running: int
    oldest: float | None
    """Since when the job that waits longest does."""

    @property
    def capacity(self) -> int:
        """Slots of the workers that are there."""
        return sum(row.presence.capacity for row in self.workers if row.presence)

    @property
    def in_use(self) -> int:
        """Those with jobs in them."""
        return sum(row.presence.in_use for row in self.workers if row.presence)

    def count(self, *standings: Standing) -> int:
        """How many workers stand so."""
        return sum(row.standing in standings for row in self.workers)


def pools(mirror: Mirror) -> list[PoolRow]:
    """All pools, by name."""
    return [pool for name in sorted(mirror.pools) if (pool := pool_row(mirror, name))]


def pool_row(mirror: Mirror, name: str) -> PoolRow | None:
    """One pool."""
    found = mirror.pools.get(name)
    if found is None:
        return None
    waiting = active(mirror, "queued", pool=name)
    return PoolRow(
        name=name,
        platform=found.platform,
        workers=[WorkerRow(worker) for worker in mirror.workers(name)],
        queued=len(waiting),
        urgent=sum(row.state.urgent for row in waiting),
        running=len(active(mirror, "running", pool=name)),
        oldest=min((row.state.submitted for row in waiting), default=None),
    )


# --- clients -------------------------------------------------------------------------------------


class ClientRow(Struct, frozen=True):
    """A client in a list, of the whole cluster or of one pool. Numbers are of jobs."""

    name: str
    added: float
    revoked: bool
    shares: dict[str, Share]
    """By pool."""
    queued: int
    running: int
    ended: int


def clients(mirror: Mirror, pool: str = "") -> list[ClientRow]:
    """All clients by name; with `pool`, those who have had something of it, or wait."""
    numbers: dict[str, list[int]] = {name: [0, 0, 0] for name in mirror.clients}
    for (client, where), phases in mirror.numbers.items():
        if pool in ("", where):
            for phase, number in phases.items():
                place = {"queued": 0, "running": 1}.get(phase, 2)
                numbers.setdefault(client, [0, 0, 0])[place] += number
    all_shares = {
        place: mirror.shares(place) for place in ([pool] if pool else sorted(mirror.pools))
    }
    rows = []
    for name, (queued, running, ended) in sorted(numbers.items()):
        known = mirror.clients.get(name)
        shares = {place: found[name] for place, found in all_shares.items() if name in found}
        if pool and not (shares or queued or running or ended):
            continue
        row = ClientRow(
            name=name,
            added=known.added if known else 0.0,
            revoked=known is None or known.revoked,
            shares=shares,
            queued=queued,
            running=running,
            ended=ended,
        )
        rows.append(row)
    return rows
