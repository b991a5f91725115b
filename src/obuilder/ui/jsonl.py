"""Events for machines: one JSON object a line; `schema` in the first one, see events.py."""

from typing import BinaryIO

import msgspec

from obuilder import events


class JsonSink:
    """Writes every event as a line. Output's bytes are base64, as JSON holds text only."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._encoder = msgspec.json.Encoder()
        self._stream.write(b'{"event":"schema","version":%d}\n' % events.SCHEMA_VERSION)

    def __call__(self, event: events.Event) -> None:
        """Write one event."""
        self._stream.write(self._encoder.encode(_text(event)) + b"\n")
        self._stream.flush()


def _text(event: events.Event) -> object:
    """Lone surrogates (bytes that are no text) can't stand in JSON: they become U+FFFD."""
    return msgspec.to_builtins(event, str_keys=True) if _clean(event) else _cleaned(event)


def _clean(event: events.Event) -> bool:
    try:
        repr(event).encode()
    except UnicodeEncodeError:
        return False
    return True


def _cleaned(event: events.Event) -> object:
    def walk(value: object) -> object:
        if isinstance(value, str):
            return value.encode("utf-8", "replace").decode()
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [walk(item) for item in value]
        return value

    return walk(msgspec.to_builtins(event))
