"""A worker's name in its pool: one live holder at a time, seen by all while it beats.

The record has a time to live and is renewed by compare-and-set: a second worker of the name is refused
while the first beats, and takes over once the first has been silent for that long.
"""

import time
from collections.abc import Callable, Container
from contextlib import suppress

import anyio
from msgspec.structs import replace

from obuilder.cluster import names
from obuilder.cluster.engine import Conflict, Engine, Stored
from obuilder.cluster.messages import Known, Presence, decode, encode
from obuilder.errors import ClusterError, Incompatible, Refused

BEAT = 5.0
TTL = 15.0
_GAP = 0.3
"""Seconds between two beats at least, however much changes."""
_PATIENCE = 2 * TTL + 10
"""Seconds for which a name that nobody renews may stay taken."""


class Name:
    """The name of a worker, held by one session."""

    def __init__(self, engine: Engine, pool: str, name: str, session: str) -> None:
        self._engine, self._pool, self._name, self._session = engine, pool, name, session
        self._subject = names.worker(pool, name)
        self._seq = 0
        self._changed = anyio.Event()

    def changed(self) -> None:
        """Tell the others soon."""
        self._changed.set()

    async def take(
        self, look: Callable[[], Presence], tell: Callable[[str], None], *,
        dead: Container[str] = (),
    ) -> None:  # fmt: skip
        """Get the name: at once, if it is a session's that is known to be `dead`. Refused if another
        live worker has it.
        """
        until, before = anyio.current_time() + _PATIENCE, -1
        while True:
            found = await self._found()
            if found is None or not found.data:
                with suppress(Conflict):  # somebody was faster
                    self._seq = await self._put(look(), found.seq if found else 0)
                    break
            elif self._session_of(found.data) in dead:
                before = found.seq
                with suppress(Conflict):  # it has gone just now
                    self._seq = await self._put(look(), before)
                    break
            elif before < 0:
                before = found.seq
                tell(f"the name {self._name} is taken: waiting for its worker to be silent")
            # Not just another number: a server that is behind gives an older one.
            there = found is not None and bool(found.data) and found.seq > before >= 0
            if there or anyio.current_time() > until:
                where = self._host(found.data) if found else ""
                raise Refused(
                    f"a worker called {self._name} is in the pool {self._pool} already{where}",
                    hint="give this one credentials of its own: obuilder cluster add-worker NAME",
                )
            await anyio.sleep(0.5)
        with suppress(ClusterError):
            await self._note()

    async def _found(self) -> Stored | None:
        """What is there in our name; without data where the last one's mark still stands."""
        found = await self._engine.last(names.state_of(self._pool), self._subject, marks=True)
        return replace(found, data=b"") if found is not None and found.removed else found

    def _session_of(self, data: bytes) -> str:
        with suppress(Incompatible):
            return decode(data, Presence).session
        return ""

    def _host(self, data: bytes) -> str:
        with suppress(Incompatible):
            host = decode(data, Presence).host
            return f", on {host}" if host else ""
        return ""

    async def _note(self) -> None:
        """That there is, or was, such a worker."""
        subject, now = names.known(self._pool, self._name), time.time()
        found = await self._engine.last(names.state_of(self._pool), subject)
        first = now
        if found is not None:
            with suppress(Incompatible):
                first = decode(found.data, Known).first
        await self._engine.put(subject, encode(Known(first=first, last=now)))

    async def _put(self, presence: Presence, expect: int) -> int:
        return await self._engine.put(self._subject, encode(presence), expect=expect, ttl=TTL)

    async def keep(self, look: Callable[[], Presence]) -> None:
        """Renew it for ever. Refused once somebody else has it."""
        while True:
            try:
                self._seq = await self._put(look(), self._seq)
            except Conflict:
                await self._again(look)
            except Refused:
                raise
            except ClusterError:
                await anyio.sleep(1)
                continue
            with anyio.move_on_after(BEAT - _GAP):
                await self._changed.wait()
            await anyio.sleep(_GAP)  # a job that ends and the next one are told together
            self._changed = anyio.Event()

    async def _again(self, look: Callable[[], Presence]) -> None:
        """Renew it after it was let go for want of a connection."""
        while True:
            try:
                found = await self._found()
                if found is not None and found.seq < self._seq:
                    raise ClusterError("the server that answered is behind")
                if found is not None and found.data:
                    if decode(found.data, Presence).session != self._session:
                        raise Refused(
                            f"another worker called {self._name} has come",
                            hint="this one was out of reach for too long; give each its own name",
                        )
                    self._seq = found.seq
                    return
                self._seq = await self._put(look(), found.seq if found else 0)
                return
            except Conflict:
                pass
            except Refused:
                raise
            except ClusterError:
                pass
            await anyio.sleep(0.5)

    async def leave(self) -> None:
        """Give it up, for another to have at once. Trouble is passed over."""
        with suppress(ClusterError), anyio.move_on_after(3, shield=True):
            while (found := await self._found()) and self._session_of(found.data) == self._session:
                with suppress(Conflict):  # a last beat of ours is still on its way
                    await self._engine.put(self._subject, b"", expect=found.seq, ttl=1)
                    break
            await self._note()
