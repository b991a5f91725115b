"""A client of the cluster: submits jobs, follows them, and brings their results.

async with Client.open(credentials) as client:
    ref = await client.submit(Build(text=spec), "linux-x86_64")
    async with client.follow(ref) as pieces:
        async for piece in pieces: ...
    outcome = await client.result(ref)
"""

import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import msgspec
from msgspec import Struct

from obuilder import errors, events
from obuilder.cluster import contexts, hints, logs, names
from obuilder.cluster.blobs import Blobs
from obuilder.cluster.credentials import Credentials
from obuilder.cluster.engine import Conflict, Engine
from obuilder.cluster.messages import (
    ENDED,
    Build,
    Cancel,
    Context,
    Custom,
    FilesContext,
    Job,
    NoContext,
    Outcome,
    Phase,
    Pool,
    Signed,
    State,
    Ticket,
    decode,
    encode,
)
from obuilder.cluster.sealing import check_pool, seal, sign
from obuilder.cluster.tasks import together
from obuilder.engine.inputs import Contexts, IndexStats
from obuilder.engine.result import Result
from obuilder.engine.settings import Images
from obuilder.engine.streaming import streamed
from obuilder.errors import ClusterError, NoSuchPool, ObuilderError, UsageError
from obuilder.spec.encode import print_spec
from obuilder.spec.model import Spec
from obuilder.values import Limits

LEASE = 30.0
"""Seconds after which an attached job's client is taken for gone."""


_LONG = 64 << 10
"""Bytes of a spec that goes as a file, and not in the job's message."""
_LARGEST = 900_000
"""Bytes of a job: with its signature it has to fit into one message."""


class Ref(Struct, frozen=True, order=True):
    """A job of a client: where it is, and what it is called."""

    pool: str
    id: str


class Row(Struct, frozen=True):
    """A job in a list."""

    pool: str
    id: str
    state: State


class Wishes(Struct, frozen=True, kw_only=True):
    """What a job is to be done with, besides what it is; see `messages.Job`."""

    title: str = ""
    hint: str = ""
    urgent: bool = False
    slots: int = 1
    memory: int | None = None
    cpus: float | None = None
    seconds: float | None = None
    attempts: int = 3
    attached: bool = False
    secrets: Mapping[str, bytes] = {}
    trace: str = ""


