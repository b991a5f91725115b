"""The screen of a terminal: what runs now with its time and the tail of its output.

What is finished scrolls away above it, in the words of the plain screen.
"""

import time
from collections import deque
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from obuilder import events
from obuilder.ui.terminal import neutral
from obuilder.values import Key

_SHOWN_LINES = 5
_KEPT_LINES = 60


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
        self._sent: dict[Key, str] = {}
        self._total = self._finished = 0
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
        self._sent.clear()
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
                told = f" {event.done / 1e6:.1f} of {event.total / 1e6:.1f} MB"
                if running is not None:
                    running.progress = told
                elif event.done < event.total:
                    self._sent[event.key] = f"sending {event.key[:12]}{told}"
                else:
                    self._sent.pop(event.key, None)
            case events.StepCached():
                self._finish(event.key, f'---> using "{event.key}" from cache', "yellow")
            case events.StepDone():
                self._finish(
                    event.key, f'---> saved as "{event.key}" ({event.seconds:.1f}s)', "green"
                )
            case events.StepEnded():
                running = self._running.get(event.key)
                tail = running.tail(_KEPT_LINES) if running else []
                self._finish(event.key, f"---> {_line(event.message)}", "red", tail)
            case events.Note():
                self._say(_line(event.text), "yellow" if event.key else "blue")
            case events.BuildDone() | events.BuildEnded():
                self._running.clear()

    def _finish(self, key: Key, mark: str, style: str, tail: list[str] | None = None) -> None:
        running = self._running.pop(key, None)
        self._finished += 1
        if running is not None:
            for note in running.event.notes:
                self._say(_line(note), "blue")
            self._say(_line(running.event.heading), "blue")
        for line in tail or []:
            self._say(line, "")
        self._say(mark, style)

    def _say(self, line: str, style: str) -> None:
        self._console.print(Text(line, style=style), soft_wrap=True)

    def _draw(self) -> RenderableType:
        now = time.monotonic()
        lines = []
        if self._total:
            lines.append(Text(f"[{self._finished}/{self._total}]", style="bold"))
        for running in list(self._running.values()):
            head = Text(no_wrap=True, overflow="ellipsis")
            head.append(f"{now - running.began:6.1f}s ", style="cyan")
            if running.event.stage:
                head.append(f"[{_line(running.event.stage)}] ", style="magenta")
            head.append(_line(running.event.heading.partition("\n")[0]))
            head.append(running.progress, style="cyan")
            lines.append(head)
            lines.extend(
                Text(f"        {line}", style="dim", no_wrap=True, overflow="ellipsis")
                for line in running.tail(_SHOWN_LINES)
            )
        lines.extend(Text(line, style="cyan") for line in self._sent.values())
        return Group(*lines)


def _text(line: bytes) -> str:
    """The last state of a line that carriage returns wrote over, with nothing that steers."""
    shown = line.rstrip(b"\r").rpartition(b"\r")[2]
    return neutral(shown, colours=False).decode("utf-8", "replace").expandtabs()


def _line(text: str) -> str:
    return neutral(text.encode("utf-8", "surrogateescape"), colours=False).decode(
        "utf-8", "replace"
    )
