"""What tests of the cluster start with: a server for all tests of a module, a pool for each of them."""

from collections.abc import AsyncIterator, Iterator

import pytest

import clusters
import workers
from clusters import Cluster
from workers import Yard


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster."""
    yield from clusters.module_cluster()


@pytest.fixture
async def yard(cluster: Cluster) -> AsyncIterator[Yard]:
    """A pool of a test's own, for workers within this process."""
    async with workers.yard(cluster) as ready:
        yield ready
