"""The screen of a terminal: what runs now with its time and the tail of its output.

What is finished scrolls away above it, a line for each step; what a failed one wrote last stays.
"""

import time
from collections import deque
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from obuilder import events
from obuilder.spec.encode import one_line
from obuilder.ui.terminal import neutral
from obuilder.values import Key

_SHOWN_LINES = 5
_KEPT_LINES = 60
_INDENT = " " * 10


class _Running:
    """A step on the screen."""

    def __init__(self, event: events.StepStarted) -> None:
        self.event = event
        self.began = time.monotonic()
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.progress = ""
        self._open = b""

    def feed(self, data: bytes) -> None:
        *whole, self._open = (self._open + data).split(b"\n")
        self.lines.extend(map(_text, whole))
        if len(self._open) > 1 << 16:
            self.lines.append(_text(self._open))
            self._open = b""

    def tail(self, count: int) -> list[str]:
        last = [_text(self._open)] if self._open else []
        return [*self.lines, *last][-count:]


class LiveScreen:
    """A sink to use in a `with`. Nothing is drawn, and no thread started, before the first event.

    So the builder can enter its namespaces, which only a process of one thread may.
    """

    def __init__(self, stream: TextIO, *, colour: bool) -> None:
        self._running: dict[Key, _Running] = {}
        self._total = self._finished = 0
        self._began = time.monotonic()
        self._console = Console(file=stream, no_color=not colour, highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        """Get ready."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the moving part away."""
        self._running.clear()
        if self._live.is_started:
            self._live.stop()

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        if not self._live.is_started:
            self._live.start()
        match event:
            case events.BuildStarted():
                self._total = len(event.steps)
            case events.StepStarted():
                self._running[event.key] = _Running(event)
            case events.Output():
                running = self._running.get(event.key)
                if running is not None:
                    running.feed(event.data)
            case events.Progress():
                running = self._running.get(event.key)
                if running is not None:
                    done, total = event.done / 1e6, event.total / 1e6
                    running.progress = f" {done:.1f} of {total:.1f} MB"
            case events.StepCached():
                self._finish(event.key, "cached", "yellow")
            case events.StepDone():
                self._finish(event.key, "done", "green", event.seconds)
            case events.StepEnded():
                ended = "cancelled" if event.code == "cancelled" else "failed"
                self._finish(event.key, ended, "red", event.seconds)
            case events.CacheMoved():
                self._say(Text(str(event), style="cyan"))
            case events.Note():
                if event.warning:
                    self._console.print(
                        Text(f"warning: {_line(event.text)}", style="yellow"), soft_wrap=True
                    )
            case events.BuildDone() | events.BuildEnded():
                self._running.clear()
                self._live.stop()  # who goes on with the result has the terminal

    def _finish(self, key: Key, mark: str, style: str, seconds: float | None = None) -> None:
        running = self._running.pop(key, None)
        self._finished += 1
        if running is None:
            return
        taken = "" if seconds is None else f"{seconds:.1f}s"
        line = Text(f"{mark:9} {taken:>6}  ", style=style)
        self._say(line.append_text(_head(running.event)))
        if mark == "failed":
            for text in running.tail(_KEPT_LINES):
                self._console.print(Text(_INDENT + text), soft_wrap=True)

    def _say(self, line: Text) -> None:
        self._console.print(line, no_wrap=True, overflow="ellipsis", crop=True)

    def _draw(self) -> RenderableType:
        now = time.monotonic()
        lines = []
        if self._total:
            whole = f"[{self._finished}/{self._total}] {now - self._began:.1f}s"
            lines.append(Text(whole, style="bold"))
        for running in list(self._running.values()):
            head = Text(f"{'':9} {now - running.began:5.1f}s  ", style="cyan")
            head.append_text(_head(running.event)).append(running.progress, style="cyan")
            lines.append(head)
            lines.extend(Text(_INDENT + line, style="dim") for line in running.tail(_SHOWN_LINES))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines)


def _head(event: events.StepStarted) -> Text:
    """A step's stage and heading, in one line."""
    head = Text()
    if event.stage:
        head.append(f"[{_line(event.stage)}] ", style="magenta")
    return head.append(_line(one_line(event.heading)), style="default")


def _text(line: bytes) -> str:
    """The last state of a line that carriage returns wrote over, with nothing that steers."""
    shown = line.rstrip(b"\r").rpartition(b"\r")[2]
    return neutral(shown, colours=False).decode("utf-8", "replace").expandtabs()


def _line(text: str) -> str:
    return neutral(text.encode("utf-8", "surrogateescape"), colours=False).decode(
        "utf-8", "replace"
    )
