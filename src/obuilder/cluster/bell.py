"""Who is woken for a ticket: one worker with room, and not all of them.

A worker with room for more stands in a line (a queue group of the engine's), and of each ticket the
server tells one in it. Whoever leaves it and knows of more tickets calls the next one. A call may get
lost on its way to a worker that is just leaving. That costs time alone: idle workers look now and then.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from obuilder.cluster import names
from obuilder.cluster.accounts import live
from obuilder.cluster.answers import Message
from obuilder.cluster.engine import Engine
from obuilder.cluster.outlook import Outlook

_LINE = "idle"
_End = Callable[[], Awaitable[None]]


class Bell:
    """One worker's."""

    def __init__(self, engine: Engine, pool: str, worker: str, outlook: Outlook) -> None:
        self._engine, self._pool, self._worker, self._outlook = engine, pool, worker, outlook
        self._line: list[_End] = []
        self._woken = anyio.Event()
        self.called: set[tuple[str, bool]] = set()
        """Clients with a new ticket, and whether it is urgent, that we were told of, and nobody else."""
        self.search = True
        """Whether there may be anything else to be found."""

    @asynccontextmanager
    async def heard(self) -> AsyncIterator[None]:
        """Hear of tickets for this very worker, and of urgent ones. ClusterError."""
        own, urgent = live(f"run.{self._pool}.{self._worker}.*"), live(f"sub.*.{self._pool}.u")
        ends = [
            await self._engine.hear(own, self._own),
            await self._engine.hear(urgent, self._urgent),
        ]
        end = self._engine.on_reconnect(self._reconnected)
        try:
            yield
        finally:
            end()
            with anyio.CancelScope(shield=True):
                for each in (*ends, *self._line):
                    await each()

    async def stand(self) -> bool:
        """Stand in the line. False if we did. ClusterError."""
        if self._line:
            return False
        tickets, bell = live(f"sub.*.{self._pool}.*"), names.bell(self._pool)
        self._line = [
            await self._engine.hear(tickets, self._called, queue=_LINE),
            await self._engine.hear(bell, self._rung, queue=_LINE),
        ]
        return True

    async def leave(self) -> None:
        """There is no room any more: don't stand in the line. Somebody there is called in our place."""
        ends, self._line = self._line, []
        for end in ends:
            await end()
        called, self.called = self.called, set()
        for client, urgent in called:
            message = names.ticket(client, self._pool, urgent=urgent).encode()
            await self._engine.publish(names.bell(self._pool), message)

    def more(self, client: str, *, urgent: bool) -> None:
        """A ticket of this client was taken, and there are more: we take them, or call who does."""
        if self._line:  # who never had to stand there leaves nobody standing
            self.called.add((client, urgent))

    def wake(self) -> None:
        """Look, whatever was heard."""
        self.search = True
        self._woken.set()

    async def wait(self, seconds: float) -> None:
        """Wait until there is something to look at: by then if nothing is heard."""
        with anyio.move_on_after(seconds) as clock:
            await self._woken.wait()
        self.search |= clock.cancelled_caught
        self._woken = anyio.Event()

    # --- what is heard ---------------------------------------------------------------------------

    def _own(self, message: Message) -> None:
        self._outlook.own[message.subject.endswith(".u")] = True
        self.wake()

    def _urgent(self, message: Message) -> None:
        client, urgent = _of(message.subject.removeprefix(live("")))
        self._outlook.heard(client, urgent=urgent)  # who has room is called besides

    def _called(self, message: Message) -> None:
        self._call(message.subject.removeprefix(live("")))

    def _rung(self, message: Message) -> None:
        self._call(message.data.decode())

    def _call(self, ticket: str) -> None:
        client, urgent = _of(ticket)
        self._outlook.heard(client, urgent=urgent)
        self.called.add((client, urgent))
        self._woken.set()

    def _reconnected(self) -> None:
        self._outlook.forget()
        self.wake()


def _of(ticket: str) -> tuple[str, bool]:
    """The client of a ticket by its subject, and whether it is urgent."""
    parts = ticket.split(".")
    return parts[1], parts[-1] == "u"
