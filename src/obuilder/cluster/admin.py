"""What administrators do with pools, workers and clients, and viewers look at. Jobs flow without."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import msgspec

from obuilder.cluster import layout, members, names, overview
from obuilder.cluster.credentials import Authority, Credentials, authority_of
from obuilder.cluster.engine import Conflict, Engine
from obuilder.cluster.messages import (
    Answer,
    Client,
    Issued,
    Outcome,
    Paused,
    Pool,
    Presence,
    Share,
    State,
    Ticket,
    decode,
    encode,
)
from obuilder.cluster.overview import View
from obuilder.cluster.tasks import together
from obuilder.errors import ClusterError, Incompatible, NoSuchPool, UsageError

Tell = Callable[[str], None]
UPDATE_PATIENCE = 600.0
"""Seconds in which a worker that is updated has to be back."""


class Admin:
    """An administrator, connected; or a viewer, who gets a UsageError for what changes something."""

    def __init__(self, engine: Engine, credentials: Credentials) -> None:
        self.engine, self._credentials = engine, credentials

    @property
    def authority(self) -> Authority:
        """What makes credentials. UsageError for a viewer."""
        return authority_of(self._credentials)

    @classmethod
    @asynccontextmanager
    async def open(cls, credentials: Credentials) -> AsyncIterator["Admin"]:
        """Connect. ClusterError, Refused; UsageError for others' credentials."""
        if credentials.kind != "viewer":
            authority_of(credentials)
        async with Engine.connect(credentials, name=credentials.name) as engine:
            yield cls(engine, credentials)

    def _may_change(self) -> None:
        """UsageError for a viewer, before anything is asked: the cluster refuses it anyway."""
        authority_of(self._credentials)

    # --- looking -----------------------------------------------------------------------------

    async def pools(self) -> list[Pool]:
        """All pools."""
        found = await self.engine.each(names.CLUSTER, names.pool())
        return sorted((decode(each.data, Pool) for each in found), key=lambda pool: pool.name)

    async def pool(self, name: str) -> Pool:
        """A pool. NoSuchPool, which says which there are."""
        pools = {pool.name: pool for pool in await self.pools()}
        if name not in pools:
            known = ", ".join(pools)
            raise NoSuchPool(
                f"there is no pool {name!r}", hint=f"there are: {known}" if known else None
            )
        return pools[name]

    async def viewers(self) -> dict[str, Issued]:
        """All viewers, by name."""
        return await members.viewers(self.engine)

    async def clients(self) -> list[Client]:
        """All clients that were not removed."""
        found = await self.engine.each(names.CLUSTER, names.client())
        clients = [decode(each.data, Client) for each in found]
        return sorted((one for one in clients if not one.revoked), key=lambda one: one.name)

    async def presences(self, pool: str) -> dict[str, Presence]:
        """The workers that are there, by name."""
        return await overview.presences(self.engine, pool)

    async def view(self, pool: str) -> View:
        """A pool, its workers and clients. NoSuchPool."""
        return await overview.view(self.engine, await self.pool(pool))

    # --- pausing -------------------------------------------------------------------------------

    async def pause(self, pool: str, worker: str, reason: str = "", *, make: bool = False) -> bool:
        """Have a worker take no more jobs, now and when it comes back. Whether that is new.

        `make`: also one that was never there. UsageError.
        """
        self._may_change()
        names.checked("worker", worker)
        view = await self.view(pool)
        if not make or any(one.name == worker for one in view.workers):
            view.named(worker)
        if (await overview.pauses(self.engine, pool)).get(worker) is not None:
            return False
        record = Paused(reason=reason, by=self._credentials.name, at=time.time())
        await self.engine.put(names.pause(pool, worker), encode(record))
        return True

    async def unpause(self, pool: str, worker: str) -> bool:
        """Let a worker take jobs again. Whether it was paused. UsageError."""
        self._may_change()
        if worker not in await overview.pauses(self.engine, pool):
            (await self.view(pool)).named(worker)
            return False
        await self.engine.put(names.pause(pool, worker), b"", ttl=1)  # it hears this, not a purge
        return True

    async def drain(self, pool: str, worker: str, tell: Tell) -> None:
        """Wait until a paused worker has no jobs, telling how many it has."""
        before = -1
        while (presence := (await self.presences(pool)).get(worker)) is not None:
            count = len(presence.running)
            if count != before:
                tell(f"{worker}: Running jobs: {count}")
                before = count
            if not count and presence.paused:
                return
            await anyio.sleep(0.5)
        tell(f"{worker}: Disconnected (nothing to drain)")

    # --- workers -------------------------------------------------------------------------------

    async def tell(self, pool: str, worker: str, verb: str, *, seconds: float = 10.0) -> Answer:
        """Tell a worker to do something. ClusterError if it does not answer, or can't."""
        self._may_change()
        data = await self.engine.request(names.control(pool, worker, verb), b"", seconds=seconds)
        answer = decode(data, Answer)
        if not answer.ok:
            raise ClusterError(f"{worker}: {answer.text or f'it could not {verb}'}")
        return answer

    async def update(self, pool: str, worker: str, *, patience: float = UPDATE_PATIENCE) -> None:
        """Have a worker prepare, end its jobs, go, and come back with a new session.

        ClusterError if it is not there, can't, or is not back in `patience` seconds after it went.
        """
        self._may_change()
        before = (await self.presences(pool)).get(worker)
        if before is None:
            raise ClusterError(f"the worker {worker} is not connected")
        await self.tell(pool, worker, "update", seconds=patience)
        deadline: float | None = None
        while True:
            now = (await self.presences(pool)).get(worker)
            if now is not None and now.session != before.session:
                return
            if now is None and deadline is None:
                deadline = time.monotonic() + patience
            if deadline is not None and time.monotonic() > deadline:
                raise ClusterError(
                    f"the worker {worker} did not come back in {patience:.0f} seconds",
                    hint="see its service's log",
                )
            await anyio.sleep(0.5)

    async def update_all(
        self, pool: str, tell: Tell, *, patience: float = UPDATE_PATIENCE
    ) -> list[str]:
        """Update one worker of a pool and, if it came back, the others at once. Which did not.

        ClusterError if the first did not.
        """
        self._may_change()
        there = sorted(await self.presences(pool))
        if not there:
            tell("No workers connected to pool (nothing to do).")
            return []
        canary, *others = there
        tell(f"Testing update on first worker in pool: {canary}")
        await self.update(pool, canary, patience=patience)
        if not others:
            tell("Canary updated OK. There are no others.")
            return []
        tell(f"Canary updated OK. Updating the others: {', '.join(others)}")
        failed: list[str] = []

        async def one(worker: str) -> None:
            try:
                await self.update(pool, worker, patience=patience)
                tell(f"{worker} restarted OK.")
            except ClusterError as error:
                failed.append(worker)
                tell(f"{worker}: {error.message}")

        async with together() as tasks:
            for worker in others:
                tasks.start_soon(one, worker)
        return sorted(failed)

    async def forget(self, pool: str, worker: str) -> int:
        """Forget a worker that is gone for good; how many jobs that waited for it go to others.

        UsageError if it is there, or was never known.
        """
        self._may_change()
        found = (await self.view(pool)).named(worker)
        if found.presence is not None:
            raise UsageError(f"the worker {worker} is still connected", hint="stop it first")
        return await self._drop(pool, worker)

    async def remove_worker(self, pool: str, worker: str) -> int:
        """Cut a worker off, at once and for good; how many jobs that waited for it go to others.

        NoSuchPool; UsageError: no credentials were made for it.
        """
        self._may_change()
        await self.pool(pool)
        await members.remove_worker(self.engine, self._credentials, pool, worker)
        return await self._drop(pool, worker)  # what it ran goes to others as if it had died

    async def _drop(self, pool: str, worker: str) -> int:
        """Remove what is a worker's own. Tickets that were sent on to it are put back into the queue."""
        queue, count = names.queue_of(pool), 0
        clients = {client.name for client in await self.clients()}
        async for found in self.engine.read(queue, f"run.{pool}.{worker}.>"):
            try:
                ticket = decode(found.data, Ticket)
            except Incompatible:
                continue
            if ticket.client in clients:
                subject = names.ticket(ticket.client, pool, urgent=ticket.urgent)
                back = msgspec.structs.replace(ticket, forwarded="")
                await self.engine.put(subject, encode(back), once=f"{ticket.id}.back.{found.seq}")
                count += 1
        await self.engine.remove(queue, f"run.{pool}.{worker}.>")
        await layout.drop_worker(self.engine, pool, worker)
        return count

    async def add_worker(self, pool: str, worker: str) -> Credentials:
        """Credentials for a worker. NoSuchPool, UsageError."""
        self._may_change()
        await self.pool(pool)
        return await members.add_worker(self.engine, self._credentials, pool, worker)

    # --- pools ---------------------------------------------------------------------------------

    async def add_pool(self, name: str, platform: str = "") -> Pool:
        """Make a pool, or give it another platform. UsageError."""
        return await layout.ensure_pool(self.engine, self.authority, name, platform=platform)

    async def remove_pool(self, name: str) -> int:
        """Remove a pool; how many jobs that waited are cancelled. UsageError: it has workers."""
        self._may_change()
        view = await self.view(name)
        there = [worker.name for worker in view.workers if worker.presence is not None]
        if there:
            raise UsageError(
                f"the pool {name} has workers: {', '.join(there)}", hint="stop them first"
            )
        count = 0
        for client in await self.clients():
            count += await self._cancel_waiting(client.name, name, "its pool was removed")
        await layout.drop_pool(self.engine, name)
        return count

    # --- clients -------------------------------------------------------------------------------

    async def add_client(self, name: str) -> Credentials:
        """Credentials for a client: a new one, or one more user of one that is there. UsageError."""
        return await members.add_client(self.engine, self._credentials, name)

    async def remove_client(self, name: str) -> int:
        """Cut a client off, at once; how many of its jobs that waited are cancelled. UsageError."""
        self._may_change()
        if name not in {client.name for client in await self.clients()}:
            raise UsageError(f"there is no client {name!r}", hint="`obuilder cluster clients`")
        await members.remove_client(self.engine, self._credentials, name)
        return await self._cancel_waiting(name, "*", "its client was removed")

    async def add_viewer(self, name: str) -> Credentials:
        """Credentials that may look at everything: for a new viewer, or one more of it. UsageError."""
        return await members.add_viewer(self.engine, self._credentials, name)

    async def remove_viewer(self, name: str) -> None:
        """Cut a viewer off, at once and for good. UsageError."""
        await members.remove_viewer(self.engine, self._credentials, name)

    async def _cancel_waiting(self, client: str, pool: str, reason: str) -> int:
        """Note that jobs which wait are not done."""
        count = 0
        stream, subject = names.jobs_of(client), names.job(client, pool, "*", "state")
        for found in await self.engine.each(stream, subject):
            state = decode(found.data, State)
            if state.phase != "queued":
                continue
            outcome = Outcome(code="cancelled", message=f"cancelled: {reason}", exit_status=130)
            ended = msgspec.structs.replace(
                state, phase="cancelled", ended=time.time(), log_end=0, outcome=outcome
            )
            try:
                await self.engine.put(found.subject, encode(ended), expect=found.seq)
                count += 1
            except Conflict:
                continue  # a worker was faster
        return count

    async def set_rate(self, pool: str, client: str, rate: float) -> None:
        """How much of a pool a client gets beside others. UsageError, NoSuchPool."""
        self._may_change()
        await self.pool(pool)
        if client not in {one.name for one in await self.clients()}:
            raise UsageError(f"there is no client {client!r}", hint="`obuilder cluster clients`")
        subject, stream = names.fair(pool, client), names.state_of(pool)
        while True:
            found = await self.engine.last(stream, subject)
            share = decode(found.data, Share) if found is not None else Share()
            share = msgspec.structs.replace(share, rate=rate)
            try:
                await self.engine.put(
                    subject, encode(share), expect=0 if found is None else found.seq
                )
            except Conflict:
                continue
            return
