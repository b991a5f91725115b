"""The fully cached build: no event loop, no mount, no program started.

Everything here is a look at the index and at the context's files. Whatever is missing, or has to
wait, makes the answer None, and the builder starts in earnest.
"""

import os
import time

from obuilder import events
from obuilder.engine.index import Index
from obuilder.engine.inputs import Context, Contexts, IndexStats, MustWait, contexts, gather
from obuilder.engine.logs import replay_log
from obuilder.engine.result import Result
from obuilder.engine.settings import Settings
from obuilder.plan.lower import lower, wanted
from obuilder.plan.model import Inputs, Plan
from obuilder.spec.model import Spec
from obuilder.values import Key, shown


def make_plan(spec: Spec, context: Context, index: Index) -> tuple[Plan, Inputs]:
    """Look at the outside world, and plan. SpecError, CopyError, FetchError, MustWait."""
    inputs = gather(wanted(spec), context, index)
    return lower(spec, inputs), inputs


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


def look(spec: Spec, context: str | Contexts, settings: Settings) -> tuple[Plan, dict[Key, Key]]:
    """The plan of a build, and which of its steps have results. Makes nothing but index rows.

    Without a store yet, the index is one in memory: nothing is cached and nothing is kept.
    """
    try:
        index = Index(settings.directory, create=False)
    except FileNotFoundError:
        index = Index(None)
    try:
        stats = IndexStats(index, os.path.abspath(contexts(context).directory))
        plan, _ = make_plan(spec, Context(context, stats), index)
        stats.flush()
        return plan, index.find(plan.steps)
    finally:
        index.close()


def _identity(context: str | Contexts, name: str) -> str:
    """What "the same spec" means from one build to the next: its directory and its file."""
    return shown(f"{os.path.abspath(contexts(context).directory)}\n{name}")


def remember(index: Index, plan: Plan, context: str | Contexts, name: str) -> None:
    """Note what went into a build, for `explain`; nothing is written when it is as last time."""
    identity = _identity(context, name)
    if index.last_result(identity) != plan.result:
        from obuilder.plan.explain import record

        index.put_build(identity, plan.result, record(plan))


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
            plan, _ = make_plan(spec, Context(context, stats), index)
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
    finally:
        index.close()
    result = Result(
        key=found[plan.result], cached=len(found), ran=0, seconds=time.monotonic() - began
    )
    sink(events.BuildDone(result=result.key, seconds=result.seconds, cached=result.cached, ran=0))
    return result
