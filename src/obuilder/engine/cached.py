"""The fully cached build: no event loop, no mount, no program started.

Everything here is a look at the index and at the context's files. Whatever is missing, or has to
wait, makes the answer None, and the builder starts in earnest.
"""

import os
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager

from msgspec import Struct

from obuilder import events
from obuilder.engine.index import Index
from obuilder.engine.inputs import Context, IndexStats, MustWait, gather
from obuilder.engine.logs import replay_log
from obuilder.engine.result import Result
from obuilder.engine.settings import Settings
from obuilder.plan.lower import lower, wanted
from obuilder.plan.model import Inputs, Plan
from obuilder.spec.model import Spec
from obuilder.values import Key, shown


def make_plan(spec: Spec, context: Context, index: Index, *, domain: str) -> tuple[Plan, Inputs]:
    """Look at the outside world, and plan. SpecError, CopyError, FetchError, MustWait."""
    inputs = gather(wanted(spec), context, index)
    return lower(spec, inputs, domain=domain), inputs


def started(plan: Plan, cached: Container[Key]) -> events.BuildStarted:
    """The event that tells a screen of the plan."""
    return events.BuildStarted(
        steps=tuple(
            events.StepInfo(
                key=step.key, stage=step.stage, heading=step.heading, cached=step.key in cached
            )
            for step in plan.steps.values()
        )
    )


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


def _planned(spec: Spec, directory: str, index: Index, settings: Settings) -> tuple[Plan, Context]:
    """The plan, and the context that was looked at for it. As `make_plan`."""
    stats = IndexStats(index, os.path.abspath(directory))
    context = Context(directory, stats)
    try:
        plan, _ = make_plan(spec, context, index, domain=settings.domain)
    finally:
        stats.flush()
    return plan, context


def look(spec: Spec, context: str, settings: Settings) -> tuple[Plan, set[Key]]:
    """The plan of a build, and which of its steps need not run. Makes nothing but index rows."""
    with _looking(settings) as index:
        plan, _ = _planned(spec, context, index, settings)
        return plan, plan.cached(index.find(plan.steps))


def _identity(context: str, name: str) -> str:
    """What "the same spec" means from one build to the next: its directory and its file."""
    return shown(f"{os.path.abspath(context)}\n{name}")


def remember(index: Index, plan: Plan, context: Context, name: str) -> None:
    """Note what went into a build and the one before it, for `explain`.

    Nothing is written when a build is as the last one.
    """
    identity = _identity(context.directory, name)
    if index.last_result(identity) != plan.result:
        from obuilder.plan.explain import decode, encode, records

        before = decode(index.last_build(identity))[:1]
        index.put_build(identity, plan.result, encode([records(plan, context.files), *before]))


class Explanation(Struct, frozen=True):
    """Why a build would run what it would, and why the last one did.

    `changes` since the last build, and `last_changes` of that since the one before it, a line each;
    None: there was none. `lost`: the titles of steps that are as in the last build, but have no
    result (any more), without those that only stand on such a step.
    """

    changes: list[str] | None
    last_changes: list[str] | None
    lost: list[str]


def explanation(spec: Spec, context: str, settings: Settings, *, name: str) -> Explanation:
    """Compare what a build of the spec `name` in `context` would do with the last ones."""
    from obuilder.plan.explain import decode, explain, records

    with _looking(settings) as index:
        plan, looked = _planned(spec, context, index, settings)
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
    spec: Spec, context: str, settings: Settings, sink: events.Sink, *, name: str = ""
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
            plan, looked = _planned(spec, context, index, settings)
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
    finally:
        index.close()
    result = Result(
        key=found[plan.result], cached=len(plan.steps), ran=0, seconds=time.monotonic() - began
    )
    sink(events.BuildDone(result=result.key, seconds=result.seconds, cached=result.cached, ran=0))
    return result
