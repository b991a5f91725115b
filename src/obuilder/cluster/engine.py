"""The engine: all that the cluster does with NATS JetStream, and the only importer of it.

Streams are read without consumers: by direct gets, in batches, and followed by the copies that the
server says of what it has stored (`live.SUBJECT`, with numbers). What is read twice is known by its
number. A connection that breaks is made again, for ever; what was asked meanwhile is asked again.
"""

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec import Struct
from nats import errors as nats_errors
from nats.aio.client import Client as Connection
from nats.aio.msg import Msg

from obuilder.cluster.accounts import inbox, live
from obuilder.cluster.credentials import Credentials
from obuilder.errors import ClusterError, Incompatible, Refused

OLDEST = (2, 12)
"""The oldest server that has all that we rely on."""
_UNREACHABLE = 10.0
"""Seconds for the first connection."""
_ATTEMPT = 5.0
"""Seconds for one try of a request."""
PATIENCE = 40.0
"""Seconds for a request with all its tries: an election in a cluster takes some."""
_BATCH = 1000
_BYTES = 4 << 20
_NAMED = 512
_GROUP = "all"
"""The priority group of all consumers."""
_TEMPORARY = frozenset((10008, 10002, 10009, 10074, 10077, 10118, 10157))
_CONFLICTS = frozenset((10071, 10164))


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


Answers = MemoryObjectReceiveStream[Msg]


