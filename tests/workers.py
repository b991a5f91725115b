"""Workers of a test's own cluster: in this process over the fakes, or as processes."""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from clusters import POOL, Cluster
from obuilder.cluster import names, records
from obuilder.cluster.blobs import Blobs
from obuilder.cluster.client import Client, Ref, Wishes
from obuilder.cluster.contexts import Contents
from obuilder.cluster.engine import Engine
from obuilder.cluster.git import Repositories
from obuilder.cluster.health import Care
from obuilder.cluster.jobs import Shop
from obuilder.cluster.messages import Build, Custom, State
from obuilder.cluster.records import Place
from obuilder.cluster.worker import Means, Worker
from workbench import Workbench

QUIET = Care(check_every=0, free=0)
TWO = Means(capacity=2)


class Yard:
    """A pool in a cluster with a client and any number of workers, whose steps a test holds."""

    def __init__(self, cluster: Cluster, client: Client, admin: Engine, pool: str) -> None:
        self.cluster, self.client, self.admin, self.pool = cluster, client, admin, pool
        self.said: list[str] = []
        self._tasks: Any = None

    @asynccontextmanager
    async def worker(
        self, name: str, bench: Workbench, *, means: Means = TWO,
        care: Care = QUIET, **shop: Any,
    ) -> AsyncIterator[Worker]:  # fmt: skip
        """A worker, until the context ends."""
        credentials = await self.cluster.worker(name, self.pool)
        async with (
            bench.builder(store=f"copy:{bench.store}") as builder,
            Engine.connect(credentials) as engine,
            anyio.create_task_group() as tasks,
        ):
            with tempfile.TemporaryDirectory() as state:
                made = Shop(
                    builder, Repositories(f"{state}/git"), Contents(f"{state}/files"), state,
                    lambda client: Blobs(engine, client), **shop,
                )  # fmt: skip
                worker = Worker(
                    engine, credentials, made, means=means, care=care, tell=self.said.append
                )
                tasks.start_soon(worker.run)
                await self.until(lambda: any(f"{name} takes jobs" in line for line in self.said))
                yield worker
                tasks.cancel_scope.cancel()

    async def submit(self, *steps: str, **wishes: Any) -> Ref:
        """Submit a spec of these steps, in the shell that the fakes have."""
        runs = " ".join(f'(run (shell "{step}"))' for step in steps)
        text = f"((from scratch) (shell /bin/sh -c) {runs})"
        return await self.client.submit(Build(text=text), self.pool, wishes=Wishes(**wishes))

    async def custom(self, kind: str, payload: bytes, **wishes: Any) -> Ref:
        """Submit a job of a kind."""
        work = Custom(kind=kind, payload=payload)
        return await self.client.submit(work, self.pool, wishes=Wishes(**wishes))

    async def ended(self, ref: Ref) -> State:
        """Where a job is once it has ended."""
        with anyio.fail_after(30):
            return await self.client.wait(ref)

    async def log(self, ref: Ref) -> list[Any]:
        """All events of a job that has ended."""
        found: list[Any] = []
        with anyio.fail_after(10):
            async with self.client.follow(ref) as pieces:
                async for piece in pieces:
                    found += piece.events
        return found

    async def held(self, ref: Ref) -> records.Held:
        """A job's record."""
        held = await records.read(self.admin, Place(self.client.name, ref.pool, ref.id))
        assert held is not None
        return held

    async def until(self, condition: Any, seconds: float = 10) -> None:
        """Wait for what is bound to come; the condition may be async."""
        with anyio.fail_after(seconds):
            while True:
                found = condition()
                if hasattr(found, "__await__"):
                    found = await found
                if found:
                    return
                await anyio.sleep(0.01)

    async def waiting(self) -> int:
        """Tickets in the pool's queue."""
        return sum((await self.admin.pending(names.queue_of(self.pool), ">")).values())


@asynccontextmanager
async def yard(cluster: Cluster) -> AsyncIterator[Yard]:
    """A pool and a client of a test's own."""
    pool, name = f"p-{os.urandom(4).hex()}", f"c-{os.urandom(4).hex()}"
    await cluster.pool(pool)
    credentials = await cluster.client(name)
    async with cluster.admin() as admin, Client.open(credentials) as client:
        yield Yard(cluster, client, admin, pool)


__all__ = ["POOL", "Yard", "yard"]
