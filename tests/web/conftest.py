"""A cluster with clients and pools, and no workers: tests write what those would."""

from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal

from obuilder.cluster import layout
from obuilder.cluster.credentials import Credentials, authority_of
from obuilder.cluster.engine import Engine
from obuilder.cluster.server import running


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Credentials]:
    """The administrator of a cluster of its own."""
    directory = str(tmp_path_factory.mktemp("cluster"))
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running(directory)) as credentials,
    ):
        portal.call(_prepare, credentials)
        yield credentials


async def _prepare(credentials: Credentials) -> None:
    authority = authority_of(credentials)
    async with Engine.connect(credentials, name="test") as engine:
        for pool in ("linux", "windows"):
            await layout.ensure_pool(engine, authority, pool, platform=f"{pool}/amd64")
        for client in ("ann", "bob"):
            await layout.ensure_client(engine, authority, client)