class Engine:
    """A connection. Every method may run at the same time as any other; all raise ClusterError."""

    def __init__(self, credentials: Credentials, name: str) -> None:
        self.credentials = credentials
        self.patience = PATIENCE
        self._name = name
        key = credentials.key
        self._key, self._inbox = key, inbox(key.public)
        self._client = Connection()
        self._waiting: dict[str, MemoryObjectSendStream[Msg]] = {}
        self._refused: dict[str, str] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._last: Exception | None = None
        self._failed = anyio.Event()

    # --- connecting ------------------------------------------------------------------------------

    @classmethod
    @asynccontextmanager
    async def connect(cls, credentials: Credentials, *, name: str = "") -> AsyncIterator["Engine"]:
        """Connect, and stay connected. ClusterError, Refused, Incompatible."""
        engine = cls(credentials, name or credentials.name)
        await engine._open()
        try:
            yield engine
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                with suppress(nats_errors.Error, OSError, TimeoutError):
                    await engine._client.flush(timeout=2)
                await engine._client.close()

    async def _open(self) -> None:
        urls = list(self.credentials.urls)
        with anyio.move_on_after(_UNREACHABLE) as scope:
            async with anyio.create_task_group() as tasks:

                async def give_up() -> None:
                    await self._failed.wait()
                    scope.cancel()

                tasks.start_soon(give_up)
                with suppress(nats_errors.Error, OSError, TimeoutError):
                    await self._client.connect(
                        urls,
                        name=self._name,
                        # It has the client send what the two functions below give.
                        user=self.credentials.name,
                        signature_cb=self._sign,
                        user_jwt_cb=self.credentials.jwt.encode,
                        inbox_prefix=self._inbox,
                        tls=_tls(self.credentials),
                        error_cb=self._error,
                        reconnected_cb=self._reconnected,
                        max_reconnect_attempts=-1,
                        reconnect_time_wait=0.25,  # type: ignore[arg-type] # it only sleeps so long
                        connect_timeout=3,
                        ping_interval=15,
                        max_outstanding_pings=2,
                        pending_size=32 << 20,
                    )
                tasks.cancel_scope.cancel()
        if not self._client.is_connected:
            with anyio.CancelScope(shield=True), suppress(Exception):
                await self._client.close()
            raise self._unreachable()
        version = self._client.connected_server_version
        if (version.major, version.minor) < OLDEST:
            await self._client.close()
            oldest = ".".join(map(str, OLDEST))
            raise Incompatible(
                f"the nats-server there is {version}, and it takes {oldest} or a later one",
                hint="update it; obuilder's extra [local-cluster] brings one",
            )
        await self._client.subscribe(f"{self._inbox}.*", cb=self._answer)

    def _unreachable(self) -> ClusterError:
        where, last = ", ".join(self.credentials.urls), self._last
        if _unknown(last):
            return Refused(
                f"the cluster at {where} does not know these credentials",
                hint="they were revoked, or are another cluster's",
            )
        if isinstance(last, ssl.SSLError):
            return Refused(f"the server at {where} is not of this cluster: {last}")
        why = f": {last}" if last and str(last) else ""
        return ClusterError(
            f"the cluster at {where} can't be reached{why}",
            hint="is it up? `obuilder cluster up` starts one on this machine",
        )

    def _sign(self, nonce: str) -> bytes:
        import base64

        return base64.b64encode(self._key.sign(nonce.encode()))

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return bool(self._client.is_connected)

    @property
    def closed(self) -> bool:
        """Whether it is over: the cluster has no place for us any more."""
        return bool(self._client.is_closed)

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call something each time the connection was made again. What ends that."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    async def _reconnected(self) -> None:
        for callback in tuple(self._callbacks):
            callback()

    async def _error(self, error: Exception) -> None:
        self._last = error
        text = str(error)
        if isinstance(error, ssl.SSLError) or _unknown(error):
            self._failed.set()
        elif "ermissions violation" in text and '"' in text:
            self._refused[text.split('"')[1]] = text.removeprefix("nats: ")

    # --- requests --------------------------------------------------------------------------------

    async def _answer(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is not None:
            with suppress(anyio.BrokenResourceError):
                waiting.send_nowait(message)

    @asynccontextmanager
    async def _ask(
        self, subject: str, data: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Answers]:
        """Send a request; its answers."""
        name = token_hex(12)
        send, receive = anyio.create_memory_object_stream[Msg](float("inf"))
        self._waiting[name] = send
        try:
            await self._send(subject, data, f"{self._inbox}.{name}", headers)
            with receive:
                yield receive
        finally:
            del self._waiting[name]
            send.close()

    async def _send(
        self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        try:
            await self._client.publish(
                subject, data, reply=reply, headers=dict(headers) if headers else None
            )
        except nats_errors.MaxPayloadError as error:
            raise ClusterError(f"{len(data)} bytes are too many for one message") from error
        except nats_errors.ConnectionClosedError as error:
            raise Refused("the cluster has ended this connection") from error
        except (nats_errors.Error, OSError, ValueError) as error:
            raise ClusterError(f"the cluster took no message: {error}") from error

    async def _once(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None, seconds: float
    ) -> Msg | None:
        """The first answer to a request; None if none came, or nobody is there to give one."""
        self._refused.pop(subject, None)
        async with self._ask(subject, data, headers) as answers:
            with anyio.move_on_after(seconds):
                message = await self._next(answers.receive, subject)
                return None if _status(message) == 503 else message
        return None

    async def _insist(
        self, subject: str, data: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Msg:
        """The answer to a request that may be sent several times. ClusterError."""
        until = anyio.current_time() + self.patience
        pause = 0.05
        while True:
            left = until - anyio.current_time()
            message = await self._once(subject, data, headers, min(_ATTEMPT, max(left, 0.1)))
            if message is not None and not _temporary(message):
                return message
            if anyio.current_time() + pause > until:
                raise ClusterError(
                    f"the cluster gave no answer in {self.patience:.0f} s ({subject})",
                    hint="is it up, and are most of its servers? `obuilder cluster doctor` tells",
                )
            await anyio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _api(self, verb: str, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """An answer of JetStream's interface. Missing, ClusterError."""
        message = await self._insist(
            f"$JS.API.{verb}", json.dumps(asked).encode() if asked else b""
        )
        found: dict[str, Any] = json.loads(message.data)
        if error := found.get("error"):
            text = str(error.get("description", "it failed"))
            if error.get("code") == 404:
                raise Missing(f"{verb.rpartition('.')[2]}: {text}")
            raise ClusterError(f"the cluster refused {verb}: {text}")
        return found

    async def request(self, subject: str, data: bytes, *, seconds: float = 5.0) -> bytes:
        """Ask whoever serves `subject`. ClusterError if nobody does, or not in time."""
        message = await self._once(subject, data, None, seconds)
        if message is None:
            raise ClusterError(f"nobody answers at {subject}")
        return bytes(message.data)

    @asynccontextmanager
    async def serve(
        self, subject: str, handler: Callable[[str, bytes], Awaitable[bytes]]
    ) -> AsyncIterator[None]:
        """Answer requests, each in a task of its own. What a handler raises is its caller's."""
        async with self._listen(subject) as messages, anyio.create_task_group() as tasks:

            async def answer(message: Msg) -> None:
                found = await handler(message.subject, message.data)
                if message.reply:
                    await self._send(message.reply, found)

            async def run() -> None:
                async for message in messages:
                    tasks.start_soon(answer, message)

            tasks.start_soon(run)
            yield
            tasks.cancel_scope.cancel()

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
    ) -> int:
        """Store a message: its number, once it is safe. Conflict, Refused, ClusterError.

        `expect`: the number of the last one there, 0 for none, else Conflict. `ttl`: seconds (1
        at least) after which it is removed. `once`: a name under which it is stored a single
        time, however often it is put.
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
        return int(found["seq"])

    async def publish(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Say something to whoever listens now."""
        await self._send(subject, data, headers=headers)

    async def remove(self, stream: str, subject: str) -> None:
        """Remove all messages of a subject or a filter."""
        await self._api(f"STREAM.PURGE.{stream}", {"filter": subject})

    # --- reading ---------------------------------------------------------------------------------

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The last message of a subject; None if there is none."""
        message = await self._insist(f"$JS.API.DIRECT.GET.{stream}.{subject}")
        if _status(message) == 404:
            return None
        found = _stored(message)
        return None if found.removed else found

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
                    message: Msg | None = None
                    with anyio.move_on_after(_ATTEMPT):
                        message = await self._next(answers, subject)
                    status = 503 if message is None else _status(message)
                    if message is None or status == 503:
                        break
                    if status in (204, 404):
                        return [each for each in found if not each.removed]
                    if status >= 400:
                        raise ClusterError(f"the cluster can't answer {subject}: {status}")
                    found.append(_stored(message))
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

        async with anyio.create_task_group() as tasks:
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
                    message: Msg | None = None
                    with anyio.move_on_after(_ATTEMPT):
                        message = await self._next(answers.receive, subject_)
                    status = 0 if message is None else _status(message)
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
                    stored = _stored(message)
                    if stored.seq > seq:
                        seq = stored.seq
                        until = anyio.current_time() + self.patience
                        yield stored
            if not whole:
                if anyio.current_time() > until:
                    raise ClusterError(f"the cluster gave no answer ({subject_})")
                await anyio.sleep(0.2)

    async def _next(self, receive: Callable[[], Awaitable[Msg]], subject: str) -> Msg:
        """The next answer to what was sent to `subject`. Refused."""
        while True:
            with anyio.move_on_after(0.2):
                return await receive()
            if denied := self._refused.pop(subject, None):
                raise Refused(f"the cluster does not let {self._name} do that: {denied}")
            if self.closed:
                raise Refused("the cluster has ended this connection")

    @asynccontextmanager
    async def _listen(self, subject: str, queue: str = "") -> AsyncIterator[AsyncIterator[Msg]]:
        try:
            subscription = await self._client.subscribe(subject, queue=queue)
        except (nats_errors.Error, OSError) as error:
            raise ClusterError(f"can't listen to {subject}: {error}") from error
        try:
            yield subscription.messages
        finally:
            with anyio.CancelScope(shield=True), suppress(nats_errors.Error, OSError):
                await subscription.unsubscribe()

    @asynccontextmanager
    async def subscribe(
        self, subject: str, *, queue: str = ""
    ) -> AsyncIterator[AsyncIterator[Stored]]:
        """What is said from now on, whether it is stored or not."""
        async with self._listen(subject, queue) as messages:

            async def run() -> AsyncIterator[Stored]:
                async for message in messages:
                    headers = message.headers or {}
                    yield Stored(message.subject, 0, message.data, 0.0, headers)

            yield run()

    @asynccontextmanager
    async def watch(
        self, stream: str, filter_: str, *, every: float = 15.0
    ) -> AsyncIterator[AsyncIterator[Stored]]:
        """The last message of each subject, then each new one; empty data for what is removed.

        The list is read again after a reconnect, and each `every` seconds.
        """
        send, receive = anyio.create_memory_object_stream[Stored](float("inf"))
        known: dict[str, int] = {}
        again = anyio.Event()

        def wake() -> None:
            again.set()

        def show(message: Stored) -> None:
            if message.seq > known.get(message.subject, 0):
                known[message.subject] = message.seq
                send.send_nowait(message)

        async def listen(messages: AsyncIterator[Msg]) -> None:
            async for message in messages:
                show(_copied(message))

        async def list_all() -> None:
            nonlocal again
            while True:
                before = dict(known)
                found = {message.subject: message for message in await self.each(stream, filter_)}
                for message in found.values():
                    show(message)
                for subject, seq in before.items():
                    if subject not in found and known.get(subject) == seq:
                        del known[subject]
                        send.send_nowait(Stored(subject, 0, b"", 0.0, _GONE))
                with anyio.move_on_after(every):
                    await again.wait()
                again = anyio.Event()

        self._callbacks.append(wake)
        try:
            async with (
                self._listen(live(filter_)) as messages,
                anyio.create_task_group() as tasks,
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

    # --- queues ----------------------------------------------------------------------------------

    async def pull(
        self, stream: str, consumer: str, *, wait: float, min_pending: int | None = None
    ) -> "Delivery | None":
        """Take a message; None if none came in `wait` seconds (0: if none is there).

        `min_pending`: only if at least so many wait. Missing, ClusterError.
        """
        asked: dict[str, Any] = {"batch": 1, "group": _GROUP}
        if wait > 0:
            asked["expires"] = int(wait * 1e9)
        else:
            asked["no_wait"] = True
        if min_pending is not None:
            asked["min_pending"] = min_pending
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        # What is delivered has its own subject, so it can't be told by that whose answer it is.
        reply = f"{self._inbox}.pull.{token_hex(12)}"
        async with self._listen(reply) as answers:
            await self._send(subject, json.dumps(asked).encode(), reply)
            with anyio.move_on_after(wait + 2):
                message = await self._next(answers.__anext__, subject)
                status, said = _status(message), _description(message)
                if status == 0:
                    return Delivery(self, message)
                if status == 503 or (status == 409 and "Consumer Deleted" in said):
                    raise Missing(f"there is no consumer {consumer} of {stream}")
                if status == 400:
                    raise ClusterError(f"the cluster gives nothing of {consumer}: {said}")
        return None

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
            "config": {"priority_groups": [_GROUP], "priority_policy": "overflow", **config},
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
                    found += [bytes(message.data)] * (_status(message) == 0)
        return found


class Delivery:
    """A message of a queue, ours for as long as we say so (`beat`) or 30 seconds."""

    def __init__(self, engine: Engine, message: Msg) -> None:
        self._engine, self._reply = engine, message.reply
        self.subject, self.data = message.subject, bytes(message.data)
        parts = message.reply.split(".")
        # $JS.ACK.STREAM.CONSUMER.TRIES.SEQ.…, or with domain and account before the stream
        start = 2 if len(parts) == 9 else 4
        self.tries, self.seq = int(parts[start + 2]), int(parts[start + 3])

    async def ack(self) -> None:
        """It is done; returns when the cluster knows. ClusterError."""
        await self._engine._insist(self._reply, b"+ACK")  # noqa: SLF001

    async def beat(self) -> None:
        """It is still ours."""
        await self._engine.publish(self._reply, b"+WPI")

    async def term(self) -> None:
        """It is to be given to nobody again."""
        await self._engine._insist(self._reply, b"+TERM")  # noqa: SLF001

    async def back(self, delay: float = 0.0) -> None:
        """It is somebody else's, after `delay` seconds."""
        data = b'-NAK {"delay": %d}' % int(delay * 1e9) if delay else b"-NAK"
        await self._engine._insist(self._reply, data)  # noqa: SLF001


_GONE = {"Nats-Marker-Reason": "Remove"}


def _unknown(error: Exception | None) -> bool:
    """Whether the server does not know who we are."""
    text = str(error).lower()
    return "authorization violation" in text or "authentication" in text


def _tls(credentials: Credentials) -> ssl.SSLContext | None:
    if credentials.ca is None and not any(url.startswith("tls:") for url in credentials.urls):
        return None
    return ssl.create_default_context(cadata=credentials.ca)


def _status(message: Msg) -> int:
    """The status that a message carries; 0 for an ordinary one."""
    status = (message.headers or {}).get("Status", "")
    return int(status) if status.isdigit() else 0


def _description(message: Msg) -> str:
    return (message.headers or {}).get("Description", "")


def _temporary(message: Msg) -> bool:
    """Whether an answer means that a later one may be better."""
    if _status(message) in (408, 503):
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


def _stored(message: Msg) -> Stored:
    headers = dict(message.headers or {})
    return Stored(
        headers.pop("Nats-Subject", message.subject),
        int(headers.pop("Nats-Sequence", "0")),
        bytes(message.data),
        _time(headers.pop("Nats-Time-Stamp", "")),
        headers,
    )


def _copied(message: Msg) -> Stored:
    stored = _stored(message)
    if stored.removed and stored.data:
        return Stored(stored.subject, stored.seq, b"", stored.time, stored.headers)
    return stored


def _time(text: str) -> float:
    """Seconds since 1970 of a time as the server writes it, with up to nine digits."""
    from datetime import datetime

    whole, _, rest = text.rstrip("Z").partition(".")
    if not whole:
        return 0.0
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest or 0}")


def _within(asked: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a stream has all the settings that are asked for."""
    return all(
        found.get(name) == value or (not value and name not in found)
        for name, value in asked.items()
    )
