"""The engine: what the cluster does with NATS JetStream.

Streams are read without consumers: by direct gets, in batches, and followed by the copies that the
server says of what it has stored (`live.SUBJECT`, with numbers). What is read twice is known by its
number.
"""

import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import Any

import anyio

from obuilder.cluster.accounts import live
from obuilder.cluster.answers import (
    Conflict,
    Message,
    Missing,
    Stored,
    copied_of,
    status_of,
    stored_of,
)
from obuilder.cluster.connection import ATTEMPT
from obuilder.cluster.credentials import Credentials
from obuilder.cluster.pulls import GROUP, Delivery, Pulls
from obuilder.cluster.tasks import together
from obuilder.errors import ClusterError, Refused

__all__ = ["Conflict", "Delivery", "Engine", "Missing", "Stored"]

_BATCH = 1000
_BYTES = 4 << 20
_NAMED = 512
_FRESH = 5.0
"""Seconds for which what was not surely stored is kept, and bytes of it at most."""
_FRESH_BYTES = 8 << 20
_ONCE = 100.0
"""Seconds after which it is not said again: streams know for 120 what they have."""
_BEHIND = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0)
"""Seconds between looks for what a server may not have yet."""
_CONFLICTS = frozenset((10071, 10164))
_GONE = {"Nats-Marker-Reason": "Remove"}


