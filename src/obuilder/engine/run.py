"""Running a plan: one task for each step that is needed, each as soon as its needs are ready.

A step whose key is in the index is only shown. Where the definition of a step is new but its
content is not (a stage rebuilt to the same files), the content-based key finds the old result.
"""

import time
from collections.abc import Collection, Mapping

import anyio

from obuilder import events
from obuilder.backends.protocols import Draft
from obuilder.engine.actions import Workshop, check_platforms
from obuilder.engine.attempt import Attempt
from obuilder.engine.cache_use import CacheUse, Unfetched
from obuilder.engine.cached import started
from obuilder.engine.index import Index, Record
from obuilder.engine.inflight import InFlight, Making
from obuilder.engine.inputs import Context
from obuilder.engine.locks import KeyLock
from obuilder.engine.logs import LogFollower, LogWriter, Mask, replay_log
from obuilder.engine.recover import adopt
from obuilder.engine.result import Result
from obuilder.errors import ObuilderError, of_disk
from obuilder.plan.keys import effective
from obuilder.plan.model import (
    AddAction,
    CopyAction,
    LayerAction,
    MkdirAction,
    Plan,
    RunAction,
    Step,
)
from obuilder.system.picking import NOTHING, Selection, pick
from obuilder.system.tree import Manifest, scan
from obuilder.values import Key

_POLL = 0.03


class Runner:
    """One build of one plan. What the steps `passing` come to is not kept after it."""

    def __init__(
        self,
        workshop: Workshop,
        index: Index,
        inflight: InFlight,
        width: anyio.CapacityLimiter,
        holder: str,
        plan: Plan,
        context: Context,
        secrets: Mapping[str, bytes],
        sink: events.Sink,
        *,
        keep_failed: bool,
        passing: Collection[Key] = (),
        caches: CacheUse | None = None,
    ) -> None:
        self._workshop, self._index, self._inflight = workshop, index, inflight
        self._width, self._holder, self._plan = width, holder, plan
        self._context, self._secrets, self._sink = context, secrets, sink
        self._keep_failed, self._passing, self._caches = keep_failed, passing, caches
        self._directory = workshop.store.directory
        self._ready = {key: anyio.Event() for key in plan.steps}
        self._actual: dict[Key, Key] = {}
        self._manifests: dict[Key, Manifest | Selection] = {}
        self._ran = 0

    async def run(self) -> Result:
        """Make the plan's result. What failed first is raised; the rest is cancelled."""
        began = time.monotonic()
        while not await self._run():
            pass  # what was known to be in another place is not: once more, without it
        for heading in self._plan.tail:
            self._sink(events.Note(text=heading))
        return Result(
            key=self._actual[self._plan.result],
            cached=len(self._plan.steps) - self._ran,
            ran=self._ran,
            seconds=time.monotonic() - began,
        )

    async def _run(self) -> bool:
        """Make it of what is here and in other places. False if there it is not."""
        found = self._index.find(self._plan.steps, holders=[self._holder])
        remote = await self._caches.look(found) if self._caches is not None else {}
        known = {**remote, **found}
        cached = self._plan.cached(known)
        self._use(known)
        self._sink(started(self._plan, cached))
        to_run = self._plan.steps.keys() - cached
        check_platforms(self._plan, to_run)
        needed = {need for key in to_run for need in self._plan.steps[key].needs}
        try:
            async with anyio.create_task_group() as tasks:
                for step in self._plan.steps.values():
                    if step.key in needed & remote.keys():
                        tasks.start_soon(self._brought, step, remote[step.key])
                    elif step.key in cached:
                        self._shown(step, known.get(step.key))
                    else:
                        tasks.start_soon(self._step, step)
        except BaseExceptionGroup as group:
            error = first_error(group)
            if isinstance(error, Unfetched):
                return False
            raise error from None
        return True

    def results(self, *, passing: bool) -> list[Key]:
        """The results that the build came by, and does not keep or does."""
        return [key for step, key in self._actual.items() if (step in self._passing) == passing]

    def _use(self, results: Mapping[Key, Key]) -> None:
        """Note what steps come to. What is kept is known for that at once: the build may fail."""
        self._actual |= results
        self._index.touch(key for step, key in results.items() if step not in self._passing)

    def _shown(self, step: Step, key: Key | None) -> None:
        self._ready[step.key].set()
        self._begin(step, key or step.key)
        if key is not None:
            self._replay(key)
        place = self._caches.place(key) if self._caches is not None and key is not None else ""
        if key is not None and not place:
            self._offer(step, key)
        self._sink(events.StepCached(key=key or step.key, place=place))

    async def _brought(self, step: Step, key: Key) -> None:
        """A step whose result is in another place, and needed here."""
        assert self._caches is not None
        self._begin(step, key)
        place = self._caches.place(key)
        await self._caches.bring(key)
        self._replay(key)
        self._sink(events.StepCached(key=key, place=place))
        self._offer(step, key)
        self._ready[step.key].set()

    def _offer(self, step: Step, key: Key) -> None:
        if self._caches is not None:
            self._caches.offer(step, key)

    def _begin(self, step: Step, key: Key) -> None:
        self._sink(
            events.StepStarted(key=key, stage=step.stage, heading=step.heading, notes=step.notes)
        )

    def _replay(self, key: Key) -> None:
        replay_log(self._directory, key, lambda data: self._sink(events.Output(key, data)))

    async def _step(self, step: Step) -> None:
        for need in step.needs:
            await self._ready[need].wait()
        base = None if step.base is None else self._actual[step.base]
        key = effective(step, base, await self._content(step), self._actual)
        self._begin(step, key)
        began = time.monotonic()
        here = bool(self._index.find([key], holders=[self._holder]))
        if not here and self._caches is not None and key != step.key:
            here = await self._caches.take(step, key)
        if here:
            self._replay(key)
            cached = True
        else:
            cached = await self._make(step, key, base, began)
        self._index.alias(step.key, key)
        self._use({step.key: key})
        self._ready[step.key].set()
        self._offer(step, key)
        if cached:
            self._sink(events.StepCached(key=key))
        else:
            self._ran += 1
            self._sink(events.StepDone(key=key, seconds=time.monotonic() - began))

    async def _make(self, step: Step, key: Key, base: Key | None, began: float) -> bool:
        async def make(making: Making) -> None:
            try:
                await self._own(step, key, base, making)
            except OSError as error:
                raise of_disk("the step can't be made", error) from error

        def ended(code: str, message: str) -> None:
            seconds = time.monotonic() - began
            self._sink(events.StepEnded(key=key, code=code, message=message, seconds=seconds))

        def heard(data: bytes | tuple[int, int] | None) -> None:
            if data is None:
                self._begin(step, key)
            elif isinstance(data, tuple):
                self._sink(events.Progress(key, *data))
            else:
                self._sink(events.Output(key, data))

        try:
            making = await self._inflight.share(key, make, heard, self._holder)
        except ObuilderError as error:
            ended(error.code, error.message)
            raise
        except anyio.get_cancelled_exc_class():
            ended("cancelled", "cancelled")
            raise
        return making.cached

    async def _content(self, step: Step) -> str | None:
        """The digest of what a copy copies; None for other actions.

        A result never changes, so what was found in one is remembered for as long as it lives.
        """
        action = step.action
        if not isinstance(action, CopyAction | AddAction):
            return None
        if action.stage is None:
            return action.manifest
        source = self._actual[action.stage]
        words: tuple[object, ...] = (action.src, action.into, action.exclude)
        if isinstance(action, AddAction):
            words = ("add", action.src, action.exclude, action.parents, action.user is None)
        selection = repr(words).encode()  # names of any bytes
        known = self._index.manifest(source, selection)
        if known is None:
            manifest = self._manifests[step.key] = await self._scanned(step, action)
            known = manifest.digest
            self._index.put_manifest(source, selection, known)
        return known

    async def _manifest(self, step: Step, action: CopyAction | AddAction) -> Manifest | Selection:
        """What a copy or an add takes from where it copies from."""
        if action.stage is None and isinstance(action, CopyAction):
            return self._context.at(step.op)
        if action.stage is None:
            return self._context.selected(step.op)[1] if action.src else NOTHING
        return self._manifests.pop(step.key, None) or await self._scanned(step, action)

    async def _scanned(self, step: Step, action: CopyAction | AddAction) -> Manifest | Selection:
        store = self._workshop.store
        only = action.src if isinstance(action, CopyAction) else None
        async with (
            store.view(self._actual[Key(str(action.stage))]) as root,
            store.files(root, only=only) as path,
        ):
            owners = store.idmap if action.user is None else None
            if isinstance(action, AddAction):
                return await anyio.to_thread.run_sync(
                    lambda: pick(
                        path, action.src, exclude=action.exclude, ignored=None,
                        parents=action.parents, stats=None, idmap=owners,
                    )
                )  # fmt: skip
            return await anyio.to_thread.run_sync(
                lambda: scan(
                    path, action.src, into=action.into, dst=action.dst,
                    exclude=action.exclude, ignored=None, stats=None,
                )
            )  # fmt: skip

    async def _own(self, step: Step, key: Key, base: Key | None, making: Making) -> None:
        """Make `key`, or follow the process that is making it, as the holder of its lock."""
        lock = KeyLock(self._directory, key)
        follower = LogFollower(self._directory, key, making.emit, making.again)
        try:
            if not lock.try_acquire():
                self._index.lease(key, making.holders)  # who makes it may not keep it
                while not lock.try_acquire():
                    follower.poll()
                    await anyio.sleep(_POLL)
            if await self._found(key, making):
                follower.result()
                making.cached = True
                return
            follower.close()
            async with self._width:
                await self._attempt(step, key, base, making)
        finally:
            follower.close()
            lock.release()

    async def _found(self, key: Key, making: Making) -> bool:
        """Whether the key has a result by now, the index's or one that only the store knows of."""
        if self._index.find([key], holders=making.holders):
            return True
        store = self._workshop.store
        if await store.contains(key) and await adopt(store, self._index, key):
            self._index.lease(key, making.holders)
            return True
        return False

    async def _attempt(self, step: Step, key: Key, base: Key | None, making: Making) -> None:
        began, now, action = time.monotonic(), time.time(), step.action
        secrets = action.secrets if isinstance(action, RunAction) else ()
        known = [self._secrets[secret.id] for secret in secrets if secret.id in self._secrets]
        log = LogWriter(
            self._directory, key, making.emit,
            mask=Mask(known), limit=self._workshop.limits(action).log,
        )  # fmt: skip

        async def work(draft: Draft) -> None:
            if isinstance(action, LayerAction):
                await self._workshop.layer(action, draft, log.write, making.progress)
            elif isinstance(action, CopyAction | AddAction):
                found = await self._manifest(step, action)
                await self._workshop.copy(action, draft, found, self._source(step, action))
            elif isinstance(action, MkdirAction):
                await self._workshop.mkdir(action, draft)
            else:
                await self._workshop.run(
                    action, draft, self._secrets, log.write,
                    key=key, heading=step.heading, tail=lambda: log.tail,
                    results=self._actual,
                )  # fmt: skip

        record = Record(
            key=key, kind=_kind(step), heading=step.heading, stage=step.stage, base=base,
            created=now, used=0.0 if step.key in self._passing else now, seconds=0.0,
        )  # fmt: skip
        attempt = Attempt(
            self._workshop.store, self._index, log, record,
            holders=making.holders, keep_failed=self._keep_failed,
        )  # fmt: skip
        await attempt.make(work, lambda: time.monotonic() - began)

    def _source(self, step: Step, action: CopyAction | AddAction) -> str | Key:
        """The result, or the directory, that a copy or an add copies from."""
        if action.stage is not None:
            return self._actual[action.stage]
        if isinstance(action, AddAction) and action.src:
            return self._context.selected(step.op)[0]
        return self._context.directory


def _kind(step: Step) -> str:
    if isinstance(step.action, LayerAction):
        return "layer"
    return "run" if isinstance(step.action, RunAction) else "copy"


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group that is not the cancelling it caused."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return first_error(error)
        if isinstance(error, Exception):
            return error
    return group.exceptions[0]
