"""Every test may say what it needs of the machine (obuilder.testing.needs), and have places.

Engines and images that many tests use are fixtures here.
"""

import gc
import os
import sys
import warnings
from collections.abc import Iterator

import anyio
import pytest
from _pytest.runner import runtestprotocol

from engines import docker_engine, podman_engine
from groups import pytest_xdist_make_scheduler
from images import layout
from obuilder.backends.stores.docker import DockerStore
from obuilder.testing.needs import pytest_runtest_setup
from obuilder.testing.zfs_pool import DAEMON
from places import PLACES, Opened, opened
from program import Program
from registries import registry

__all__ = [
    "docker_engine", "layout", "podman_engine", "pytest_runtest_setup",
    "pytest_xdist_make_scheduler", "registry",
]  # fmt: skip


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test once more during which zfs-fuse crashed: that says nothing of what is tested."""
    if "zfs" not in item.nodeid.lower():
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if DAEMON.crashed:
        item._initrequest()  # fixtures are made anew
        sys.last_value = sys.last_traceback = None
        with warnings.catch_warnings(action="ignore"):  # of what the first run could not close
            gc.collect()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.fixture
def anyio_backend() -> str:
    """The one event loop there is."""
    return "asyncio"


@pytest.fixture
def seed() -> int:
    """What a random test is made from; OBUILDER_TEST_SEED makes the same again."""
    chosen = int(os.environ.get("OBUILDER_TEST_SEED") or int.from_bytes(os.urandom(4)))
    print(f"OBUILDER_TEST_SEED={chosen}")
    return chosen


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """The place that `places.each_place` names, else the machine's own file system."""
    name = getattr(request, "param", "overlayfs")
    if engine := PLACES[name].engine:
        running = request.getfixturevalue(f"{engine}_engine")
        running.tidy()
        monkeypatch.setenv("DOCKER_HOST", running.host)
    with opened(name) as ready:
        try:
            yield ready
        finally:
            if engine:
                monkeypatch.setenv("DOCKER_HOST", running.host)
                anyio.run(DockerStore.discard, os.path.join(ready.directory, "store"))


@pytest.fixture
def program(place: Opened) -> Program:
    """The program with a store in `place`."""
    return Program(place.directory, kind=place.kind)
