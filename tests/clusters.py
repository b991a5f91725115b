"""A cluster of the tests' own: the real nats-server on the loopback, gone with who asked for it.

@pytest.fixture(scope="module")
def cluster(): yield from clusters.module_cluster()

async with cluster.admin() as engine: ...
"""

import os
import signal
from contextlib import asynccontextmanager

import anyio
from anyio.from_thread import start_blocking_portal

from obuilder.cluster import layout, members, server
from obuilder.cluster.credentials import authority_of
from obuilder.cluster.engine import Engine
from places import memory

POOL = "pool-1"


class Cluster:
    """A running cluster with the pool `pool-1`; who is in it is made as it is asked for."""

    def __init__(self, directory, admin):
        self.directory, self.credentials = directory, admin
        self.authority = authority_of(admin)

    def admin(self):
        """An administrator's connection."""
        return Engine.connect(self.credentials)

    async def pool(self, name, **more):
        """One more pool."""
        async with self.admin() as engine:
            return await layout.ensure_pool(engine, self.authority, name, **more)

    async def client(self, name="alice"):
        """Credentials of a client."""
        async with self.admin() as engine:
            return await members.add_client(engine, self.credentials, name)

    async def worker(self, name="w1", pool=POOL):
        """Credentials of a worker."""
        async with self.admin() as engine:
            return await members.add_worker(engine, self.credentials, pool, name)

    @asynccontextmanager
    async def joined(self, *credentials):
        """Connections of several at once."""
        async with anyio.create_task_group():
            engines = [Engine.connect(each) for each in credentials]
            opened = [await engine.__aenter__() for engine in engines]
            try:
                yield opened
            finally:
                for engine in reversed(engines):
                    await engine.__aexit__(None, None, None)


@asynccontextmanager
async def running():
    """A cluster in a directory of its own."""
    with memory() as directory:  # every write is synced, and disks are slow at that
        async with server.running(directory) as admin:
            cluster = Cluster(directory, admin)
            await cluster.pool(POOL)
            try:
                yield cluster
            finally:  # what it would put in order takes its time, and is nobody's
                if pid := server.Local(directory).pid():
                    os.kill(pid, signal.SIGKILL)


def module_cluster():
    """A cluster for all tests of a module: a generator for a fixture."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running()) as cluster:
        yield cluster
