"""Plain lines, as OBuilder prints them: headings, output as it is, notes.

Where a build has several stages, which run at the same time, each line of a stage bears its name, and
output is shown by whole lines.
"""

import sys
from typing import BinaryIO

from obuilder import events
from obuilder.ui.terminal import Neutral, neutral
from obuilder.values import Key

_BLUE, _YELLOW, _RED, _PLAIN = b"\x1b[34m", b"\x1b[33m", b"\x1b[31m", b"\x1b[0m"
_LONGEST = 1 << 16


class _Step:
    """What is being shown of a step: its stage, and what came of a line that has no end yet."""

    def __init__(self, stage: str) -> None:
        self.prefix = f"[{stage}] ".encode("utf-8", "surrogateescape") if stage else b""
        self.guard = Neutral()
        self.open = b""


class PlainSink:
    """Writes a build's events to a stream of bytes."""

    def __init__(self, stream: BinaryIO, *, colour: bool, guard: bool) -> None:
        """`guard` makes control bytes of steps visible in place of sending them to a terminal."""
        self._stream, self._colour, self._guard = stream, colour, guard
        self._at_start, self._staged = True, False
        self._steps: dict[Key, _Step] = {}

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.BuildStarted():
                self._staged = len({step.stage for step in event.steps}) > 1
                return
            case events.StepStarted():
                step = self._steps[event.key] = _Step(event.stage if self._staged else "")
                for note in event.notes:
                    self._line(note, _BLUE, step)
                self._line(event.heading, _BLUE, step)
            case events.Output():
                self._output(event.data, self._steps.get(event.key, _Step("")))
            case events.StepCached():
                place = event.place or "cache"
                self._end(event.key, f'---> using "{event.key}" from {place}', _YELLOW)
            case events.CacheMoved():
                self._line(str(event), _BLUE, _Step(""))
            case events.StepDone():
                self._end(event.key, f'---> saved as "{event.key}"', _YELLOW)
            case events.StepEnded():
                self._end(event.key, f"---> {event.message}" if self._staged else "", _RED)
            case events.Note():
                text = f"warning: {event.text}" if event.warning else event.text
                self._line(text, _YELLOW if event.warning else _BLUE, _Step(""))
            case _:
                return
        self._stream.flush()

    def _output(self, data: bytes, step: _Step) -> None:
        if self._guard:
            data = step.guard.feed(data)
        if not self._staged:
            self._write(data)
            return
        whole, end, step.open = (step.open + data).rpartition(b"\n")
        if end:
            self._lines(whole, step)
        if len(step.open) > _LONGEST:
            self._lines(step.open, step)
            step.open = b""

    def _lines(self, text: bytes, step: _Step) -> None:
        self._write(b"".join(step.prefix + line + b"\n" for line in text.split(b"\n")))
        if self._colour and b"\x1b" in text:
            self._stream.write(_PLAIN)  # the next line may be another step's

    def _end(self, key: Key, text: str, colour: bytes) -> None:
        step = self._steps.pop(key, _Step(""))
        rest = step.open + step.guard.end()
        if rest and self._staged:
            self._lines(rest, step)
        else:
            self._write(rest)
        if self._colour and not self._staged:
            self._stream.write(_PLAIN)  # a step's colour ends with it
        if text:
            self._line(text, colour, step)

    def _write(self, data: bytes) -> None:
        if data:
            self._stream.write(data)
            self._at_start = data.endswith(b"\n")

    def _line(self, text: str, colour: bytes, step: _Step) -> None:
        data = text.encode("utf-8", "surrogateescape").replace(b"\n", b"\n" + step.prefix)
        data = step.prefix + data
        if self._guard:
            data = neutral(data, colours=False)
        if self._colour:
            data = colour + data + _PLAIN
        if not self._at_start:
            data = b"\n" + data
        self._write(data + b"\n")


def plain(colour: bool) -> PlainSink:
    """The plain screen on standard output."""
    return PlainSink(sys.stdout.buffer, colour=colour, guard=sys.stdout.isatty())
