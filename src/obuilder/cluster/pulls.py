"""Taking messages of queues: pulls of the engine's consumers, and what they deliver."""

import json
from collections.abc import Awaitable
from contextlib import suppress
from secrets import token_hex
from typing import Any, NamedTuple

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from obuilder.cluster.answers import Message, Missing, description_of, status_of
from obuilder.cluster.connection import Connection
from obuilder.cluster.credentials import Credentials
from obuilder.errors import ClusterError

GROUP = "all"
"""The priority group of all consumers."""


class _Pull(NamedTuple):
    """A pull that waits for its answer."""

    of: tuple[str, str]
    """The stream and the consumer."""
    send: MemoryObjectSendStream[Message]


class Pulls(Connection):
    """A connection that takes messages of queues."""

    def __init__(self, credentials: Credentials, name: str) -> None:
        super().__init__(credentials, name)
        self._pulls: dict[str, _Pull] = {}
        self._pulls_heard = False

    async def pull(
        self, stream: str, consumer: str, *, wait: float, min_pending: int | None = None
    ) -> "Delivery | None":
        """Take a message; None if none came in `wait` seconds (0: if none is there).

        `min_pending`: only if at least so many wait. Missing, ClusterError.
        """
        asked: dict[str, Any] = {"batch": 1, "group": GROUP}
        if wait > 0:
            asked["expires"] = int(wait * 1e9)
        else:
            asked["no_wait"] = True
        if min_pending is not None:
            asked["min_pending"] = min_pending
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        reply = f"{self._inbox}.pull.{token_hex(12)}"
        send, receive = anyio.create_memory_object_stream[Message](float("inf"))
        self._pulls[reply] = _Pull((stream, consumer), send)
        try:
            if not self._pulls_heard:
                await self._hear_pulls()
            await self._send(subject, json.dumps(asked).encode(), reply)
            with anyio.move_on_after(wait + 2) as clock:
                message = await self._next(receive.receive, subject)
                status, said = status_of(message), description_of(message)
                if status == 0:
                    return Delivery(self, message)
                if status == 503 or (status == 409 and "Consumer Deleted" in said):
                    raise Missing(f"nobody gives tickets of {consumer} of {stream} now")
                if status == 400:
                    raise ClusterError(f"the cluster gives nothing of {consumer}: {said}")
            if clock.cancelled_caught:  # which does not say that there is none
                raise ClusterError(f"the cluster does not say whether there is more of {consumer}")
        finally:
            self._pulls.pop(reply, None)
            await self._unread(receive)
            send.close()
            receive.close()
        return None

    async def _hear_pulls(self) -> None:
        self._pulls_heard = True  # by whoever came first
        try:
            await self.hear(f"{self._inbox}.pull.*", self._pulled)
        except BaseException:
            self._pulls_heard = False
            raise

    def _pulled(self, message: Message) -> Awaitable[None] | None:
        """An answer to a pull.

        What is delivered has its own subject, so it can't be told by that whose answer it is: it
        goes to any pull of its consumer. If none waits, it is given back: its pull was cancelled, or
        the server took one pull for two, as it may while an account is changed.
        """
        reply = message.subject
        if reply not in self._pulls and status_of(message) == 0:
            of = tuple(_parts(message.reply)[:2])
            reply = next((name for name, pull in self._pulls.items() if pull.of == of), "")
            if not reply:
                return self._give_back(message)
        if pull := self._pulls.pop(reply, None):
            pull.send.send_nowait(message)
        return None

    async def _unread(self, receive: MemoryObjectReceiveStream[Message]) -> None:
        """Give back what was delivered to a pull that waits for it no more."""
        with suppress(anyio.WouldBlock):
            message = receive.receive_nowait()
            if status_of(message) == 0:
                with anyio.CancelScope(shield=True):
                    await self._give_back(message)

    async def _give_back(self, message: Message) -> None:
        with suppress(ClusterError):  # then its time with us runs out
            await self.publish(message.reply, b"-NAK")

    async def let_go(self, receipt: str) -> None:
        """Have a message given to somebody else whose holder is dead."""
        await self._insist(receipt, b"-NAK")


class Delivery:
    """A message of a queue, ours for as long as we say so (`beat`) or 30 seconds."""

    def __init__(self, engine: Connection, message: Message) -> None:
        self._engine, self.receipt = engine, message.reply
        self.subject, self.data = message.subject, bytes(message.data)
        parts = _parts(message.reply)
        self.tries, self.seq = int(parts[2]), int(parts[3])
        self.left = int(parts[6])
        """How many more waited when it was delivered."""

    async def ack(self) -> None:
        """It is done; returns when the cluster knows. ClusterError."""
        await self._engine._insist(self.receipt, b"+ACK")  # noqa: SLF001

    async def gone(self) -> None:
        """It is done. If the cluster does not hear that, it is given to somebody again."""
        await self._engine.publish(self.receipt, b"+ACK")

    async def beat(self) -> None:
        """It is still ours."""
        await self._engine.publish(self.receipt, b"+WPI")

    async def term(self) -> None:
        """It is to be given to nobody again."""
        await self._engine._insist(self.receipt, b"+TERM")  # noqa: SLF001

    async def back(self, delay: float = 0.0) -> None:
        """It is somebody else's, after `delay` seconds."""
        data = b'-NAK {"delay": %d}' % int(delay * 1e9) if delay else b"-NAK"
        await self._engine._insist(self.receipt, data)  # noqa: SLF001


def _parts(reply: str) -> list[str]:
    """What is said of a delivery: stream, consumer, tries, number, …, time, how many are left."""
    parts = reply.split(".")  # $JS.ACK.…, or with domain and account before the stream
    return parts[2:] if len(parts) == 9 else parts[4:]
