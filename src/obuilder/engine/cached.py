"""The fully cached build: no event loop, no mount, no program started.

Everything here is a look at the index and at the context's files. Whatever is missing, or has to
wait, makes the answer None, and the builder starts in earnest.
"""

import os
import time
from collections.abc import Callable, Container, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from msgspec import Struct

from obuilder import events
from obuilder.engine.index import Final, Index
from obuilder.engine.inputs import (
    Context,
    Contexts,
    IndexStats,
    MustWait,
    Resolver,
    contexts,
    drive,
    gather,
)
from obuilder.engine.logs import replay_log
from obuilder.engine.result import Result
from obuilder.engine.settings import Images, Settings
from obuilder.errors import FetchError
from obuilder.plan.keys import layer_keys
from obuilder.plan.lower import lower, wanted
from obuilder.plan.model import Base, Inputs, LayerAction, Plan
from obuilder.spec.image import begun
from obuilder.spec.model import Spec
from obuilder.values import Key, shown

T = TypeVar("T")


async def make_plan(
    spec: Spec, context: Context, resolver: Resolver, *, domain: str
) -> tuple[Plan, Inputs]:
    """Look at the outside world, and plan. SpecError, CopyError, FetchError.

    It waits only where a registry has to be asked.
    """
    inputs = await gather(wanted(spec), context, resolver)
    return lower(spec, inputs, domain=domain), inputs


def started(plan: Plan, cached: Container[Key]) -> events.BuildStarted:
    """The event that tells a screen of the plan."""
    return events.BuildStarted(
        steps=tuple(
            events.StepInfo(
                key=step.key,
                stage=step.stage,
                heading=step.heading,
                cached=step.key in cached,
                needs=step.needs,
            )
            for step in plan.steps.values()
        )
    )


def _resolver(index: Index, settings: Settings, images: Images | None = None) -> Resolver:
    return Resolver(index, images or settings.images, settings.registries)


