"""Plain lines, as OBuilder prints them: headings, output as it is, notes."""

import sys
from typing import BinaryIO

from obuilder import events

_BLUE, _YELLOW, _PLAIN = b"\x1b[34m", b"\x1b[33m", b"\x1b[0m"


class PlainSink:
    """Writes a build's events to a stream of bytes."""

    def __init__(self, stream: BinaryIO, *, colour: bool, guard: bool) -> None:
        """`guard` makes control bytes of steps visible in place of sending them to a terminal."""
        self._stream, self._colour, self._guard = stream, colour, guard
        self._at_start = True

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.StepStarted():
                for note in event.notes:
                    self._line(note, _BLUE)
                self._line(event.heading, _BLUE)
            case events.Output():
                self._write(neutral(event.data) if self._guard else event.data)
            case events.StepCached():
                self._line(f'---> using "{event.key}" from cache', _YELLOW)
            case events.StepDone():
                self._line(f'---> saved as "{event.key}"', _YELLOW)
            case events.Note():
                self._line(event.text, _YELLOW if event.key else _BLUE)
            case _:
                return
        self._stream.flush()

    def _write(self, data: bytes) -> None:
        if data:
            self._stream.write(data)
            self._at_start = data.endswith(b"\n")

    def _line(self, text: str, colour: bytes) -> None:
        data = text.encode("utf-8", "surrogateescape")
        if self._guard:
            data = neutral(data)
        if self._colour:
            data = colour + data + _PLAIN
        if not self._at_start:
            data = b"\n" + data
        self._write(data + b"\n")


_SHOWN = {byte: b"^%c" % (byte + 64) for byte in range(32) if byte not in b"\t\n\r"} | {127: b"^?"}


def neutral(data: bytes) -> bytes:
    """Output that can't steer a terminal: control bytes but tab and line ends are shown as ^X."""
    if not any(byte in _SHOWN for byte in data):
        return data
    return b"".join(_SHOWN.get(byte) or bytes((byte,)) for byte in data)


def plain(colour: bool) -> PlainSink:
    """The plain screen on standard output."""
    return PlainSink(sys.stdout.buffer, colour=colour, guard=sys.stdout.isatty())
