"""What one build has of caches in other places: what they know of its plan, and what comes from there.

Nothing that is wrong with a cache fails a build. A place that does not answer is not asked again in this
build, an entry that is wrong counts as none; each is told once.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import anyio

from obuilder import events
from obuilder.engine.cache_entry import Entry, Remote, opened
from obuilder.engine.cache_policy import may_take
from obuilder.engine.cache_sender import Sender
from obuilder.engine.index import Final
from obuilder.engine.layers import Layers
from obuilder.engine.remote_cache import Caches
from obuilder.errors import FetchError, ObuilderError
from obuilder.plan.model import LayerAction, Plan, Step
from obuilder.spec.image import begun
from obuilder.values import Key

_PATIENCE = 10.0
"""Seconds for an answer of a place about one step."""
_MOST = 32
"""Steps that are asked for at the same time."""
_WRONG = 3
"""Entries of a place that may be wrong before it is not asked any more."""


class Unfetched(Exception):
    """What was known to be in another place could not be had: the plan is to be looked at again."""


class CacheUse:
    """Caches as one build uses them. With `fresh`, results are only sent. ConfigError, UsageError."""

    def __init__(
        self,
        caches: Caches,
        layers: Layers,
        plan: Plan,
        holder: str,
        passing: Iterable[Key],
        sink: events.Sink,
        *,
        fresh: bool,
    ) -> None:
        settings = caches.settings
        self._caches, self._plan, self._holder = caches, plan, holder
        self._passing, self._sink, self._fresh = set(passing), sink, fresh
        self._open: dict[str, set[Key]] = {}
        if not fresh:
            self._open = {name: may_take(plan, settings, name) for name in settings.cache_from}
        self._wrong: dict[str, int] = {}
        self._known: dict[Key, str] = {}
        self._found = self._fetched = self._fetched_size = 0
        self._told = set[str]()
        for name in self._open:
            caches.place(name)
            caches.keys(name)
        self._sender = Sender(caches, layers, plan, self._warn, sink)

    # --- looking ---------------------------------------------------------------------------------

    async def look(self, found: Mapping[Key, Key]) -> dict[Key, Key]:
        """What the steps of the plan come to that are not `found` here, but in another place.

        From the result backwards: the first answer that a place has ends it. A few steps are asked
        for at a time, and more each time.
        """
        plan, index = self._plan, self._caches.index
        hits: dict[Key, Key] = {}
        if plan.result in found:
            return hits
        if not self._fresh:
            hits = self._noted(found)
        asked, size = set[Key](), 1
        while self._open:
            able = set[Key]().union(*self._open.values()) - asked
            wanted = [key for key in self._backwards({**found, **hits}) if key in able][:size]
            if not wanted:
                break
            asked.update(wanted)
            async with anyio.create_task_group() as tasks:
                for key in wanted:
                    tasks.start_soon(self._ask, key, hits)
            size = min(size * 4, _MOST)
        if hits:  # what an entry stands on is known by now, too
            hits.update(self._noted({**found, **hits}))
            index.lease_all(hits.values(), self._holder)
        more = plan.cached({**found, **hits}) - plan.cached(found)
        self._found = sum(not isinstance(plan.steps[key].action, LayerAction) for key in more)
        return hits

    def _noted(self, found: Mapping[Key, Key]) -> dict[Key, Key]:
        """What the index knows to be in other places."""
        index, hits = self._caches.index, dict[Key, Key]()
        for key, target in index.find(self._plan.steps, remote=True).items():
            remote = None if key in found else index.remote(target)
            if remote is not None and key in may_take(
                self._plan, self._caches.settings, remote.place
            ):
                hits[key] = target
                self._known[target] = remote.place
        return hits

    def _backwards(self, known: Mapping[Key, Key]) -> list[Key]:
        """The steps that have to be made, from the result backwards."""
        order, seen, ahead = list[Key](), {self._plan.result}, [self._plan.result]
        while ahead:
            key = ahead.pop(0)
            if key in known:
                continue
            order.append(key)
            for need in reversed(self._plan.steps[key].needs):
                if need not in seen:
                    seen.add(need)
                    ahead.append(need)
        return order

    async def _ask(self, key: Key, hits: dict[Key, Key]) -> None:
        for name in list(self._open):
            if key not in self._open.get(name, ()):
                continue
            try:
                with anyio.fail_after(_PATIENCE):
                    data = await self._caches.place(name).entry(key)
            except TimeoutError:
                self._give_up(name, "it does not answer")
                continue
            except FetchError as error:
                self._give_up(name, error.message)
                continue
            if data is None:
                continue
            try:
                entry = opened(data, key, self._caches.keys(name))
                self._note(name, entry)
            except FetchError as error:
                self._refuse(name, key, error)
                continue
            hits[key] = entry.result
            self._sender.has(name, key)
            return

    def _note(self, name: str, entry: Entry) -> None:
        """Put what an entry says into the index. FetchError: it is of no use here."""
        index, bases = self._caches.index, _bases(self._plan)
        single = self._caches.store.idmap.single
        if entry.single and not single:
            raise FetchError("it was made where all files are of one owner")
        for link in entry.links:
            if link.kind == "layer" and link.key not in bases:
                raise FetchError("it stands on another base image")
        if not index.find([entry.result]):
            self._known[entry.result] = name
            index.add_remotes([Remote(name, link) for link in entry.links], [self._holder])
            bases_of = {link.key: bases[link.key] for link in entry.links if link.kind == "layer"}
            index.put_finals({key: f for key, f in bases_of.items() if index.final(key) is None})
        index.alias(entry.key, entry.result)

    def place(self, key: Key) -> str:
        """Where a result is that is not here."""
        return self._known.get(key, "")

    # --- bringing --------------------------------------------------------------------------------

    async def bring(self, key: Key) -> None:
        """Make a result of what is in another place. Unfetched, after it was told and forgotten."""

        def tell(_: Key, done: int, total: int) -> None:
            self._sink(events.Progress(key, done, total))

        try:
            fetched = await self._caches.bring(
                key, holders=[self._holder], passing=self._passing, tell=tell
            )
        except ObuilderError as error:
            name = self._known.pop(key, "")
            for step in self._plan.steps:
                self._sender.lacks(name, step)
            self._give_up(name, error.message)
            raise Unfetched from error
        self._fetched += fetched.layers
        self._fetched_size += fetched.size

    async def take(self, step: Step, key: Key) -> bool:
        """Bring the result `key` of a step that is only now known, if a place has it."""
        hits: dict[Key, Key] = {}
        for name, keys in self._open.items():
            if step.key in keys:
                self._open[name] = keys | {key}
        known = None if self._fresh else self._caches.index.remote(key)
        if known is not None and step.key in may_take(
            self._plan, self._caches.settings, known.place
        ):
            self._known[key], hits[key] = known.place, key
        else:
            await self._ask(key, hits)
        if hits.get(key) != key:
            return False
        try:
            await self.bring(key)
        except Unfetched:
            return False
        self._found += 1
        return True

    # --- sending ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send what is offered in the context; at its end, also by an error, wait for that."""
        try:
            async with self._sender.sending():
                yield
        finally:
            settings, sent = self._caches.settings, self._sender
            if settings.cache_from or settings.cache_to or self._fetched or self._found:
                self._sink(
                    events.CacheMoved(
                        found=self._found, fetched=self._fetched, sent=sent.layers,
                        fetched_bytes=self._fetched_size, sent_bytes=sent.size,
                    )
                )  # fmt: skip

    def offer(self, step: Step, key: Key) -> None:
        """A step has a result here."""
        self._sender.offer(step, key)

    # --- what goes wrong -------------------------------------------------------------------------

    def _refuse(self, name: str, key: Key, error: FetchError) -> None:
        self._warn(f"{name}: an entry is not taken: {error.message}")
        self._sender.lacks(name, key)
        self._wrong[name] = self._wrong.get(name, 0) + 1
        if self._wrong[name] >= _WRONG:
            self._give_up(name, "too many of its entries are wrong")

    def _give_up(self, name: str, reason: str) -> None:
        if self._open.pop(name, None) is not None or name not in self._told:
            self._told.add(name)
            self._warn(f"the cache {name} is not used any more in this build: {reason}")

    def _warn(self, text: str) -> None:
        self._sink(events.Note(text, warning=True))


def _bases(plan: Plan) -> dict[Key, Final]:
    """Of the layers of base images in a plan, by their steps: the image, and what it says."""
    found = {}
    for key, step in plan.steps.items():
        if isinstance(step.action, LayerAction):
            base = step.action.base
            found[key] = Final(base, begun(base.config))
    return found
