"""Batches of a log: events as bytes, and batches in order again, whatever way they came. Pure."""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from obuilder import events
from obuilder.errors import Incompatible
from obuilder.values import shown

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[events.Event])


def packed(batch: list[events.Event]) -> bytes:
    """Events as bytes. Text that is none is shown as far as it can be."""
    try:
        return _encoder.encode(batch)
    except UnicodeEncodeError:
        return _encoder.encode([_readable(msgspec.structs.asdict(e) | _tag(e)) for e in batch])


def _tag(event: events.Event) -> dict[str, object]:
    return {"event": event.__struct_config__.tag}


def _readable(value: object) -> object:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    if isinstance(value, Struct):
        return _readable(msgspec.structs.asdict(value))
    return value


def unpacked(data: bytes) -> list[events.Event]:
    """The events of a batch. Incompatible."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Incompatible(f"a batch of a log can't be read: {error}") from error


def follows(event: events.Progress, before: events.Event | None) -> bool:
    """Whether it is progress of the same step as what came before."""
    return isinstance(before, events.Progress) and before.key == event.key


def merged(found: list[events.Event]) -> list[events.Event]:
    """The same with neighbouring output of one step as one event."""
    joined: list[events.Event] = []
    pieces: list[bytes] = []
    for event in found:
        last = joined[-1] if joined else None
        if not isinstance(event, events.Output):
            _close(joined, pieces)
            joined.append(event)
        elif isinstance(last, events.Output) and last.key == event.key:
            pieces.append(event.data)
        else:
            _close(joined, pieces)
            joined.append(event)
            pieces.append(event.data)
    _close(joined, pieces)
    return joined


def _close(joined: list[events.Event], pieces: list[bytes]) -> None:
    if len(pieces) > 1 and isinstance(last := joined[-1], events.Output):
        joined[-1] = events.Output(last.key, b"".join(pieces))
    pieces.clear()


class Piece(Struct, frozen=True):
    """What a reader gets: events of a batch. `number` + 1 is where to go on from."""

    attempt: int
    number: int
    events: tuple[events.Event, ...]
    end: bool = False
    """Whether it is the last of its attempt."""
    time: float = 0.0
    """When it was stored, in seconds since 1970; 0: it has just come."""


class Message(Struct, frozen=True):
    """A batch as it goes over the wire: `at` is how much output came before it."""

    number: int
    attempt: int
    at: int
    end: bool
    data: bytes
    time: float = 0.0


def message_of(
    subject: str, headers: Mapping[str, str], data: bytes, time: float
) -> Message | None:
    """A batch as it came; None for what is none."""
    try:
        attempt = int(subject.split(".")[4])
        number, at = int(headers["n"]), int(headers.get("at", "0"))
    except (KeyError, ValueError, IndexError):
        return None
    return Message(number, attempt, at, "end" in headers, data, time)


class Order:
    """Puts batches in order: each once, what is left out told in its place."""

    def __init__(self, offset: int) -> None:
        self.attempt, self.next = 0, offset
        self._at: int | None = None
        self._held: dict[int, Message] = {}
        self.ended = False

    def take(self, message: Message) -> list[Piece]:
        """What can be shown now."""
        shown: list[Piece] = []
        if message.attempt > self.attempt:
            if self.attempt:
                self.next = 0
                text = f"the worker was lost: attempt {message.attempt} begins anew"
                note = events.Note(text=text, warning=True)
                shown.append(Piece(message.attempt, -1, (note,)))
            self.attempt, self._at, self.ended = message.attempt, None, False
            self._held.clear()
        if message.attempt == self.attempt and message.number >= self.next:
            self._held[message.number] = message
        return shown + self._ready()

    @property
    def gap(self) -> bool:
        """Whether something is missing before what is held."""
        return bool(self._held)

    def skip(self, room: int = 0) -> list[Piece]:
        """Give up on what is missing, until at most `room` batches are held."""
        shown: list[Piece] = []
        while len(self._held) > room:
            self.next = min(self._held)
            shown += self._ready()
        return shown

    def _ready(self) -> list[Piece]:
        shown: list[Piece] = []
        while (message := self._held.pop(self.next, None)) is not None:
            found = unpacked(message.data)
            if self._at is not None and message.at > self._at:
                text = f"[... {message.at - self._at} bytes left out ...]"
                found.insert(0, events.Note(text=text))
            self._at = message.at + sum(map(_loose_size, found))
            self.next += 1
            self.ended = message.end
            shown.append(
                Piece(self.attempt, message.number, tuple(found), message.end, message.time)
            )
        return shown


def _loose_size(event: events.Event) -> int:
    return len(event.data) if isinstance(event, events.Output) else 0
