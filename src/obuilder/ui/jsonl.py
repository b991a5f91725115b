"""JSON for machines: any value, and events one object a line; `schema` in the first, see events.py."""

from typing import BinaryIO

import msgspec

from obuilder import events
from obuilder.errors import ObuilderError
from obuilder.values import shown


def as_json(value: object, *, indent: int = 0) -> bytes:
    r"""A value as JSON, without a final newline. Bytes that are no text are shown as \xNN."""
    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:
        data = msgspec.json.encode(_readable(msgspec.to_builtins(value)))
    return msgspec.json.format(data, indent=indent) if indent else data


def _readable(value: object) -> object:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return value


class JsonSink:
    """Writes every event as a line. Output's bytes are base64, as JSON holds text only."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._ended = stream, False
        self._stream.write(b'{"event":"schema","version":%d}\n' % events.SCHEMA_VERSION)

    def fail(self, error: ObuilderError) -> None:
        """Write the end of a build that did not come so far as to tell it itself."""
        if not self._ended:
            self(events.BuildEnded(code=error.code, message=error.message, seconds=0.0))

    def __call__(self, event: events.Event) -> None:
        """Write one event."""
        self._ended = isinstance(event, events.BuildEnded | events.BuildDone)
        self._stream.write(as_json(event) + b"\n")
        self._stream.flush()
