"""A cluster with clients and pools, and no workers: tests write what those would."""

from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal

import clusters
from obuilder.cluster.credentials import Credentials


@pytest.fixture(scope="module")
def admin() -> Iterator[Credentials]:
    """The administrator of a cluster of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(clusters.running()) as cluster,
    ):
        for pool in ("linux", "windows"):
            portal.call(cluster.pool, pool)
        for client in ("ann", "bob"):
            portal.call(cluster.client, client)
        yield cluster.credentials
