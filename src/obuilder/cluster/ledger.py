"""What clients have had of a pool, as one worker reads and writes it: charged before, settled after.

It is kept by compare-and-set, and many workers write the same few records. So a worker writes as little
as fairness bears: what was wrong with a charge by little goes with the next one.
"""

import random
import time
from collections.abc import Callable, Iterable

from obuilder.cluster import names, policy
from obuilder.cluster.engine import Conflict, Engine
from obuilder.cluster.messages import Share, decode, encode
from obuilder.errors import Incompatible

_TRIES = 12
"""Of a compare-and-set that others disturb: fairness bears that it fails now and then."""
_FEW = 2.0
"""With fewer rivals than that each writes what it has to; with more, one of them for all."""
_FADES = 0.9
"""What is left of the rivals that were thought of, each time that nothing is written."""
_SMALL = 0.5
"""What a job took otherwise than expected, by no more than that part, is settled with its client's
next charge,"""
_OWED = 5.0
"""if that comes within these seconds."""


class Ledger:
    """The shares of a pool's clients."""

    def __init__(self, engine: Engine, pool: str) -> None:
        self._engine, self._name, self._state = engine, pool, names.state_of(pool)
        self.shares: dict[str, Share] = {}
        """As they were read last, with what was written here since."""
        self._seqs: dict[str, int] = {}
        self._owed: dict[str, tuple[float, float]] = {}
        self._rivals = 0.0

    async def read(self) -> None:
        """Read all of them. ClusterError."""
        for found in await self._engine.each(self._state, names.fair(self._name)):
            if found.seq > self._seqs.get(client := found.subject.rpartition(".")[2], 0):
                self._note(client, found.data, found.seq)

    def spread(self, clients: Iterable[str], cost: float) -> float:
        """How far to spread a choice among these clients, for others choose at the same moment."""
        return policy.spread(
            self._rivals, cost, (self.shares.get(client, Share()) for client in clients)
        )

    async def charge(self, client: str, floor: float, cost: float) -> None:
        """Charge a client for a job, and settle what is owed from before. ClusterError."""
        owed, _ = self._owed.pop(client, (0.0, 0.0))
        if self._drawn():
            await self._write(
                client, lambda share, times: _charged(share, times * owed, floor, times * cost)
            )

    def _drawn(self) -> bool:
        """Whether to write: where many do, one of them writes for all, by chance.

        So it is fair on average, and does not keep a thousand from what they are there for. How many
        there are is learned by who disturbs whom.
        """
        if self._rivals < _FEW or random.random() * (1.0 + self._rivals) < 1.0:  # noqa: S311
            return True
        self._rivals *= _FADES
        return False

    async def settle(self, client: str, expected: float, real: float) -> None:
        """A job of a client has ended that was charged as `expected`, and cost `real`. ClusterError."""
        owed, since = self._owed.get(client, (0.0, time.monotonic()))
        self._owed[client] = owed + real - expected, since
        if abs(owed + real - expected) > _SMALL * expected:
            await self._pay(client)

    async def settle_old(self, *, everything: bool) -> None:
        """Settle what was not settled with another charge in time. ClusterError."""
        now = time.monotonic()
        for client, (_, since) in list(self._owed.items()):
            if everything or now - since > _OWED:
                await self._pay(client)

    async def _pay(self, client: str) -> None:
        owed, _ = self._owed.pop(client, (0.0, 0.0))
        if self._drawn():
            await self._write(client, lambda share, times: policy.settled(share, 0.0, times * owed))

    async def _write(self, client: str, changed: Callable[[Share, float], Share]) -> None:
        """Change a share for so many times what we have to change: of two that meet, one gives up."""
        times = 1.0 if self._rivals < _FEW else 1.0 + self._rivals
        for lost in range(_TRIES):
            if await self._changed(client, lambda share: changed(share, times)):  # noqa: B023
                if not lost:
                    self._rivals = policy.raced(self._rivals, lost=False)
                return
            self._rivals = policy.raced(self._rivals, lost=True)
            if self._rivals >= _FEW:
                if random.random() < 0.5:  # noqa: S311
                    return
                times *= 2
            await self._read(client)

    async def _changed(self, client: str, changed: Callable[[Share], Share]) -> bool:
        """Change what a client has had, by what is known of it. False if that was old."""
        after, expect = changed(self.shares.get(client, Share())), self._seqs.get(client, 0)
        subject = names.fair(self._name, client)
        try:
            seq = await self._engine.put(subject, encode(after), expect=expect)
        except Conflict:
            return False
        self.shares[client], self._seqs[client] = after, seq
        return True

    async def _read(self, client: str) -> None:
        found = await self._engine.last(self._state, names.fair(self._name, client))
        if found is None:
            self._note(client, b"", 0)
        else:
            self._note(client, found.data, found.seq)

    def _note(self, client: str, data: bytes, seq: int) -> None:
        try:
            share = decode(data, Share) if data else Share()
        except Incompatible:
            share = Share()
        self.shares[client], self._seqs[client] = share, seq


def _charged(share: Share, owed: float, now: float, cost: float) -> Share:
    """A client's share after it has settled what it owed, and was charged for one more job."""
    return policy.charged(policy.settled(share, 0.0, owed), now, cost)
