"""Every observable thing is an event; screens, log files, JSON and the wire are sinks of one stream.

The stream of one build: `BuildStarted`, then for each step `StepStarted`, any `Output`, `Progress` and
`Note`, and one of `StepCached`, `StepDone`, `StepEnded`; at last `BuildDone` or `BuildEnded`. Steps of
independent stages interleave: `key` says which step an event belongs to. Where a result is taken out
(`obuilder build -o`), `Progress` of its layers and `Note`s come after `BuildDone`.
"""

from collections.abc import Callable

from msgspec import Struct

from obuilder.values import Key

SCHEMA_VERSION = 1
"""Of the JSON form: new fields and new events may be added; anything else raises the number."""


class StepInfo(Struct, frozen=True):
    """What a screen shows of a step before it starts."""

    key: Key
    stage: str
    heading: str
    cached: bool
    needs: tuple[Key, ...] = ()
    """The steps that it stands on, or that it takes files from."""


class BuildStarted(Struct, frozen=True, tag="build-started", tag_field="event"):
    """The plan stands."""

    steps: tuple[StepInfo, ...]


class StepStarted(Struct, frozen=True, tag="step-started", tag_field="event"):
    """A step is looked up, run, or followed. `notes` are headings of ops before it.

    It comes again for a step whose output so far was of a process that ended without a result.
    """

    key: Key
    stage: str
    heading: str
    notes: tuple[str, ...] = ()


class Output(Struct, frozen=True, tag="output", tag_field="event"):
    """Bytes a step wrote, as they came."""

    key: Key
    data: bytes


class Progress(Struct, frozen=True, tag="progress", tag_field="event"):
    """How far a step got whose base image comes from elsewhere, or how much of its layer was sent:
    bytes that are there, and all.
    """

    key: Key
    done: int
    total: int


class Note(Struct, frozen=True, tag="note", tag_field="event"):
    """Something worth saying about a step, or about the whole build (`key` None).

    A `warning` is for everybody to see; else it is the heading of an op that makes no step.
    """

    text: str
    key: Key | None = None
    warning: bool = False


class StepCached(Struct, frozen=True, tag="step-cached", tag_field="event"):
    """The result was there already, its log has been replayed; or what stands on it was there."""

    key: Key


class StepDone(Struct, frozen=True, tag="step-done", tag_field="event"):
    """The result is published."""

    key: Key
    seconds: float


class StepEnded(Struct, frozen=True, tag="step-ended", tag_field="event"):
    """The step has no result: it failed or was cancelled. `code` is the error's."""

    key: Key
    code: str
    message: str
    seconds: float


class BuildDone(Struct, frozen=True, tag="build-done", tag_field="event"):
    """The whole build has its result."""

    result: Key
    seconds: float
    cached: int
    ran: int


class BuildEnded(Struct, frozen=True, tag="build-ended", tag_field="event"):
    """The build has no result."""

    code: str
    message: str
    seconds: float


Event = (
    BuildStarted
    | StepStarted
    | Output
    | Progress
    | Note
    | StepCached
    | StepDone
    | StepEnded
    | BuildDone
    | BuildEnded
)
Sink = Callable[[Event], None]
"""Takes each event as it happens, in the builder's thread; it must not wait."""
