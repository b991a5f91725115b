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
        try:
            line = self._encoder.encode(event)
        except UnicodeEncodeError:
            line = self._encoder.encode(_cleaned(event))
        self._stream.write(line + b"\n")
        self._stream.flush()


def _cleaned(event: events.Event) -> object:
    """Lone surrogates (bytes that are no text) can't stand in JSON: they become question marks."""

    def walk(value: object) -> object:
        if isinstance(value, str):
            return value.encode("utf-8", "replace").decode()
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [walk(item) for item in value]
        return value

    return walk(msgspec.to_builtins(event))