def _driven(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What `work` comes to, without an event loop if it needs none."""
    try:
        return drive(work())
    except MustWait:
        import anyio

        return anyio.run(work)


@contextmanager
def _looking(settings: Settings) -> Iterator[Index]:
    """The index; without a store yet, one in memory: nothing is cached and nothing is kept."""
    try:
        index = Index(settings.directory, create=False)
    except FileNotFoundError:
        index = Index(None)
    try:
        yield index
    finally:
        index.close()


def _planned(
    spec: Spec, where: str | Contexts, index: Index, settings: Settings, *, wait: bool
) -> tuple[Plan, Context]:
    """The plan, and the context that was looked at for it. As `make_plan`; MustWait."""
    stats = IndexStats(index, os.path.abspath(contexts(where).directory))
    context, resolver = Context(where, stats), _resolver(index, settings)

    def work() -> Coroutine[Any, Any, tuple[Plan, Inputs]]:
        return make_plan(spec, context, resolver, domain=settings.domain)

    try:
        plan, _ = _driven(work) if wait else drive(work())
    finally:
        stats.flush()
    return plan, context


def look(spec: Spec, context: str | Contexts, settings: Settings) -> tuple[Plan, set[Key]]:
    """The plan of a build, and which of its steps need not run. Makes nothing but index rows."""
    with _looking(settings) as index:
        plan, _ = _planned(spec, context, index, settings, wait=True)
        return plan, plan.cached(index.find(plan.steps))


def resolve(names: Mapping[str, str], settings: Settings, images: Images) -> dict[str, Base]:
    """What names of base images stand for. FetchError, which says where the name stands.

    `names` have the place of each, or nothing.
    """

    async def base(resolver: Resolver, name: str) -> Base:
        try:
            return await resolver.base(name)
        except FetchError as error:
            error.message = f"{names[name]}: {error.message}" if names[name] else error.message
            raise

    with _looking(settings) as index:
        resolver = _resolver(index, settings, images)

        async def each() -> dict[str, Base]:
            return {name: await base(resolver, name) for name in names}

        return _driven(each)


def _identity(context: str | Contexts, name: str) -> str:
    """What "the same spec" means from one build to the next: its directory and its file."""
    return shown(f"{os.path.abspath(contexts(context).directory)}\n{name}")


def remember(index: Index, plan: Plan, context: Context, name: str) -> None:
    """Note what went into a build and the one before it, for `explain`.

    Nothing is written when a build is as the last one.
    """
    identity = _identity(context.directory, name)
    if index.last_result(identity) != plan.result:
        from obuilder.plan.explain import decode, encode, records

        before = decode(index.last_build(identity))[:1]
        index.put_build(identity, plan.result, encode([records(plan, context.files), *before]))


def remember_finals(index: Index, plan: Plan, found: Mapping[Key, Key]) -> Final:
    """Note what images of a plan's results say of themselves: of its stages, and of what they began
    from. `found` has the results of its steps. What an image of its own result says.
    """
    finals: dict[Key, Final] = {}
    for last, context in plan.contexts.items():
        step = plan.steps[last]
        while step.base is not None:
            step = plan.steps[step.base]
        assert isinstance(step.action, LayerAction)
        base = step.action.base
        top = layer_keys(base)[-1]
        finals.setdefault(found.get(top, top), Final(base, begun(base.config)))
        finals[found.get(last, last)] = Final(base, context.config)
    there = set(found.values())  # not so what was made on the way only
    index.put_finals({key: final for key, final in finals.items() if key in there})
    return finals[found.get(plan.result, plan.result)]


class Explanation(Struct, frozen=True):
    """Why a build would run what it would, and why the last one did.

    `changes` since the last build, and `last_changes` of that since the one before it, a line each;
    None: there was none. `lost`: the titles of steps that are as in the last build, but have no
    result (any more), without those that only stand on such a step.
    """

    changes: list[str] | None
    last_changes: list[str] | None
    lost: list[str]


def explanation(
    spec: Spec, context: str | Contexts, settings: Settings, *, name: str
) -> Explanation:
    """Compare what a build of the spec `name` in `context` would do with the last ones."""
    from obuilder.plan.explain import decode, explain, records

    with _looking(settings) as index:
        plan, looked = _planned(spec, context, index, settings, wait=True)
        cached = plan.cached(index.find(plan.steps))
        builds = decode(index.last_build(_identity(context, name)))
    steps = records(plan, looked.files)
    if not builds:
        return Explanation(None, None, [])
    known = {step.key for step in builds[0]}
    lost = [
        step.title
        for step in steps
        if step.key in known
        and step.key not in cached
        and all(need in cached for need in plan.steps[Key(step.key)].needs)
    ]
    before = explain(builds[1], builds[0]) if len(builds) > 1 else None
    return Explanation(explain(builds[0], steps), before, lost)


def replay(
    spec: Spec, context: str | Contexts, settings: Settings, sink: events.Sink, *, name: str = ""
) -> Result | None:
    """Show a build whose result is in the index. None if something has to be done.

    Steps on the way whose results are gone are shown without their logs. `name` is what
    `Builder.build` takes it for.
    """
    began = time.monotonic()
    try:
        index = Index(settings.directory, create=False)
    except FileNotFoundError:
        return None
    try:
        try:
            plan, looked = _planned(spec, context, index, settings, wait=False)
        except MustWait:
            return None
        found = index.find(plan.steps)
        if plan.result not in found:
            return None
        passing = settings.passing(plan)
        if index.unused(found[key] for key in passing if key in found):
            return None  # a build that was killed was about to drop them
        index.touch(found[key] for key in found if key not in passing)
        sink(started(plan, plan.steps))
        for step in plan.steps.values():
            key = found.get(step.key, step.key)
            sink(
                events.StepStarted(
                    key=key, stage=step.stage, heading=step.heading, notes=step.notes
                )
            )
            replay_log(
                settings.directory,
                key,
                lambda data, key=key: sink(events.Output(key, data)),  # type: ignore[misc] # mypy does not follow the default
            )
            sink(events.StepCached(key=key))
        for heading in plan.tail:
            sink(events.Note(text=heading))
        remember(index, plan, looked, name)
        final = remember_finals(index, plan, found)
    finally:
        index.close()
    result = Result(
        key=found[plan.result], cached=len(plan.steps), ran=0, seconds=time.monotonic() - began,
        final=final,
    )  # fmt: skip
    sink(events.BuildDone(result=result.key, seconds=result.seconds, cached=result.cached, ran=0))
    return result