class Client:
    """One client, connected. Every method may run at the same time as any other."""

    def __init__(self, engine: Engine, credentials: Credentials) -> None:
        self._engine, self._credentials = engine, credentials
        self.name = credentials.name
        self.blobs = Blobs(engine, self.name)

    @classmethod
    @asynccontextmanager
    async def open(cls, credentials: Credentials) -> AsyncIterator["Client"]:
        """Connect. ClusterError, Refused, Incompatible; UsageError for a worker's credentials."""
        if credentials.kind != "client":
            raise UsageError(
                f"these are the credentials of a {credentials.kind}, not of a client",
                hint="an administrator makes some: obuilder cluster add-client NAME",
            )
        async with Engine.connect(credentials, name=credentials.name) as engine:
            yield cls(engine, credentials)

    # --- pools -----------------------------------------------------------------------------------

    async def pools(self) -> list[Pool]:
        """All pools there are, as the cluster's key signed them."""
        found = await self._engine.each(names.CLUSTER, names.pool())
        pools = [decode(each.data, Pool) for each in found]
        return sorted(
            (pool for pool in pools if check_pool(pool, self._credentials.cluster)),
            key=lambda pool: pool.name,
        )

    async def pool(self, name: str) -> Pool:
        """A pool. NoSuchPool, which says which there are."""
        pools = {pool.name: pool for pool in await self.pools()}
        if name in pools:
            return pools[name]
        known = ", ".join(sorted(pools))
        raise NoSuchPool(
            f"there is no pool {name!r}", hint=f"there are: {known}" if known else None
        )

    # --- jobs ------------------------------------------------------------------------------------

    async def send(
        self, spec: Spec | None, where: str | Contexts, *, stats: IndexStats | None = None,
        sink: events.Sink | None = None,
    ) -> FilesContext:  # fmt: skip
        """Send what `spec` copies of a directory, as far as the cluster has it not. CopyError."""
        collected = contexts.collect(spec, where, stats)
        sent = await contexts.send(self.blobs, collected)
        if sink is not None and sent.sent:
            size = f"{sent.sent_bytes / 1e6:.1f} MB"
            sink(events.Note(text=f"sent {sent.sent} of {sent.files} files, {size}"))
        return FilesContext(manifest=sent.manifest)

    async def submit(
        self,
        work: Build | Custom,
        pool: str,
        *,
        context: Context = NoContext(),  # noqa: B008 - frozen
        wishes: Wishes = Wishes(),  # noqa: B008 - frozen
    ) -> Ref:
        """Queue a job. It is there once this returns, come what may. NoSuchPool, ClusterError, and
        UsageError for one that is too large.
        """
        target = await self.pool(pool)
        if isinstance(work, Build) and work.text is not None:
            text = os.fsencode(work.text)
            if len(text) > _LONG or text != work.text.encode(errors="replace"):  # no UTF-8
                at = await self.blobs.put(text)
                work = msgspec.structs.replace(work, text=None, text_at=at)
        job = Job(
            id=names.new_job(), client=self.name, pool=pool, work=work, context=context,
            title=wishes.title, hint=wishes.hint, urgent=wishes.urgent, slots=wishes.slots,
            memory=wishes.memory, cpus=wishes.cpus, seconds=wishes.seconds,
            attempts=wishes.attempts, attached=wishes.attached, submitted=time.time(),
            secrets=tuple((key, seal(target.key, value)) for key, value in wishes.secrets.items()),
            trace=wishes.trace,
        )  # fmt: skip
        return await self._put(job)

    async def _put(self, job: Job) -> Ref:
        at = (job.client, job.pool, job.id)
        try:
            data = encode(job)
        except UnicodeEncodeError as error:
            raise UsageError(
                "a name of the job is no UTF-8", hint="a pool takes no other"
            ) from error
        if len(data) > _LARGEST:
            raise UsageError(
                f"the job takes {len(data)} bytes, and a pool takes {_LARGEST} at most",
                hint="secrets and arguments go in one message: large ones are files of the context",
            )
        signed = sign(data, self._credentials)
        if job.attached:
            await self._engine.put(names.job(*at, "lease"), b"", ttl=LEASE)
        state = State(submitted=job.submitted, title=job.title, hint=job.hint, urgent=job.urgent)
        for part, message in (("spec", signed), ("state", state)):
            try:
                await self._engine.put(names.job(*at, part), encode(message), expect=0)
            except Conflict:
                continue  # an earlier try came through, and only its answer was lost
        await self._engine.put(
            names.ticket(job.client, job.pool, urgent=job.urgent), encode(ticket_of(job)),
            once=job.id,
        )  # fmt: skip
        return Ref(job.pool, job.id)

    @asynccontextmanager
    async def attached(self, refs: Iterable[Ref]) -> AsyncIterator[None]:
        """Tell workers that their client is there, as long as the context lasts; then cancel what has
        not ended.
        """
        held = list(refs)

        async def beat() -> None:
            while True:
                for ref in held:
                    try:
                        await self._engine.put(self._job(ref, "lease"), b"", ttl=LEASE)
                    except ClusterError:
                        continue
                await anyio.sleep(LEASE / 3)

        async with together() as tasks:
            tasks.start_soon(beat)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
                with anyio.move_on_after(10, shield=True):
                    for ref in held:
                        await self.cancel(ref, "the client that it was attached to is gone")

    def _job(self, ref: Ref, part: str) -> str:
        return names.job(self.name, ref.pool, ref.id, part)

    async def state(self, ref: Ref) -> State:
        """Where a job is. UsageError if there is none of that name."""
        return (await self._state(ref))[0]

    async def _state(self, ref: Ref) -> tuple[State, int]:
        found = await self._engine.known(names.jobs_of(self.name), self._job(ref, "state"))
        if found is None:
            raise UsageError(f"there is no job {ref.id!r}", hint="`obuilder job ls` lists jobs")
        return decode(found.data, State), found.seq

    async def job(self, ref: Ref) -> Job:
        """A job as it was submitted. UsageError."""
        found = await self._engine.known(names.jobs_of(self.name), self._job(ref, "spec"))
        if found is None:
            raise UsageError(f"there is no job {ref.id!r}", hint="`obuilder job ls` lists jobs")
        return decode(decode(found.data, Signed).job, Job)

    async def list(
        self, *, pool: str = "*", phases: Iterable[Phase] = (), hint: str = "", since: float = 0.0
    ) -> list[Row]:
        """Jobs, the newest first; of these phases, if any are given; submitted since (seconds since
        1970).
        """
        chosen = set(phases)
        subject = names.job(self.name, pool, "*", "state")
        rows = []
        for found in await self._engine.each(names.jobs_of(self.name), subject):
            state = decode(found.data, State)
            if (
                (not chosen or state.phase in chosen)
                and (not hint or state.hint == hint)
                and state.submitted >= since
            ):
                _, _, where, name, _ = found.subject.split(".")
                rows.append(Row(where, name, state))
        return sorted(rows, key=lambda row: row.id, reverse=True)

    async def find(self, prefix: str) -> Ref:
        """The one job whose name starts, or ends, so; the newest for nothing. UsageError."""
        rows = await self.list()
        found = [row for row in rows if row.id.startswith(prefix) or row.id.endswith(prefix)]
        if not found:
            what = f"there is no job {prefix!r}" if prefix else "there are no jobs"
            raise UsageError(what, hint="`obuilder job ls` lists jobs")
        if len(found) > 1 and prefix:
            raise UsageError(f"more than one job fits {prefix!r}", hint="give more of it")
        return Ref(found[0].pool, found[0].id)

    def follow(
        self, ref: Ref, *, offset: int = 0, live: bool = True
    ) -> AbstractAsyncContextManager[AsyncIterator[logs.Piece]]:
        """The log of a job; see `logs.follow`."""
        return logs.follow(self._engine, self.name, ref.pool, ref.id, offset=offset, live=live)

    async def wait(self, ref: Ref) -> State:
        """Where a job is once it has ended. UsageError."""
        await self.state(ref)
        stream = names.jobs_of(self.name)
        async with self._engine.watch(stream, self._job(ref, "state")) as states:
            async for found in states:
                state = decode(found.data, State) if found.data else None
                if state is None or state.phase in ENDED:
                    break
        return await self.state(ref)

    async def result(self, ref: Ref) -> Outcome:
        """What came of a job, once it has ended. What it failed with is raised as an error."""
        state = await self.wait(ref)
        outcome = state.outcome or Outcome(
            code=state.phase, message=f"the job was {state.phase}", exit_status=6
        )
        if state.phase != "done":
            raise error_of(outcome, state.phase)
        return outcome

    async def cancel(self, ref: Ref, reason: str = "") -> bool:
        """Ask for a job not to be done, or to be stopped. Whether it had not ended yet."""
        state, _ = await self._state(ref)
        if state.phase in ENDED:
            return False
        cancel = Cancel(reason=reason, at=time.time())
        await self._engine.put(self._job(ref, "cancel"), encode(cancel))
        while True:
            state, seq = await self._state(ref)
            if state.phase != "queued":
                return True
            message = f"cancelled: {reason}" if reason else "cancelled"
            ended = msgspec.structs.replace(
                state, phase="cancelled", ended=time.time(), log_end=0,
                outcome=Outcome(code="cancelled", message=message, exit_status=130),
            )  # fmt: skip
            try:
                await self._engine.put(self._job(ref, "state"), encode(ended), expect=seq)
            except Conflict:
                continue
            return True

    async def rerun(self, ref: Ref) -> Ref:
        """Do a job again, with the same files and secrets. UsageError."""
        before = await self.job(ref)
        return await self._put(
            msgspec.structs.replace(
                before,
                id=names.new_job(),
                rerun=before.id,
                submitted=time.time(),
                attached=False,
                trace="",
            )
        )

    # --- as a local builder ----------------------------------------------------------------------

    async def build(
        self,
        spec: Spec,
        context: str | Contexts,
        *,
        pool: str,
        secrets: Mapping[str, bytes] | None = None,
        sink: events.Sink | None = None,
        fresh: bool = False,
        name: str = "",
        images: Images | None = None,
        limits: Limits | None = None,
        wishes: Wishes = Wishes(),  # noqa: B008 - frozen
    ) -> Result:
        """Build on a pool as `Builder.build` does here: the same events, result and errors.

        Cancelling it cancels the job.
        """
        began = time.monotonic()
        files = await self.send(spec, context, sink=sink)
        work = Build(
            text=print_spec(spec),
            file=name or "obuilder.spec",
            fresh=fresh,
            limits=limits or Limits(),
        )
        if images is not None:
            work = msgspec.structs.replace(
                work, pull=images.pull, locked=tuple(images.lock.images.items() if images.lock else ()),
                platform=None if images.platform is None else str(images.platform),
            )  # fmt: skip
        wishes = msgspec.structs.replace(
            wishes, hint=wishes.hint or hints.of_spec(spec, files), attached=True,
            secrets=secrets or wishes.secrets,
        )  # fmt: skip
        ref = await self.submit(work, pool, context=files, wishes=wishes)
        async with self.attached([ref]), self.follow(ref) as pieces:
            async for piece in pieces:
                for event in piece.events if sink is not None else ():
                    sink(event)  # type: ignore[misc] # not None here
            outcome = await self.result(ref)
        if outcome.result is None:
            raise ClusterError("the job has no result, as no build")
        seconds = time.monotonic() - began
        return Result(outcome.result, cached=outcome.cached, ran=outcome.ran, seconds=seconds)

    def stream(
        self, spec: Spec, context: str | Contexts, *, pool: str,
        secrets: Mapping[str, bytes] | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[events.Event]]:  # fmt: skip
        """A build on a pool as the stream of its events, as `Builder.stream` is one of those here."""
        return streamed(
            lambda sink: self.build(spec, context, pool=pool, secrets=secrets, sink=sink)
        )


def ticket_of(job: Job) -> Ticket:
    """A job's place in the queue."""
    return Ticket(
        id=job.id, client=job.client, hint=job.hint, urgent=job.urgent, slots=job.slots,
        memory=job.memory, cpus=job.cpus,
    )  # fmt: skip


def error_of(outcome: Outcome, phase: Phase) -> ObuilderError:
    """The error that a job ended with, of the class that it had on the worker."""
    kinds: list[type[ObuilderError]] = [errors.ObuilderError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    made = next((kind for kind in kinds if kind.code == outcome.code), errors.ClusterError)
    error = made(outcome.message or f"the job was {phase}")
    if outcome.exit_status:
        error.exit_status = outcome.exit_status
    if made is ClusterError and outcome.code:
        error.code = outcome.code
    return error
