"""A cluster with clients and pools, and no workers: tests write what those would."""

from collections.abc import Iterator
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

import clusters
from obuilder.cluster.credentials import Credentials


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(clusters.running()) as made,
    ):
        for pool in ("linux", "windows"):
            portal.call(made.pool, pool)
        for client in ("ann", "bob"):
            portal.call(made.client, client)
        yield made


@pytest.fixture(scope="module")
def admin(cluster: Any) -> Credentials:
    """Its administrator."""
    found: Credentials = cluster.credentials
    return found
