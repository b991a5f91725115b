"""One job on a worker, from its ticket to its result: claimed, carried out, watched, recorded.

It goes on while the connection is broken: its log waits, and what it came to is written when the
cluster is back. If another worker has claimed it meanwhile, its outcome is dropped.
"""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import anyio

from obuilder import events
from obuilder.cluster import names, records
from obuilder.cluster.accounts import live
from obuilder.cluster.credentials import Credentials
from obuilder.cluster.engine import Conflict, Delivery, Engine
from obuilder.cluster.jobs import Shop, carry_out, outcome_of
from obuilder.cluster.logs import LogWriter
from obuilder.cluster.messages import Client, Job, Outcome, Phase, Running, Signed, decode
from obuilder.cluster.queue import Taken
from obuilder.cluster.records import Held, Place
from obuilder.cluster.sealing import opened, unseal
from obuilder.engine.run import first_error
from obuilder.errors import ClusterError, ObuilderError, Refused

BEAT = 10.0
"""Seconds from one sign to the engine that a ticket is in work to the next."""
_RETRY = 1.0
_FAILED = 70

Why = Literal["", "cancelled", "fenced", "back", "time"]


class Run:
    """A job that this worker has taken."""

    def __init__(
        self,
        engine: Engine,
        credentials: Credentials,
        shop: Shop,
        taken: Taken,
        session: str,
        *,
        tell: Callable[[str], None],
        log_cap: int,
    ) -> None:
        self._engine, self._credentials, self._shop = engine, credentials, shop
        self._taken, self._session, self._tell, self._cap = taken, session, tell, log_cap
        self._held: Held = taken.held
        self._delivery: Delivery = taken.delivery
        self._scope = anyio.CancelScope()
        self._poke = anyio.Event()
        self._why: Why = ""
        self._reason = ""
        self.began = time.time()
        self.phase: Phase | Literal["", "dropped"] = ""
        """How it ended, once it has."""
        self.outcome = Outcome()

    @property
    def place(self) -> Place:
        """What it is found by."""
        return self._held.place

    @property
    def row(self) -> Running:
        """It as others see it."""
        ticket = self._taken.ticket
        return Running(
            ticket.id, ticket.client, self._taken.slots, self.began, ticket.urgent,
            bool(ticket.forwarded),
        )  # fmt: skip

    def adopt(self, delivery: Delivery) -> None:
        """Its ticket was delivered again, to us: that delivery counts now."""
        self._delivery = delivery

    def poke(self) -> None:
        """See now whether it is still wanted, and still ours."""
        self._poke.set()

    def stop(self, why: Why, reason: str = "") -> None:
        """End it. `back`: so that another worker does it."""
        if not self._why:
            self._why, self._reason = why, reason
            self._scope.cancel()

    # --- from begin to end -----------------------------------------------------------------------

    async def run(self) -> None:
        """Do all of it. Nothing of what goes wrong with a job is raised."""
        try:
            try:
                await self._do()
            except BaseExceptionGroup as group:
                raise first_error(group) from None
        except Conflict:
            self.phase = "dropped"
            if self._why == "fenced":
                return  # the ticket is the other's too
            with suppress(ClusterError):
                await self._delivery.back(_RETRY)
        except ClusterError as error:  # it can't even be read: another try, after the ack's time
            self.phase = "dropped"
            self._tell(f"job {self.place.id} is put off: {error.message}")

    async def _do(self) -> None:
        try:
            job = await self._read()
            key = self._credentials.unseal
            secrets = {name: unseal(key, sealed) for name, sealed in job.secrets}
        except _Bad as bad:
            await self._record("failed", bad.outcome, 0)
            return
        except Refused as error:
            await self._record("failed", outcome_of(error), 0)
            return
        if self._held.deaths >= max(1, job.attempts):
            message = f"{self._held.deaths} workers were lost while they ran it"
            outcome = Outcome(code="workers-lost", message=message, exit_status=6)
            await self._record("failed", outcome, None)
            return
        self._held = await records.claim(
            self._engine, self._held, worker=self._credentials.name, session=self._session,
            now=time.time(), warm=self._taken.warm,
        )  # fmt: skip
        self.began = time.time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat)
            tasks.start_soon(self._listen)
            tasks.start_soon(self._look, job)
            await self._carry_out(job, secrets)
            tasks.cancel_scope.cancel()

    async def _read(self) -> Job:
        """The job as its client signed it. Refused, Incompatible, _Bad."""
        place = self.place
        found = await self._engine.known(names.jobs_of(place.client), place.subject("spec"))
        if found is None:
            raise _Bad(Outcome(code="missing", message="the job itself is gone", exit_status=6))
        known = await self._engine.known(names.CLUSTER, names.client(place.client))
        if known is None:
            raise Refused(f"the cluster knows no client {place.client!r}")
        try:
            client = decode(known.data, Client)
            job = opened(decode(found.data, Signed), client, self._credentials.cluster)
        except Refused:
            raise
        except ClusterError as error:
            raise _Bad(outcome_of(error)) from error
        if (job.client, job.pool, job.id) != place:
            raise Refused("the job is another than its ticket says")
        return job

    async def _carry_out(self, job: Job, secrets: dict[str, bytes]) -> None:
        began = time.monotonic()
        attempt = self._held.state.attempt
        writer = LogWriter(self._engine, *self.place, attempt, cap=self._cap)
        try:
            async with writer as sink:
                phase, outcome = await self._outcome(job, secrets, sink)
                if self._why == "back":
                    sink(events.Note("the worker stops: another one does this", warning=True))
                if self._why == "fenced":
                    raise Conflict("another worker has the job")  # its log is of no use
        except BaseExceptionGroup as group:
            if isinstance(first_error(group), Conflict):
                raise Conflict("another worker has the job") from None
            raise
        if self._why == "back":
            if await records.give_back(self._engine, self._held):
                await self._delivery.back()
            self.phase = "dropped"
            return
        self.outcome = outcome
        await self._record(phase, outcome, writer.count)
        seconds = time.monotonic() - began
        self._tell(f"job {job.id} of {job.client}: {phase} in {seconds:.1f} s {outcome.message}")

    async def _outcome(
        self, job: Job, secrets: dict[str, bytes], sink: events.Sink
    ) -> tuple[Phase, Outcome]:
        """What the job comes to, with a log that has an end."""
        ended = False

        def hear(event: events.Event) -> None:
            nonlocal ended
            ended = ended or isinstance(event, events.BuildEnded)
            sink(event)

        began = time.monotonic()
        phase: Phase = "failed"
        outcome = Outcome()
        try:
            with self._scope, anyio.move_on_after(job.seconds) as clock:
                hear(events.Note(text=f"Building on {self._credentials.name}"))
                outcome, phase = await carry_out(self._shop, job, secrets, hear), "done"
            if clock.cancelled_caught:
                self._why = "time"
        except ObuilderError as error:
            outcome = outcome_of(error)
        except Exception as error:  # noqa: BLE001 # of a custom job, or a fault of ours: the job's end
            first = first_error(error) if isinstance(error, BaseExceptionGroup) else error
            if isinstance(first, ObuilderError):
                outcome = outcome_of(first)
            else:
                self._tell("".join(traceback.format_exception(error)).rstrip())
                message = f"the worker failed: {type(first).__name__}: {first}"
                outcome = Outcome(code="error", message=message, exit_status=_FAILED)
        if self._why == "time":
            phase = "failed"
            message = f"the job took longer than {job.seconds:g} s"
            outcome = Outcome(code="job-timed-out", message=message, exit_status=1)
        elif phase != "done" and self._why == "cancelled":
            phase = "cancelled"
            message = f"cancelled: {self._reason}" if self._reason else "cancelled"
            outcome = Outcome(code="cancelled", message=message, exit_status=130)
        if phase != "done" and not ended and self._why not in ("back", "fenced"):
            seconds = time.monotonic() - began
            sink(events.BuildEnded(code=outcome.code, message=outcome.message, seconds=seconds))
        return phase, outcome

    async def _record(self, phase: Phase, outcome: Outcome, log_end: int | None) -> None:
        """Write how it ended, for as long as that takes, and let the ticket go."""
        won: bool | None = None
        while won is None:
            try:
                won = await records.finish(
                    self._engine, self._held, phase, outcome, now=time.time(), log_end=log_end
                )
            except Refused:
                raise
            except ClusterError:
                if self._why == "fenced":
                    raise Conflict("another worker has the job") from None
                await anyio.sleep(_RETRY)
        self.phase = phase if won else "dropped"
        if won:
            with suppress(ClusterError):  # whoever gets the ticket again sees that it has ended
                await self._delivery.ack()

    # --- meanwhile -------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            with suppress(ClusterError):
                await self._delivery.beat()
            await anyio.sleep(BEAT)

    async def _listen(self) -> None:
        """Look whenever something of the job changes."""
        while True:
            with suppress(ClusterError):
                async with self._engine.subscribe(live(self.place.subject("*"))) as said:
                    async for _ in said:
                        self._poke.set()
            await anyio.sleep(_RETRY)

    async def _look(self, job: Job) -> None:
        """See that the job is wanted, and ours; `poke` and the clock say when."""
        missed = 0
        while True:
            with suppress(ClusterError):
                held = await records.read(self._engine, self.place)
                if held is None or held.seq > self._held.seq:
                    self.stop("fenced")
                elif cancel := await records.is_cancelled(self._engine, self.place):
                    self.stop("cancelled", cancel.reason)
                elif job.attached:
                    there = await records.has_client(self._engine, self.place)
                    missed = 0 if there else missed + 1
                    if missed > 1:
                        self.stop("cancelled", "the client that it was attached to is gone")
            with anyio.move_on_after(BEAT):
                await self._poke.wait()
            self._poke = anyio.Event()


class _Bad(Exception):
    """A job that can't be read."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome
