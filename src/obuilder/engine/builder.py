"""The builder: one open store, one sandbox, any number of builds at the same time.

async with Builder.open(Settings(store="overlayfs:/path")) as builder:
    result = await builder.build(spec, context)
"""

import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import BinaryIO

import anyio
import msgspec

from obuilder import events
from obuilder.backends.fetchers import Sources
from obuilder.backends.protocols import Command, Root, Sandbox, Store, Usage
from obuilder.backends.registry import check_pair, opened
from obuilder.engine import prune as pruning
from obuilder.engine.actions import Workshop, check_secrets
from obuilder.engine.cache_use import CacheUse
from obuilder.engine.cached import make_plan, remember, remember_finals
from obuilder.engine.index import Index, Record
from obuilder.engine.inflight import InFlight
from obuilder.engine.inputs import Context, Contexts, IndexStats, Resolver, contexts
from obuilder.engine.layers import Layers
from obuilder.engine.logs import read_log
from obuilder.engine.recover import noticing_loss, open_index, recover
from obuilder.engine.remote_cache import Caches, Fetched
from obuilder.engine.reserve import give_up_reserve, keep_reserve
from obuilder.engine.result import Result
from obuilder.engine.run import Runner, first_error
from obuilder.engine.settings import Images, Settings
from obuilder.engine.streaming import streamed
from obuilder.engine.transfer import Receiver, pack, send_to, unpack_into
from obuilder.engine.volumes import Volumes
from obuilder.errors import ObuilderError, StoreError, UsageError
from obuilder.plan.lower import lower
from obuilder.plan.model import Base, Inputs, LayerAction, Plan
from obuilder.spec.image import DEFAULT_PATH
from obuilder.spec.model import Spec
from obuilder.values import ROOT, Key, Limits

_SYNC_EVERY = 5.0
"""Seconds after which what long builds have made so far survives a power cut."""


def _ignore(_: events.Event) -> None:
    """The sink of those who want no events."""


class Builder:
    """Builds specs. Made by `open` or `over`; every method may run at the same time as any other."""

    def __init__(
        self, settings: Settings, workshop: Workshop, index: Index, inflight: InFlight
    ) -> None:
        self.settings = settings
        self.store: Store = workshop.store
        self.sandbox: Sandbox = workshop.sandbox
        self._workshop, self._index, self._inflight = workshop, index, inflight
        self._caches = Caches(workshop, index, settings)
        self._builds = itertools.count()
        self._width = anyio.CapacityLimiter(settings.width)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, *, to_delete: bool = False) -> AsyncIterator["Builder"]:
        """Open the store and the sandbox that `settings` name; put right what dead builders left.

        The process enters a mount namespace of its own (an ordinary user's a user namespace as
        well), so call this before starting threads. `to_delete` opens a store whose disk is full
        as well, to make room. BackendUnavailable, StoreError, UsageError.
        """
        if to_delete:
            give_up_reserve(settings.directory)
        async with (
            opened(settings.named_store, settings.sandbox, settings) as (store, sandbox),
            cls.over(store, sandbox, settings) as builder,
        ):
            if not to_delete:
                keep_reserve(store.directory)
            yield builder

    @classmethod
    @asynccontextmanager
    async def over(
        cls,
        store: Store,
        sandbox: Sandbox,
        settings: Settings = Settings(),  # noqa: B008 - frozen
    ) -> AsyncIterator["Builder"]:
        """A builder over a store and a sandbox that are open already, and stay so.

        Of `settings` only what concerns the engine is looked at. BackendMismatch, StoreError.
        """
        check_pair(store, sandbox)
        index = open_index(store.directory)
        try:
            await recover(store, sandbox, index)
            async with anyio.create_task_group() as tasks:
                sources = Sources(
                    pull=settings.images.pull,
                    registries=settings.registries,
                    directory=store.directory,
                    tasks=tasks,
                )
                workshop = Workshop(
                    store, sandbox, Volumes(store, index), settings.limits, sources,
                    insecure=settings.insecure, agents=dict(settings.agents),
                )  # fmt: skip
                builder = cls(settings, workshop, index, InFlight(tasks))
                tasks.start_soon(builder._sync_often)
                try:
                    yield builder
                finally:
                    tasks.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        await builder._caches.close()
                        await workshop.close()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            index.close()

    async def plan(
        self, spec: Spec, context: str | Contexts, *, images: Images | None = None
    ) -> tuple[Plan, Inputs, dict[Key, Key]]:
        """The plan of a build, what went into it, and which of its steps have results."""
        plan, inputs, _ = await self._planned(spec, context, images)
        return plan, inputs, self._index.find(plan.steps, remote=True)

    async def _planned(
        self, spec: Spec, where: str | Contexts, images: Images | None
    ) -> tuple[Plan, Inputs, Context]:
        stats = IndexStats(self._index, os.path.abspath(contexts(where).directory))
        context = Context(where, stats)
        try:
            domain = self.sandbox.features.domain
            plan, inputs = await make_plan(spec, context, self._resolver(images), domain=domain)
        finally:
            stats.flush()
        return plan, inputs, context

    def _resolver(self, images: Images | None) -> Resolver:
        return Resolver(self._index, images or self.settings.images, self.settings.registries)

    async def build(
        self,
        spec: Spec,
        context: str | Contexts,
        *,
        secrets: Mapping[str, bytes] | None = None,
        sink: events.Sink = _ignore,
        fresh: bool = False,
        name: str = "",
        images: Images | None = None,
        limits: Limits | None = None,
    ) -> Result:
        """Build `spec` with files from `context`. Every ObuilderError; cancelling is cancelling.

        `fresh`: run every step again, but for base images and what another process holds. `name`
        tells builds of one context apart for `explain`: the spec's file, say. `images` are the
        settings' where they are not given, and so is each of the `limits` of steps that set none.
        """
        began = time.monotonic()
        try:
            result = await self._build(
                spec, context, secrets or {}, sink, fresh=fresh, name=name, images=images,
                limits=limits,
            )  # fmt: skip
        except ObuilderError as error:
            seconds = time.monotonic() - began
            sink(events.BuildEnded(code=error.code, message=error.message, seconds=seconds))
            raise
        except anyio.get_cancelled_exc_class():
            seconds = time.monotonic() - began
            sink(events.BuildEnded(code="cancelled", message="cancelled", seconds=seconds))
            raise
        sink(
            events.BuildDone(
                result=result.key, seconds=result.seconds, cached=result.cached, ran=result.ran
            )
        )
        return result

    def stream(
        self, spec: Spec, context: str | Contexts, *, secrets: Mapping[str, bytes] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[events.Event]]:
        """A build as the stream of its events, the last a `BuildDone` or `BuildEnded`.

        Leaving the context raises what `build` would have raised. Leaving it before the last
        event cancels the build.
        """
        return streamed(lambda sink: self.build(spec, context, secrets=secrets, sink=sink))

    async def _build(
        self, spec: Spec, directory: str | Contexts, secrets: Mapping[str, bytes], sink: events.Sink,
        *, fresh: bool, name: str, images: Images | None, limits: Limits | None,
    ) -> Result:  # fmt: skip
        plan, _, context = await self._planned(spec, directory, images)
        if limits is not None:
            plan = plan.limited(limits)
        for step in plan.steps.values():
            with context.telling(step.op):
                check_secrets(step.action, secrets, self._workshop.agents)
                self._workshop.refuse(step.action)
        if warning := self.sandbox.features.warning:
            sink(events.Note(text=warning, warning=True))
        if fresh:
            await self._forget(plan)
        remember(self._index, plan, context, name)
        with self._holding() as holder:
            passing = self.settings.passing(plan)
            layers = self.layers(lambda text: sink(events.Note(text, warning=True)))
            caches = CacheUse(self._caches, layers, plan, holder, passing, sink, fresh=fresh)
            runner = Runner(
                self._workshop, self._index, self._inflight, self._width, holder,
                plan, context, secrets, sink,
                keep_failed=self.settings.keep_failed, passing=passing, caches=caches,
            )  # fmt: skip
            async with caches.sending(), noticing_loss(self.store, self._index):
                result = await runner.run()
            found = self._index.find(plan.steps, remote=True)
            final = remember_finals(self._index, plan, found, spec, context)
        try:
            await pruning.drop_unused(
                self.store, self._index, runner.results(passing=True),
                kept=runner.results(passing=False),
            )  # fmt: skip
        except ObuilderError as error:  # the build has its result all the same
            text = f"warning: a result that is not kept could not be deleted: {error.message}"
            sink(events.Note(text=text))
        if result.ran:
            await self.sync()
        return msgspec.structs.replace(result, final=final)

    async def _forget(self, plan: Plan) -> None:
        """Delete what the steps of a plan have made before; base images stay."""
        made = {key for key, step in plan.steps.items() if not isinstance(step.action, LayerAction)}
        found = self._index.find(made, remote=True)
        await pruning.forget(self.store, self._index, found.values())

    @contextmanager
    def _holding(self) -> Iterator[str]:
        """A name to lease results to: they can't be pruned until the context ends."""
        holder = f"{self.store.session}.{next(self._builds)}"
        try:
            yield holder
        finally:
            with suppress(StoreError):  # never in the place of the first error
                self._index.release([holder])

    async def sync(self) -> None:
        """Make every result so far survive a power cut."""
        keys = self._index.volatile()
        if keys:
            await self.store.sync()
            self._index.settled(keys)

    async def _sync_often(self) -> None:
        while True:
            await anyio.sleep(_SYNC_EVERY)
            with suppress(StoreError):  # told at the end of a build, when it still is so
                await self.sync()

    # --- results -----------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """All results, the newest first."""
        return self._index.records()

    def record(self, prefix: str) -> Record:
        """The one result whose key starts with `prefix`. UsageError."""
        found = self._index.record(prefix) if prefix else []
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"more than one result starts with {prefix!r}", hint="give more of it")
        raise UsageError(f"there is no result {prefix!r}", hint="`obuilder ls` lists results")

    def log(self, prefix: str) -> bytes | None:
        """The log of a result."""
        return read_log(self.store.directory, self.record(prefix).key)

    async def size(self, key: Key) -> int:
        """Bytes that a result adds to what it was made from: none, if only its log was kept."""
        return await pruning.taken(self.store, key)

    async def usage(self) -> Usage:
        """Space."""
        return await self.store.usage()

    async def prune(
        self,
        *,
        before: float | None = None,
        limit: int | None = None,
        keep: int | None = None,
        dry_run: bool = False,
    ) -> list[Record]:
        """Delete the least recently used results: those not used since `before` (seconds since
        1970), at most `limit`, until all take no more than `keep` bytes. What went, or with
        `dry_run` would go.
        """
        if not dry_run:
            give_up_reserve(self.store.directory)
        return await pruning.prune(
            self.store, self._index, before=before, limit=limit, keep=keep, dry_run=dry_run
        )

    async def delete(self, prefix: str) -> int:
        """Delete a result and all that were made from it. How many."""
        give_up_reserve(self.store.directory)
        return await pruning.delete(self.store, self._index, self.record(prefix).key)

    @asynccontextmanager
    async def view(self, prefix: str) -> AsyncIterator[Root]:
        """The root of a result, read-only."""
        key = await self.bring(prefix)
        async with noticing_loss(self.store, self._index), self.store.view(key) as root:
            yield root

    async def bring(self, prefix: str, *, sink: events.Sink = _ignore) -> Key:
        """Make sure that a result is here, and not in another place alone. Its key. FetchError."""
        key, fetched = self.record(prefix).key, Fetched()

        def tell(one: Key, done: int, total: int) -> None:
            sink(events.Progress(one, done, total))

        with self._holding() as holder:
            await self._caches.bring(key, fetched, holders=[holder], tell=tell)
        if fetched.layers:
            sink(events.Note(f"fetched {fetched}"))
        return key

    @asynccontextmanager
    async def files(self, prefix: str) -> AsyncIterator[str]:
        """The root of a result as a directory of this machine, for looking at; see `Store.files`."""
        async with self.view(prefix) as root, self.store.files(root) as path:
            yield path

    def layers(self, tell: Callable[[str], None], *, sink: events.Sink = _ignore) -> Layers:
        """The layers of results; `tell` gets warnings, `sink` hears of what comes from elsewhere."""

        async def bring(key: Key) -> None:
            await self.bring(key, sink=sink)

        return Layers(self.store, self._index, self._workshop.blob, tell, bring)

    @contextmanager
    def held(self, key: Key) -> Iterator[None]:
        """Keep a result, and what it was made from, from being pruned until the context ends."""
        with self._holding() as holder:
            wanted: Key | None = key
            while wanted is not None and (found := self._index.record(wanted)):
                self._index.lease(wanted, [holder])
                wanted = found[0].base
            yield

    async def shell(self, prefix: str, argv: tuple[str, ...] = ("/bin/sh",)) -> int:
        """Enter a result, or a kept failed step, with this terminal; changes are dropped."""
        key = await self.bring(prefix)
        async with (
            noticing_loss(self.store, self._index),
            self.store.begin(Key(os.urandom(32).hex()), base=key) as draft,
        ):
            ended = await self.sandbox.enter(
                draft.root,
                Command(
                    argv=argv, cwd="/", user=ROOT,
                    env=(("PATH", DEFAULT_PATH), ("TERM", os.environ.get("TERM", "dumb"))),
                    limits=self.settings.limits,
                ),
            )  # fmt: skip
        return ended.status

    # --- from one store to another ---------------------------------------------------------------

    async def copy_to(self, other: "Builder", *, tell: Callable[[Record], None]) -> int:
        """Bring to the other builder's store what it does not have: results with their logs, cache
        volumes, names of images. How many results. Interrupted, the next one goes on from there.
        """
        receiver = other.receiver()
        await send_to(receiver, self.store, self._index, tell)
        await other.sync()
        return receiver.taken

    def receiver(self) -> Receiver:
        """What takes results into this builder's store."""
        return Receiver(self.store, self._index)

    async def pack(self, file: BinaryIO) -> int:
        """Write all that `copy_to` would bring as one stream. How many results."""
        return await pack(self.store, self._index, file)

    async def unpack(self, file: BinaryIO) -> int:
        """Take what `pack` wrote, but for what is here. How many results. UsageError, BadImage."""
        receiver = self.receiver()
        await unpack_into(receiver, file)
        await self.sync()
        return receiver.taken

    # --- images and volumes ----------------------------------------------------------------------

    def images(self) -> dict[str, Base]:
        """Imported images by name."""
        return self._index.images()

    async def import_image(
        self,
        name: str,
        source: str,
        *,
        sink: events.Sink = _ignore,
        images: Images = Images(pull="always"),  # noqa: B008 - frozen
    ) -> Base:
        """Bring `source` into the store under `name`, which specs can then use."""
        base = await self._resolver(images).base(source, imported=source != name)
        spec = Spec(base=source)
        plan = lower(spec, Inputs(bases={source: base}, copies={}))
        with self._holding() as holder:
            runner = Runner(
                self._workshop, self._index, self._inflight, self._width, holder,
                plan, Context("/", None), {}, sink, keep_failed=False,
            )  # fmt: skip
            await runner.run()
            self._index.put_image(name, base)
        await self.sync()
        return base

    def remove_image(self, name: str) -> None:
        """Take a name away; its layers may be pruned then. UsageError."""
        if self._index.image(name) is None:
            raise UsageError(f"there is no image called {name!r}", hint="`obuilder image ls`")
        self._index.put_image(name, None)

    def volumes(self) -> list[tuple[str, str, Key | None, float]]:
        """Place, name, newest generation and last use of every cache volume."""
        return self._index.volumes()

    async def delete_volume(self, name: str) -> bool:
        """Delete a cache volume. False if there is none of that name."""
        give_up_reserve(self.store.directory)
        return await self._workshop.volumes.delete(name)
