"""Plain lines, as OBuilder prints them: headings, output as it is, notes."""

import sys
from typing import BinaryIO

from obuilder import events
from obuilder.ui.terminal import Neutral, neutral
from obuilder.values import Key

_BLUE, _YELLOW, _PLAIN = b"\x1b[34m", b"\x1b[33m", b"\x1b[0m"


class PlainSink:
    """Writes a build's events to a stream of bytes."""

    def __init__(self, stream: BinaryIO, *, colour: bool, guard: bool) -> None:
        """`guard` makes control bytes of steps visible in place of sending them to a terminal."""
        self._stream, self._colour, self._guard = stream, colour, guard
        self._at_start = True
        self._streams: dict[Key, Neutral] = {}

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.StepStarted():
                for note in event.notes:
                    self._line(note, _BLUE)
                self._line(event.heading, _BLUE)
            case events.Output():
                data = event.data
                if self._guard:
                    data = self._streams.setdefault(event.key, Neutral()).feed(data)
                self._write(data)
            case events.StepCached():
                self._end(event.key)
                self._line(f'---> using "{event.key}" from cache', _YELLOW)
            case events.StepDone():
                self._end(event.key)
                self._line(f'---> saved as "{event.key}"', _YELLOW)
            case events.StepEnded():
                self._end(event.key)
            case events.Note():
                self._line(event.text, _YELLOW if event.key else _BLUE)
            case _:
                return
        self._stream.flush()

    def _end(self, key: Key) -> None:
        stream = self._streams.pop(key, None)
        if stream is not None:
            self._write(stream.end())
            if self._colour:
                self._stream.write(_PLAIN)  # a step's colour ends with it

    def _write(self, data: bytes) -> None:
        if data:
            self._stream.write(data)
            self._at_start = data.endswith(b"\n")

    def _line(self, text: str, colour: bytes) -> None:
        data = text.encode("utf-8", "surrogateescape")
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
