"""Every test may say what it needs of the machine (obuilder.testing.needs), and have places.

Engines and images that many tests use are fixtures here.
"""

import os
from collections.abc import Iterator

import anyio
import pytest

from engines import docker_engine, podman_engine
from groups import pytest_xdist_make_scheduler
from images import layout
from obuilder.backends.stores.docker import DockerStore
from obuilder.testing.needs import pytest_runtest_setup
from places import PLACES, Opened, opened
from program import Program
from registries import registry

__all__ = [
    "docker_engine", "layout", "podman_engine", "pytest_runtest_setup",
    "pytest_xdist_make_scheduler", "registry",
]  # fmt: skip


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
