"""A build's events as what a page shows of them: the plan's steps, each with its lines of output.

Lines are numbered over the whole log, in the order in which they came, so that a number is a line for
ever. Of a long log only a window of lines is kept: the last ones, or those around one that is wanted.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Literal

from obuilder import events
from obuilder.values import Key
from obuilder.web.ansi import Lines

Status = Literal["waiting", "running", "cached", "done", "failed", "cancelled"]
WINDOW = 5000
"""Lines that a page has."""
_NOTES = 200


class Step:
    """What is shown of a step. `id` is its place on the page."""

    def __init__(self, number: int, info: events.StepInfo) -> None:
        self.id = f"s{number}"
        self.key, self.stage, self.heading, self.needs = (
            info.key,
            info.stage,
            info.heading,
            info.needs,
        )
        self.status: Status = "cached" if info.cached else "waiting"
        self.notes: tuple[str, ...] = ()
        self.began: float | None = None
        self.seconds: float | None = None
        self.message = ""
        self.progress: tuple[int, int] | None = None
        self.lines: deque[tuple[int, str]] = deque()
        self.left_out = 0
        """Lines before the first that is here."""
        self.text = Lines()

    @property
    def is_shown(self) -> bool:
        """Whether it has begun, so that the log has a place for it."""
        return self.began is not None

    @property
    def is_open(self) -> bool:
        """Whether its lines are unfolded to begin with."""
        return self.status not in ("cached", "waiting")


class Note:
    """A line of the log that belongs to no step."""

    def __init__(self, text: str, *, warning: bool) -> None:
        self.text, self.warning = text, warning


class Fresh:
    """What is new since it was asked for last."""

    def __init__(self) -> None:
        self.anew = False
        """The log has begun again: all that was there is to go."""
        self.planned = False
        self.items: list[Step | Note] = []
        self.lines: dict[Step, deque[tuple[int, str]]] = {}
        """No more than a window of them, whenever it is asked."""
        self.skipped: dict[Step, None] = {}
        """Steps of which lines came and went since then."""
        self.heads: dict[Step, None] = {}
        self.open: dict[Step, None] = {}

    def __bool__(self) -> bool:
        return bool(
            self.anew or self.planned or self.items or self.lines or self.heads or self.open
        )


class LogView:
    """The state of a log; `feed` it every event in order.

    It keeps the last `window` lines, or with `around` the window that has that line. `following`
    also notes what is new for `fresh`.
    """

    def __init__(
        self, *, window: int = WINDOW, around: int | None = None, following: bool = False
    ) -> None:
        self._window, self._following = window, following
        self._first = 1 if around is None else max(1, around - window // 10)
        self._last = math.inf if around is None else self._first + window - 1
        self._begin()
        self.attempt = 0
        """The worker whose log it is, counted from 1; it is set by who feeds it."""
        self._fresh = Fresh()

    def _begin(self) -> None:
        self.steps: list[Step] = []
        """In the order of the plan."""
        self._known: dict[Key, Step] = {}
        self.items: list[Step | Note] = []
        self.total = 0
        self.result: events.BuildDone | events.BuildEnded | None = None
        self._kept: deque[Step] = deque()
        self._notes = 0

    @property
    def first(self) -> int:
        """The number of the first line that is here; above `total` if none is."""
        found = (step.lines[0][0] for step in self.steps if step.lines)
        return min(found, default=self.total + 1)

    @property
    def at_end(self) -> bool:
        """Whether the window reaches to the end of what there is by now."""
        return self.total <= self._last

    @property
    def timed(self) -> list[Step]:
        """The steps that have begun."""
        return [step for step in self.steps if step.began is not None]

    @property
    def began(self) -> float:
        """When the first of them did, in seconds since 1970."""
        return min((step.began for step in self.steps if step.began is not None), default=0.0)

    @property
    def length(self) -> float:
        """Seconds from the first of them to the last one's end."""
        ends = (step.began + (step.seconds or 0.0) for step in self.steps if step.began is not None)
        return max(ends, default=self.began) - self.began

    def anew(self) -> None:
        """The log begins again, on another worker."""
        self._begin()
        self._fresh = Fresh()
        self._fresh.anew = True

    def feed(self, event: events.Event, at: float) -> None:
        """Take an event that came `at` that time, in seconds since 1970."""
        match event:
            case events.BuildStarted():
                for info in event.steps:
                    self._made(info)
                self._fresh.planned = True
            case events.StepStarted():
                self._start(event, at)
            case events.Output():
                self._output(self._step(event.key, at), event.data)
            case events.Progress():
                step = self._step(event.key, at)
                step.progress = (event.done, event.total)
                self._changed(step)
            case events.Note():
                self._note(event)
            case events.StepCached():
                self._end(event.key, at, "cached", 0.0)
            case events.StepDone():
                self._end(event.key, at, "done", event.seconds)
            case events.StepEnded():
                status: Status = "cancelled" if event.code == "cancelled" else "failed"
                self._end(event.key, at, status, event.seconds, event.message)
            case events.CacheMoved():
                self._note(events.Note(text=str(event)))
            case events.BuildDone() | events.BuildEnded():
                self.result = event

    def fresh(self) -> Fresh:
        """What is new since the last time."""
        found, self._fresh = self._fresh, Fresh()
        return found

    def _made(self, info: events.StepInfo) -> Step:
        step = self._known[info.key] = Step(len(self.steps), info)
        self.steps.append(step)
        return step

    def _step(self, key: Key, at: float) -> Step:
        """The step of that key: one of its own for events of something that has no plan."""
        step = self._known.get(key)
        if step is None:
            step = self._made(events.StepInfo(key=key, stage="", heading="", cached=False))
        if not step.is_shown:
            step.began, step.status = at, "running"
            self._add(step)
        return step

    def _start(self, event: events.StepStarted, at: float) -> None:
        step = self._known.get(event.key) or self._same(event)
        if step is not None and step.is_shown:  # what came so far was of a process that has died
            self._kept = deque(other for other in self._kept if other is not step)
            step.lines.clear()
            step.text, step.left_out, step.began, step.status = Lines(), 0, at, "running"
            self._fresh.lines.pop(step, None)
            self._fresh.skipped.pop(step, None)
            self._add(step)
            return
        step = self._step(event.key, at)
        step.stage, step.heading, step.notes = event.stage, event.heading, event.notes

    def _same(self, event: events.StepStarted) -> Step | None:
        """The planned step whose result was found under another key, that of its content."""
        for step in self.steps:
            if not step.is_shown and (step.stage, step.heading) == (event.stage, event.heading):
                self._known[event.key] = step
                return step
        return None

    def _add(self, item: Step | Note) -> None:
        if item not in self.items:
            self.items.append(item)
        if self._following and item not in self._fresh.items:
            self._fresh.items.append(item)

    def _note(self, event: events.Note) -> None:
        self._notes += 1
        if self._notes <= _NOTES:
            self._add(Note(event.text, warning=event.warning))

    def _output(self, step: Step, data: bytes) -> None:
        self._lines(step, step.text.feed(data))
        if self._following:
            self._fresh.open[step] = None

    def _lines(self, step: Step, found: Iterable[str]) -> None:
        for line in found:
            self.total += 1
            if self.total < self._first or self.total > self._last:
                step.left_out += not step.lines
                continue
            entry = (self.total, line)
            step.lines.append(entry)
            self._kept.append(step)
            if self._following:
                self._fresh.lines.setdefault(step, deque()).append(entry)
            if len(self._kept) > self._window:
                self._drop(self._kept.popleft())

    def _drop(self, step: Step) -> None:
        """The oldest line of a step goes."""
        entry = step.lines.popleft()
        step.left_out += 1
        fresh = self._fresh.lines.get(step)
        if fresh and fresh[0] is entry:
            fresh.popleft()
            self._fresh.skipped[step] = None

    def _end(self, key: Key, at: float, status: Status, seconds: float, message: str = "") -> None:
        step = self._step(key, at)
        self._lines(step, step.text.end())
        step.status, step.seconds, step.message, step.progress = status, seconds, message, None
        if self._following:
            self._fresh.open[step] = None
        self._changed(step)

    def _changed(self, step: Step) -> None:
        if self._following:
            self._fresh.heads[step] = None
