"""A connection to NATS, and the only importer of it: requests and what is said, no more.

A connection that breaks is made again, for ever; what was asked meanwhile is asked again. Within an
account the server says apart from any answer that something is not allowed: who waits is told here.
"""

import base64
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import Any, Self, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from obuilder.cluster.accounts import answers, inbox, may_answer, views
from obuilder.cluster.answers import Missing, Stored, not_here, status_of, temporary
from obuilder.cluster.credentials import Credentials
from obuilder.errors import ClusterError, Incompatible, Refused

OLDEST = (2, 12)
"""The oldest server that has all that we rely on."""
_UNREACHABLE = 10.0
"""Seconds for the first connection."""
ATTEMPT = 5.0
"""Seconds for one try of a request."""
PATIENCE = 40.0
"""Seconds for a request with all its tries: an election in a cluster takes some."""

Answers = MemoryObjectReceiveStream[Msg]
M = TypeVar("M")

# A server that goes makes the client's TLS stream tell of itself on everybody's screen.
logging.getLogger("asyncio").addFilter(
    lambda record: not record.getMessage().startswith("returning true from eof_received()")
)


class Connection:
    """What stands between us and a server."""

    def __init__(self, credentials: Credentials, name: str) -> None:
        self.credentials = credentials
        self.patience = PATIENCE
        self._name = name
        key = credentials.key
        # What workers answer has to get from their account into who asked's.
        prefix = {"admin": answers, "viewer": views}.get(credentials.kind, inbox)
        self._key, self._inbox = key, prefix(key.public)
        self._client = Client()
        self._waiting: dict[str, MemoryObjectSendStream[Msg]] = {}
        self._refused: dict[str, str] = {}
        """What the server said, by subject in lower case: so the client gives its errors."""
        self._callbacks: list[Callable[[], None]] = []
        self._last: Exception | None = None
        self._failed = anyio.Event()

    # --- connecting ------------------------------------------------------------------------------

    @classmethod
    @asynccontextmanager
    async def connect(cls, credentials: Credentials, *, name: str = "") -> AsyncIterator[Self]:
        """Connect, and stay connected. ClusterError, Refused, Incompatible."""
        opened = cls(credentials, name or credentials.name)
        await opened._open()
        try:
            yield opened
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                with suppress(nats_errors.Error, OSError, TimeoutError):
                    await opened._client.flush(timeout=2)
                await opened._close()

    async def _close(self) -> None:
        # Who waited for its socket before and was cancelled had the client cancel all who wait for it;
        # and a server that is going resets it.
        with suppress(anyio.get_cancelled_exc_class(), nats_errors.Error, OSError):
            await self._client.close()
        self._close_socket()
        await anyio.sleep(0.01)  # the loop's next turns close what was tried

    def _close_socket(self) -> None:
        """Of a try that came to nothing the client leaves the socket open."""
        transport = self._client._transport  # noqa: SLF001
        if transport is not None:
            transport.close()  # type: ignore[no-untyped-call] # it is what it says

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
                await self._close()
            raise self._unreachable()
        version = self._client.connected_server_version
        if (version.major, version.minor) < OLDEST:
            await self._close()
            raise too_old(f"{version.major}.{version.minor}.{version.patch}")
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
        if not self.connected:
            self._close_socket()
        if isinstance(error, ssl.SSLError) or _unknown(error):
            self._failed.set()
        elif "ermissions violation" in text and '"' in text:
            self._refused[text.split('"')[1].lower()] = text.removeprefix("nats: ")

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
        self._refused.pop(subject.lower(), None)
        async with self._ask(subject, data, headers) as answers:
            with anyio.move_on_after(seconds):
                message = await self._next(answers.receive, subject)
                while not_here(
                    message
                ):  # our own account says so, too, before the main one answers
                    message = await self._next(answers.receive, subject)
                return None if status_of(message) == 503 else message
        return None

    async def _insist(
        self, subject: str, data: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Msg:
        """The answer to a request that may be sent several times. ClusterError."""
        until = anyio.current_time() + self.patience
        pause = 0.05
        while True:
            left = until - anyio.current_time()
            message = await self._once(subject, data, headers, min(ATTEMPT, max(left, 0.1)))
            if message is not None and not temporary(message):
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
                if may_answer(message.reply):
                    with suppress(ClusterError):  # whoever asked hears nothing, and asks again
                        await self._send(message.reply, found)

            async def run() -> None:
                async for message in messages:
                    tasks.start_soon(answer, message)

            tasks.start_soon(run)
            yield
            tasks.cancel_scope.cancel()

    # --- what is said ----------------------------------------------------------------------------

    async def publish(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Say something to whoever listens now."""
        await self._send(subject, data, headers=headers)

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

    async def hear(
        self, subject: str, heard: Callable[[Msg], Awaitable[None] | None], *, queue: str = ""
    ) -> Callable[[], Awaitable[None]]:
        """Call something with all that is said from now on, and wait for what it gives; what ends
        that. ClusterError.

        Of those who hear with the same `queue` only one is called. The server knows of it before
        whatever is asked here afterwards.
        """

        async def call(message: Msg) -> None:
            if (rest := heard(message)) is not None:
                await rest

        try:
            subscription = await self._client.subscribe(subject, queue=queue, cb=call)
        except (nats_errors.Error, OSError) as error:
            raise ClusterError(f"can't listen to {subject}: {error}") from error

        async def end() -> None:
            with suppress(nats_errors.Error, OSError):
                await subscription.unsubscribe()

        return end

    async def _next(self, receive: Callable[[], Awaitable[M]], subject: str) -> M:
        """The next answer to what was sent to `subject`. Refused."""
        while True:
            with anyio.move_on_after(0.2):
                return await receive()
            if denied := self._refused.pop(subject.lower(), None):
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


def too_old(version: str) -> Incompatible:
    """What is said of a server that lacks what we rely on."""
    return Incompatible(
        f"the nats-server there is {version}, and it takes {'.'.join(map(str, OLDEST))} or a later one",
        hint="update it; obuilder's extra [local-cluster] brings one",
    )


def _unknown(error: Exception | None) -> bool:
    """Whether the server does not know who we are."""
    text = str(error).lower()
    return "authorization violation" in text or "authentication" in text


def _tls(credentials: Credentials) -> ssl.SSLContext | None:
    if credentials.ca is None and not any(url.startswith("tls:") for url in credentials.urls):
        return None
    return ssl.create_default_context(cadata=credentials.ca)
