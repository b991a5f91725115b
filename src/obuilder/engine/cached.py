"""The fully cached build: no event loop, no mount, no program started.

Everything here is a look at the index and at the context's files. Whatever is missing, or has to
wait, makes the answer None, and the builder starts in earnest.
"""

import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

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


def started(plan: Plan, found: dict[Key, Key]) -> events.BuildStarted:
    """The event that tells a screen of the plan."""
    return events.BuildStarted(
        steps=tuple(
            events.StepInfo(
                key=step.key, stage=step.stage, heading=step.heading, cached=step.key in found
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


def look(spec: Spec, context: str | Contexts, settings: Settings) -> tuple[Plan, dict[Key, Key]]:
    """The plan of a build, and which of its steps have results. Makes nothing but index rows."""
    with _looking(settings) as index:
        stats = IndexStats(index, os.path.abspath(contexts(context).directory))
        source = Context(context, stats)
        resolver = _resolver(index, settings)
        plan, _ = _driven(lambda: make_plan(spec, source, resolver, domain=settings.domain))
        stats.flush()
        return plan, index.find(plan.steps)


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


def remember(index: Index, plan: Plan, context: str | Contexts, name: str) -> None:
    """Note what went into a build, for `explain`; nothing is written when it is as last time."""
    identity = _identity(context, name)
    if index.last_result(identity) != plan.result:
        from obuilder.plan.explain import record

        index.put_build(identity, plan.result, record(plan))


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
    index.put_finals(finals)
    return finals[found.get(plan.result, plan.result)]


def last_build(settings: Settings, context: str | Contexts, name: str) -> bytes | None:
    """The record of the last build of the spec `name` in `context`."""
    try:
        index = Index(settings.directory, create=False)
    except FileNotFoundError:
        return None
    try:
        return index.last_build(_identity(context, name))
    finally:
        index.close()


def replay(
    spec: Spec, context: str | Contexts, settings: Settings, sink: events.Sink, *, name: str = ""
) -> Result | None:
    """Show a build all of whose steps are in the index. None if something has to run.

    `name` is what `Builder.build` takes it for.
    """
    began = time.monotonic()
    try:
        index = Index(settings.directory, create=False)
    except FileNotFoundError:
        return None
    try:
        stats = IndexStats(index, os.path.abspath(contexts(context).directory))
        try:
            source, resolver = Context(context, stats), _resolver(index, settings)
            plan, _ = drive(make_plan(spec, source, resolver, domain=settings.domain))
        except MustWait:
            return None
        finally:
            stats.flush()
        found = index.find(plan.steps)
        if len(found) < len(plan.steps):
            return None
        sink(started(plan, found))
        for step in plan.steps.values():
            key = found[step.key]
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
        index.touch(found.values())
        remember(index, plan, context, name)
        final = remember_finals(index, plan, found)
    finally:
        index.close()
    result = Result(
        key=found[plan.result], cached=len(found), ran=0, seconds=time.monotonic() - began,
        final=final,
    )  # fmt: skip
    sink(events.BuildDone(result=result.key, seconds=result.seconds, cached=result.cached, ran=0))
    return result