class Engine(Pulls):
    """A connection. Every method may run at the same time as any other; all raise ClusterError."""

    def __init__(self, credentials: Credentials, name: str) -> None:
        super().__init__(credentials, name)
        self._fresh: deque[tuple[float, str, bytes, dict[str, str]]] = deque()
        """What was stored lately, and may not be on the server's disk yet."""
        self._fresh_size = 0

    # --- writing ---------------------------------------------------------------------------------

    async def put(
        self,
        subject: str,
        data: bytes,
        *,
        expect: int | None = None,
        ttl: float | None = None,
        once: str | None = None,
        headers: Mapping[str, str] | None = None,
        sure: bool = True,
    ) -> int:
        """Store a message: its number, once it is safe. Conflict, Refused, ClusterError.

        `expect`: the number of the last one there, 0 for none, else Conflict. `ttl`: seconds (1
        at least) after which it is removed. `once`: a name under which it is stored a single
        time, however often it is put. Not `sure`: the stream acknowledges what is not on disk
        yet, so it is said again to a server that has started anew.
        """
        sent = dict(headers or {})
        sent["Nats-Msg-Id"] = once or token_hex(12)  # so that trying again stores it once
        if expect is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expect)
        if ttl is not None:
            sent["Nats-TTL"] = f"{max(1, round(ttl))}s"
        message = await self._insist(subject, data, sent)
        found = json.loads(message.data)
        if error := found.get("error"):
            text = str(error.get("description", "it failed"))
            if error.get("err_code") in _CONFLICTS:
                raise Conflict(f"{subject} was changed by somebody else: {text}")
            raise ClusterError(f"the cluster did not store {subject}: {text}")
        if not sure:
            self._remember(subject, data, sent)
        return int(found["seq"])

    def _remember(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        now, fresh = anyio.current_time(), self._fresh
        fresh.append((now, subject, data, headers))
        self._fresh_size += len(data)
        while fresh and (now - fresh[0][0] > _FRESH or self._fresh_size > _FRESH_BYTES):
            self._fresh_size -= len(fresh.popleft()[2])

    async def _reconnected(self) -> None:
        # In order, and before anything that still waits for an answer is tried again.
        now = anyio.current_time()
        for at, subject, data, headers in tuple(self._fresh):
            if now - at < _ONCE:
                with suppress(ClusterError):
                    await self._send(subject, data, headers=headers)
        await super()._reconnected()

    async def remove(self, stream: str, subject: str) -> None:
        """Remove all messages of a subject or a filter."""
        await self._api(f"STREAM.PURGE.{stream}", {"filter": subject})

    # --- reading ---------------------------------------------------------------------------------

    async def last(self, stream: str, subject: str, *, marks: bool = False) -> Stored | None:
        """The last message of a subject; None if there is none. `marks`: also one that says so."""
        message = await self._insist(f"$JS.API.DIRECT.GET.{stream}.{subject}")
        if status_of(message) == 404:
            return None
        found = stored_of(message)
        return None if found.removed and not marks else found

    async def known(self, stream: str, subject: str) -> Stored | None:
        """The last message of a subject that was stored before, by anybody.

        Of several servers the one that answers may be behind, so none is believed at once that
        it is not there.
        """
        for pause in _BEHIND if len(self.credentials.urls) > 1 else ():
            found = await self.last(stream, subject)
            if found is not None:
                return found
            await anyio.sleep(pause)
        return await self.last(stream, subject)

    async def each(self, stream: str, *filters: str) -> list[Stored]:
        """The last message of each subject that a filter takes in, in order."""
        if self.credentials.kind == "worker" and not any(set("*>") & set(f) for f in filters):
            return await self._each_by_name(stream, filters)
        found: dict[str, Stored] = {}
        for filter_ in filters:
            async for message in self.read(stream, filter_):
                found.pop(message.subject, None)
                if not message.removed:
                    found[message.subject] = message
        return sorted(found.values(), key=lambda message: message.seq)

    async def named(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        """The last messages of these subjects, many at a time: for small ones."""
        found: list[Stored] = []
        for at in range(0, len(subjects), _NAMED):
            asked = {"multi_last": list(subjects[at : at + _NAMED]), "batch": _NAMED}
            found += await self._several(f"$JS.API.DIRECT.GET.{stream}", json.dumps(asked).encode())
        return found

    async def _several(self, subject: str, asked: bytes) -> list[Stored]:
        until = anyio.current_time() + self.patience
        while anyio.current_time() < until:
            found: list[Stored] = []
            async with self._ask(subject, asked) as answers:
                while True:
                    message: Message | None = None
                    with anyio.move_on_after(ATTEMPT):
                        message = await self._next(answers.receive, subject)
                    status = 503 if message is None else status_of(message)
                    if message is None or status == 503:
                        break
                    if status in (204, 404):
                        return [each for each in found if not each.removed]
                    if status >= 400:
                        raise ClusterError(f"the cluster can't answer {subject}: {status}")
                    found.append(stored_of(message))
            await anyio.sleep(0.2)
        raise ClusterError(f"the cluster gave no answer ({subject})")

    async def _each_by_name(self, stream: str, subjects: tuple[str, ...]) -> list[Stored]:
        found: list[Stored] = []
        limit = anyio.CapacityLimiter(16)

        async def get(subject: str) -> None:
            async with limit:
                message = await self.last(stream, subject)
            if message is not None:
                found.append(message)

        async with together() as tasks:
            for subject in subjects:
                tasks.start_soon(get, subject)
        return sorted(found, key=lambda message: message.seq)

    async def read(self, stream: str, subject: str, *, after: int = 0) -> AsyncIterator[Stored]:
        """What is stored of a subject or filter, in order, from the first number after `after`."""
        until = anyio.current_time() + self.patience
        seq = after
        while True:
            asked = {
                "seq": seq + 1, "next_by_subj": subject, "batch": _BATCH, "max_bytes": _BYTES,
            }  # fmt: skip
            subject_ = f"$JS.API.DIRECT.GET.{stream}"
            whole = False
            async with self._ask(subject_, json.dumps(asked).encode()) as answers:
                while True:
                    message: Message | None = None
                    with anyio.move_on_after(ATTEMPT):
                        message = await self._next(answers.receive, subject_)
                    status = 0 if message is None else status_of(message)
                    if message is None or status == 503:
                        break
                    if status == 404:
                        return
                    if status == 204:
                        whole = True
                        if int((message.headers or {}).get("Nats-Num-Pending", "0")) == 0:
                            return
                        break
                    if status >= 400:
                        raise ClusterError(f"the cluster can't list {subject}: {status}")
                    stored = stored_of(message)
                    if stored.seq > seq:
                        seq = stored.seq
                        until = anyio.current_time() + self.patience
                        yield stored
            if not whole:
                if anyio.current_time() > until:
                    raise ClusterError(f"the cluster gave no answer ({subject_})")
                await anyio.sleep(0.2)

    @asynccontextmanager
    async def watch(
        self, stream: str, filter_: str, *, every: float = 15.0
    ) -> AsyncIterator[AsyncIterator[Stored]]:
        """The last message of each subject, then each new one; empty data for what is removed.

        The list is read again after a reconnect, and each `every` seconds. Once it was had,
        a cluster that does not answer is waited for.
        """
        send, receive = anyio.create_memory_object_stream[Stored](float("inf"))
        known: dict[str, int] = {}
        missed: set[str] = set()
        alone = len(self.credentials.urls) == 1
        again = anyio.Event()

        def wake() -> None:
            again.set()

        def show(message: Stored) -> None:
            if message.seq > known.get(message.subject, 0):
                known[message.subject] = message.seq
                send.send_nowait(message)

        async def listen(messages: AsyncIterator[Message]) -> None:
            async for message in messages:
                show(copied_of(message))

        async def list_all() -> None:
            nonlocal again
            first = True
            while True:
                before = dict(known)
                try:
                    listed = await self.each(stream, filter_)
                except ClusterError as error:
                    if first or isinstance(error, Refused):
                        raise
                    await anyio.sleep(1)
                    continue
                first = False
                found = {message.subject: message for message in listed}
                for message in found.values():
                    show(message)
                for subject, seq in before.items():
                    if subject in found or known.get(subject) != seq:
                        missed.discard(subject)
                    elif alone or subject in missed:
                        missed.discard(subject)
                        del known[subject]
                        send.send_nowait(Stored(subject, 0, b"", 0.0, _GONE))
                    else:  # whoever answered may be behind, or it was replaced meanwhile
                        missed.add(subject)
                with anyio.move_on_after(every):
                    await again.wait()
                again = anyio.Event()

        self._callbacks.append(wake)
        try:
            async with (
                self._listen(live(filter_)) as messages,
                together() as tasks,
            ):
                tasks.start_soon(listen, messages)
                tasks.start_soon(list_all)
                with send, receive:
                    yield receive
                tasks.cancel_scope.cancel()
        finally:
            self._callbacks.remove(wake)

    async def pending(self, stream: str, filter_: str) -> dict[str, int]:
        """How many messages there are of each subject."""
        found: dict[str, int] = {}
        while True:
            asked = {"subjects_filter": filter_, "offset": len(found)}
            info = await self._api(f"STREAM.INFO.{stream}", asked)
            more = info["state"].get("subjects") or {}
            found.update(more)
            if not more or len(found) >= int(info.get("total", 0)):
                return found

    async def consumer_count(self, stream: str) -> int:
        """How many consumers a stream has."""
        info = await self._api(f"STREAM.INFO.{stream}")
        return int(info["state"]["consumer_count"])

    # --- administration --------------------------------------------------------------------------

    async def ensure_stream(self, config: Mapping[str, Any]) -> None:
        """Make a stream, or give it these settings. ClusterError."""
        name = config["name"]
        try:
            found = await self._api(f"STREAM.INFO.{name}")
        except Missing:
            await self._api(f"STREAM.CREATE.{name}", config)
            return
        if not _within(config, found["config"]):
            await self._api(f"STREAM.UPDATE.{name}", {**found["config"], **config})

    async def ensure_consumer(self, stream: str, config: Mapping[str, Any]) -> None:
        """Make a consumer, or give it these settings. Missing, ClusterError."""
        asked = {
            "stream_name": stream,
            "config": {"priority_groups": [GROUP], "priority_policy": "overflow", **config},
        }
        name, filter_ = config["durable_name"], config["filter_subject"]
        await self._api(f"CONSUMER.CREATE.{stream}.{name}.{filter_}", asked)

    async def drop_consumer(self, stream: str, name: str) -> None:
        """Remove a consumer, if there is one."""
        with suppress(Missing):
            await self._api(f"CONSUMER.DELETE.{stream}.{name}")

    async def drop_stream(self, name: str) -> None:
        """Remove a stream and all that is in it, if there is one."""
        with suppress(Missing):
            await self._api(f"STREAM.DELETE.{name}")

    async def consumers(self, stream: str) -> dict[str, dict[str, Any]]:
        """What the server says of each consumer. Missing."""
        found: dict[str, dict[str, Any]] = {}
        while True:
            page = await self._api(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
            more = page.get("consumers") or []
            found.update({each["name"]: each for each in more})
            if not more or len(found) >= int(page.get("total", 0)):
                return found

    async def streams(self) -> dict[str, dict[str, Any]]:
        """What the server says of each stream."""
        found: dict[str, dict[str, Any]] = {}
        while True:
            page = await self._api("STREAM.LIST", {"offset": len(found)})
            more = page.get("streams") or []
            found.update({each["config"]["name"]: each for each in more})
            if not more or len(found) >= int(page.get("total", 0)):
                return found

    async def gather(self, subject: str, *, seconds: float = 1.0) -> list[bytes]:
        """What everybody answers who hears `subject` within that time."""
        found: list[bytes] = []
        async with self._ask(subject) as answers:
            with anyio.move_on_after(seconds):
                async for message in answers:
                    found += [bytes(message.data)] * (status_of(message) == 0)
        return found


def _within(asked: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a stream has all the settings that are asked for."""
    return all(
        found.get(name) == value or (not value and name not in found)
        for name, value in asked.items()
    )
