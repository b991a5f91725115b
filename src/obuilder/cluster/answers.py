"""What comes from the engine, read: messages, statuses, errors. Pure."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from obuilder.errors import ClusterError

_TEMPORARY = frozenset((10002, 10008, 10009, 10074, 10077, 10118, 10158, 10163, 10167))
"""Errors of servers that come up, elect a leader, are busy, or just store what came first (10158)."""


class Message(Protocol):
    """A message as it comes."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None


class Stored(Struct, frozen=True):
    """A message. `seq` is its number in its stream (0: it is in none), `time` when it was stored."""

    subject: str
    seq: int
    data: bytes
    time: float
    headers: Mapping[str, str]

    @property
    def removed(self) -> bool:
        """Whether it says that what was there is gone."""
        return "Nats-Marker-Reason" in self.headers


class Conflict(ClusterError):
    """Somebody else changed it first."""

    code = "conflict"


class Missing(ClusterError):
    """There is no such stream or consumer."""

    code = "missing"


def status_of(message: Message) -> int:
    """The status that a message carries; 0 for an ordinary one."""
    status = (message.headers or {}).get("Status", "")
    return int(status) if status.isdigit() else 0


def description_of(message: Message) -> str:
    """What a status is about."""
    return (message.headers or {}).get("Description", "")


def temporary(message: Message) -> bool:
    """Whether an answer means that a later one may be better."""
    if status_of(message) in (408, 503):
        return True
    if message.data[:1] != b"{" or b'"error"' not in message.data or message.headers:
        return False
    try:
        error = json.loads(message.data).get("error") or {}
    except ValueError:
        return False
    if not isinstance(error, dict):
        return False
    return error.get("code") == 503 or error.get("err_code") in _TEMPORARY


def not_here(message: Message) -> bool:
    """Whether an account says that it has no streams itself."""
    return b'"err_code":10039' in message.data and b"_response" in message.data[:80]


def stored_of(message: Message) -> Stored:
    """A message as a stream gave it."""
    headers = dict(message.headers or {})
    return Stored(
        headers.pop("Nats-Subject", message.subject),
        int(headers.pop("Nats-Sequence", "0")),
        bytes(message.data),
        _time(headers.pop("Nats-Time-Stamp", "")),
        headers,
    )


def copied_of(message: Message) -> Stored:
    """A message of a stream as the server said it to all; empty if it says that something is gone."""
    stored = stored_of(message)
    if stored.removed and stored.data:
        return Stored(stored.subject, stored.seq, b"", stored.time, stored.headers)
    return stored


def _time(text: str) -> float:
    """Seconds since 1970 of a time as the server writes it, with up to nine digits."""
    whole, _, rest = text.rstrip("Z").partition(".")
    if not whole:
        return 0.0
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest or 0}")
