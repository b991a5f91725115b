"""A job's record: what it is, and where it is, which changes by compare-and-set alone.

    queued ──claim──▶ running ──finish──▶ done | failed | cancelled
       ▲                │ ▲ │
       └────give_back───┘ └─┘ claim by another worker, when the first is thought dead: attempt + 1

Whoever claims a job raises `attempt`; what an earlier attempt writes then loses, and is dropped. So
a job may run more than once, and has exactly one result.
"""

from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from obuilder.cluster import names
from obuilder.cluster.engine import Conflict, Engine
from obuilder.cluster.messages import ENDED, Cancel, Outcome, Phase, State, decode, encode
from obuilder.cluster.tasks import together
from obuilder.errors import Incompatible


class Place(NamedTuple):
    """What a job is found by."""

    client: str
    pool: str
    id: str

    def subject(self, part: str) -> str:
        """Of a part of it."""
        return names.job(*self, part)


class Held(Struct, frozen=True):
    """A job's state, and the number in the stream that it is changed by."""

    place: Place
    state: State
    seq: int

    @property
    def ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.state.phase in ENDED

    @property
    def deaths(self) -> int:
        """Workers that were lost with it so far, the one that has it now included."""
        return self.state.attempt - self.state.returned


async def read(engine: Engine, place: Place) -> Held | None:
    """Where a job is; None if there is none. Incompatible, ClusterError."""
    found = await engine.known(names.jobs_of(place.client), place.subject("state"))
    return None if found is None else Held(place, decode(found.data, State), found.seq)


async def read_with_cancel(engine: Engine, place: Place) -> tuple[Held | None, Cancel | None]:
    """Where a job is, and who wants it no more: asked at once. Incompatible, ClusterError."""
    found: list[Held | None] = []
    cancelled: list[Cancel | None] = []

    async def look() -> None:
        cancelled.append(await is_cancelled(engine, place))

    async with together() as tasks:
        tasks.start_soon(look)
        found.append(await read(engine, place))
    return found[0], cancelled[0]


async def is_cancelled(engine: Engine, place: Place) -> Cancel | None:
    """Who wants it no more, and why."""
    found = await engine.last(names.jobs_of(place.client), place.subject("cancel"))
    if found is None or not found.data:
        return None
    try:
        return decode(found.data, Cancel)
    except Incompatible:
        return Cancel()  # not wanted, whatever was said besides


async def has_client(engine: Engine, place: Place) -> bool:
    """Whether the client that an attached job belongs to is still there."""
    return await engine.last(names.jobs_of(place.client), place.subject("lease")) is not None


async def change(engine: Engine, held: Held, state: State) -> Held:
    """Put another state in the place of the one that is `held`. Conflict: it isn't that any more."""
    subject = held.place.subject("state")
    try:
        seq = await engine.put(subject, encode(state), expect=held.seq)
    except Conflict:
        now = await read(engine, held.place)
        if now is None or now.state != state:
            raise
        return now  # it was we: only the answer was lost
    return Held(held.place, state, seq)


async def claim(
    engine: Engine, held: Held, *, worker: str, session: str, now: float, warm: bool
) -> Held:
    """Take a job. Conflict: somebody else did, or it has ended."""
    state = replace(
        held.state, phase="running", attempt=held.state.attempt + 1, worker=worker,
        session=session, started=now, warm=warm,
    )  # fmt: skip
    return await change(engine, held, state)


async def finish(
    engine: Engine, held: Held, phase: Phase, outcome: Outcome, *, now: float, log_end: int | None
) -> bool:
    """Record how a job ended. False if it is another's by now, or ended otherwise: drop the outcome."""
    state = replace(held.state, phase=phase, ended=now, outcome=outcome, log_end=log_end)
    try:
        await change(engine, held, state)
    except Conflict:
        return False
    return True


async def give_back(engine: Engine, held: Held) -> bool:
    """Let another worker have a job, as if this one had not had it. False if it isn't ours any more."""
    state = replace(
        held.state, phase="queued", started=None, returned=held.state.returned + 1
    )  # fmt: skip
    try:
        await change(engine, held, state)
    except Conflict:
        return False
    return True
