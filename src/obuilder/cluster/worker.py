"""A worker: takes jobs of its pool as long as it has room, and is well, and is not paused.

It connects outwards alone, and to nothing but the cluster. What it has to know it reads there; what it
decides it writes there by compare-and-set. It may be killed at any moment: its jobs run elsewhere.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import get_args

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct

from obuilder import __version__
from obuilder.cluster import names
from obuilder.cluster.credentials import Credentials
from obuilder.cluster.engine import Delivery, Engine, Missing
from obuilder.cluster.health import Care, Guard
from obuilder.cluster.jobs import Shop
from obuilder.cluster.journal import Journal
from obuilder.cluster.logs import CAP
from obuilder.cluster.messages import Answer, Paused, Presence, Reason, decode, encode
from obuilder.cluster.metrics import Counts, text
from obuilder.cluster.presence import Name
from obuilder.cluster.queue import Holding, Queue, Taken
from obuilder.cluster.running import Run
from obuilder.engine.run import first_error
from obuilder.errors import ClusterError, Incompatible, Refused, UsageError
from obuilder.oci.platforms import host_platform, normalised, parse_platform
from obuilder.system.process import run as run_program

_HELD = 10.0
_TIDY = 600.0
_HOOK = 600.0
"""Seconds that the command before an update may take."""
_LAST = 3.0
"""Seconds for which one who has to end, and has no job, waits for the cluster."""
_REASONS: tuple[Reason, ...] = get_args(Reason)


class Means(Struct, frozen=True, kw_only=True):
    """What a worker is and has, besides its builder."""

    capacity: int = 10
    """Slots: jobs at a time, unless they ask for more than one."""
    memory: int | None = None
    cpus: float | None = None
    host: str = ""
    log_cap: int = CAP
    update: tuple[str, ...] = ()
    """The command that is run before a restart for an update."""


class Worker:
    """One worker. `drain` and `stop` may be called while `run` runs."""

    def __init__(
        self,
        engine: Engine,
        credentials: Credentials,
        shop: Shop,
        *,
        means: Means = Means(),  # noqa: B008 - frozen
        care: Care = Care(),  # noqa: B008 - frozen
        tell: Callable[[str], None] = lambda _: None,
        journal: str | None = None,
    ) -> None:
        """`journal`: a directory that this one has to itself, for the notes of `Journal`."""
        self._engine, self._credentials, self._shop, self._means = engine, credentials, shop, means
        self._tell = tell
        self.pool, self.name = credentials.pool, credentials.name
        self.session = os.urandom(8).hex()
        self._since = time.time()
        self._paused: dict[Reason, str] = {}
        self._runs: dict[str, Run] = {}
        self._holding: Holding | None = None
        self._counts = Counts()
        self._sandbox = ""
        named = shop.builder.settings.store
        self._store = named.partition(":")[0] if named else ""
        self._tasks: TaskGroup | None = None
        self._ending = False
        self._looking: anyio.CancelScope | None = None
        self._guard = Guard(shop.builder, care, self.pause)
        self._queue = Queue(engine, self.pool, self.name, self.session)
        self._queue.is_running = self._runs.__contains__
        self._queue.adopt = self._adopt
        self._journal = Journal(journal, self.session) if journal is not None else None
        self._name = Name(engine, self.pool, self.name, self.session)

    # --- what others see -------------------------------------------------------------------------

    def presence(self) -> Presence:
        """The worker as it is now."""
        means = self._means
        rows = tuple(run.row for run in self._runs.values())
        return Presence(
            pool=self.pool, name=self.name, session=self.session, capacity=means.capacity,
            in_use=sum(row.slots for row in rows), running=rows, memory=means.memory,
            cpus=means.cpus, platform=str(host_platform()), version=__version__,
            paused=tuple((why, self._paused[why]) for why in _REASONS if why in self._paused),
            store=self._store, sandbox=self._sandbox, host=means.host,
            free=self._guard.free, total=self._guard.total, since=self._since, at=time.time(),
            load=os.getloadavg()[0], accepted=self._counts.accepted, hits=self._counts.hits,
            misses=self._counts.misses,
        )  # fmt: skip

    def pause(self, why: Reason, text: str | None) -> None:
        """Take no jobs, for a reason, with a line of text; None: for that reason no more."""
        before = self._paused.get(why)
        if text is None:
            self._paused.pop(why, None)
        else:
            self._paused[why] = text
        if before != self._paused.get(why):
            self._tell(f"paused ({why}): {text}" if text is not None else f"not paused for {why}")
            self._changed()

    def _changed(self) -> None:
        self._name.changed()
        self._queue.wake()

    # --- from begin to end -----------------------------------------------------------------------

    async def run(self) -> None:
        """Work until it is drained or stopped. Refused, NoSuchPool, UsageError, BackendUnavailable."""
        await self._check()
        stream, subject = names.state_of(self.pool), names.pause(self.pool, self.name)
        paused = await self._engine.last(stream, subject)
        self._pause_as(paused.data if paused is not None else b"")
        dead = self._journal.dead if self._journal is not None else ()
        await self._name.take(self.presence, self._tell, dead=dead)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._engine.on_reconnect(self._reconnected)
                for task in (
                    self._watch_pause, self._keep_holding,
                    self._guard.watch_health, self._guard.watch_space, self._bury, self._tidy,
                ):  # fmt: skip
                    tasks.start_soon(task)
                tasks.start_soon(self._name.keep, self.presence)
                told, asked = (f(self.pool, self.name) for f in (names.control, names.question))
                async with (
                    self._engine.serve(told, self._told),
                    self._engine.serve(asked, self._asked),
                    self._queue.open(),
                ):
                    self._tell(f"{self.name} takes jobs of the pool {self.pool}")
                    with anyio.CancelScope() as self._looking:
                        await self._loop()
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            await self._name.leave()

    async def _bury(self) -> None:
        """Let the jobs go that a killed session had: they are done by others now, and not in half a
        minute.
        """
        for job, receipt in self._journal.left.items() if self._journal is not None else ():
            self._drop(job)  # before it may be taken again, by this one too
            with suppress(ClusterError):
                await self._engine.let_go(receipt)
                self._tell(f"job {job} was lost with the worker that was here: it runs again")

    async def _check(self) -> None:
        """That this machine is of the pool's kind, and can build."""
        pool, here = await self._queue.pool(), host_platform()
        if pool.platform and normalised(parse_platform(pool.platform)) != normalised(here):
            raise UsageError(
                f"the pool {self.pool} is for {pool.platform}, and this machine is {here}",
                hint="get credentials for a pool of this kind of machine",
            )
        self._sandbox = await self._shop.builder.sandbox.describe()
        wrong = await self._guard.check()
        if wrong is not None:
            raise ClusterError(f"this worker can't build: {wrong}", hint="see obuilder healthcheck")

    async def _loop(self) -> None:
        while True:
            if self._engine.closed:
                raise Refused("the cluster has ended this connection", hint="was it revoked?")
            if self._ending and not self._runs:
                return
            try:
                worked = await self._step()
            except Missing as error:
                self._tell(error.message)
                worked = False
            except Refused:
                raise
            except ClusterError as error:
                self._tell(f"the cluster does not answer: {error.message}")
                await anyio.sleep(1)
                continue
            if not worked:
                await self._queue.wait()

    async def _step(self) -> bool:
        """Take one job, if there is room and one waits. Whether to look for more at once."""
        if self._paused:
            await self._queue.full()
            await self._let_go()
            return False
        me, holding = self.presence(), self._holding
        found: Taken | Holding | None
        if holding is not None:
            if holding.slots > me.capacity - me.in_use:
                return False
            self._holding = None
            found = await self._queue.resume(holding, me)
        elif me.in_use < me.capacity:
            found = await self._queue.take(me)
        else:
            await self._queue.full()
            return False
        if found is not None and self._paused:  # since a moment ago
            await found.delivery.back()
            if isinstance(found, Taken):
                await self._queue.ended(found, 0.0, well=False, useful=False)
        elif isinstance(found, Taken):
            self._start(found)
        elif isinstance(found, Holding):
            self._holding = found
            await self._queue.full()
        return found is not None or holding is not None

    def _start(self, taken: Taken) -> None:
        run = Run(
            self._engine, self._credentials, self._shop, taken, self.session, tell=self._tell,
            log_cap=self._means.log_cap,
        )  # fmt: skip
        self._runs[taken.ticket.id] = run
        self._hold(taken.ticket.id, taken.delivery)
        self._counts.accepted += 1
        self._changed()
        assert self._tasks is not None
        self._tasks.start_soon(self._do, run, taken)

    async def _do(self, run: Run, taken: Taken) -> None:
        began = time.monotonic()
        try:
            await run.run()
        finally:
            del self._runs[taken.ticket.id]
            self._drop(taken.ticket.id)
            self._changed()
            self._look_no_more()
        seconds = time.monotonic() - began
        self._counts.ended(run.phase, seconds, run.outcome)
        # Who failed in a step has made all those before; who never began has made nothing.
        useful = run.phase == "done" or run.outcome.code in ("step-failed", "limit-hit")
        well = run.phase == "done"
        await self._queue.ended(taken, seconds, well=well, useful=useful)

    def _adopt(self, job: str, delivery: Delivery) -> None:
        self._runs[job].adopt(delivery)
        self._hold(job, delivery)

    def _hold(self, job: str, delivery: Delivery) -> None:
        """Note a ticket. Who can't only waits longer if it is killed."""
        if self._journal is not None:
            with suppress(OSError):
                self._journal.hold(job, delivery.receipt)

    def _drop(self, job: str) -> None:
        if self._journal is not None:
            with suppress(OSError):
                self._journal.drop(job)

    # --- what is heard ---------------------------------------------------------------------------

    def _reconnected(self) -> None:
        self._changed()
        for run in self._runs.values():
            run.poke()

    async def _watch_pause(self) -> None:
        """Heed what administrators say."""
        stream, subject = names.state_of(self.pool), names.pause(self.pool, self.name)
        while True:
            with suppress(ClusterError):
                async with self._engine.watch(stream, subject) as records:
                    async for record in records:
                        self._pause_as(record.data)
            await anyio.sleep(1)

    def _pause_as(self, data: bytes) -> None:
        if not data:
            self.pause("admin", None)
            return
        try:
            found = decode(data, Paused)
        except Incompatible:
            found = Paused(reason="an administrator said so")
        self.pause("admin", found.reason or f"by {found.by or 'an administrator'}")

    async def _keep_holding(self) -> None:
        """Keep the ticket of a job that waits for room here."""
        while True:
            if self._holding is not None:
                with suppress(ClusterError):
                    await self._holding.delivery.beat()
            await anyio.sleep(_HELD)

    async def _let_go(self) -> None:
        holding, self._holding = self._holding, None
        if holding is not None:
            await holding.delivery.back()

    async def _tidy(self) -> None:
        """Keep what jobs leave behind besides results from growing for ever."""
        while True:
            with suppress(OSError):  # told by what needs the disk
                await self._shop.tidy(scarce="disk" in self._paused)
            await anyio.sleep(_TIDY)

    # --- ending ----------------------------------------------------------------------------------

    def drain(self, text: str = "it was told to stop") -> None:
        """Take no more jobs, and end when those that run have."""
        self.pause("shutdown", text)
        self._ending = True
        if self._tasks is not None:
            self._tasks.start_soon(self._let_go_quietly)
        self._queue.wake()
        self._look_no_more()

    def _look_no_more(self) -> None:
        """Who has to end, and has no job, doesn't ask a cluster that is away for long."""
        if self._ending and not self._runs and self._looking is not None:
            self._looking.deadline = anyio.current_time() + _LAST

    async def _let_go_quietly(self) -> None:
        with suppress(ClusterError):
            await self._let_go()

    def stop(self) -> None:
        """End now: the jobs that run are given back, for others to do."""
        self.drain()
        for run in self._runs.values():
            run.stop("back")

    async def _asked(self, subject: str, _: bytes) -> bytes:
        """Answer who looks."""
        verb = subject.rpartition(".")[2]
        if verb == "ping":
            answer = Answer(text=__version__)
        elif verb == "metrics":
            answer = Answer(text=text(self.presence(), self._counts, self._guard))
        else:
            answer = Answer(ok=False, text=f"a worker knows no answer to {verb!r}")
        return encode(answer)

    async def _told(self, subject: str, _: bytes) -> bytes:
        """Do what an administrator says."""
        verb = subject.rpartition(".")[2]
        if verb == "shutdown":
            self.drain("an administrator ended it")
            answer = Answer(text="it ends when its jobs have")
        elif verb == "update":
            answer = await self._update()
        else:
            answer = Answer(ok=False, text=f"a worker knows nothing of {verb!r}")
        return encode(answer)

    async def _update(self) -> Answer:
        """Prepare for another version while jobs go on, then end, to be started again."""
        if self._means.update:
            said = bytearray()
            try:
                ended = await run_program(self._means.update, output=said.extend, timeout=_HOOK)
            except OSError as error:
                return Answer(ok=False, text=f"can't run {self._means.update[0]}: {error.strerror}")
            if ended.timed_out or ended.status != 0:
                last = said.decode(errors="replace").strip().rpartition("\n")[2]
                how = "took too long" if ended.timed_out else f"ended with {ended.status}"
                return Answer(ok=False, text=f"the update command {how}: {last}")
        self.drain("an update restarts it")
        return Answer(text="it restarts when its jobs have ended")
