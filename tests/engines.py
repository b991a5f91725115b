"""Engines of the tests' own, Docker's and podman, each started once for all tests of a process.

    @pytest.mark.needs("docker")
    def test(docker_engine): ...

One is gone when this process is, however that ends; what a killed one left on disk and of cgroups,
the next one removes.
"""

import glob
import os
import signal
import subprocess  # programs of the tests
import tempfile
import time
from contextlib import contextmanager, suppress

import pytest

from obuilder.backends.docker.api import DockerEngine
from obuilder.errors import ObuilderError
from obuilder.system.sessions import alive, open_session
from obuilder.testing.engines import Kind, engine_command, forget_engine

_PLACES = "/var/tmp/obuilder-engine-"
_PATIENCE = 30


class Engine:
    """A running engine: `host` is what DOCKER_HOST should say."""

    def __init__(self, directory):
        self.directory = directory
        self.socket = os.path.join(directory, "engine.sock")
        self.host = f"unix://{self.socket}"

    def tidy(self):
        """Remove the images without a name that other tests left: each may see what it leaves."""
        query = {"filters": '{"dangling": ["true"]}'}
        DockerEngine(self.socket).call("POST", "/images/prune", query, timeout=_PATIENCE)

    def get(self, path):
        """What the engine has at `path`."""
        with DockerEngine(self.socket).get(path, timeout=_PATIENCE) as answer:
            return b"".join(iter(lambda: answer.read(1 << 20), b""))


@pytest.fixture(scope="session")
def docker_engine():
    with started("docker") as engine:
        yield engine


@pytest.fixture(scope="session")
def podman_engine():
    with started("podman") as engine:
        yield engine


@contextmanager
def started(kind: Kind):
    """An engine, for as long as the context lasts."""
    sweep()
    directory = tempfile.mkdtemp(prefix=os.path.basename(_PLACES), dir=os.path.dirname(_PLACES))
    owner = open_session(directory)
    log = os.path.join(directory, "log")
    command = engine_command(kind, directory, memory=kind == "docker")
    try:
        with open(log, "wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            engine = Engine(directory)
            _wait(process, engine, log)
            yield engine
        finally:
            _end(process)
    finally:
        owner.close()
        forget_engine(directory)


def _wait(process, engine, log):
    deadline = time.monotonic() + _PATIENCE
    while True:
        with suppress(ObuilderError):
            engine.get("/_ping")
            return
        if process.poll() is not None or time.monotonic() > deadline:
            with open(log, errors="replace") as file:
                pytest.fail("the engine did not start:\n" + file.read()[-2000:])
        time.sleep(0.02)


def _end(process):
    # The engine is its child, and the first process of a namespace: with it goes all it started.
    with suppress(OSError), open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        for child in file.read().split():
            os.kill(int(child), signal.SIGKILL)
    try:
        process.wait(_PATIENCE)
    finally:
        process.kill()
        process.wait()


def sweep():
    """Remove what killed processes left."""
    for directory in glob.glob(f"{_PLACES}*"):
        with suppress(FileNotFoundError):
            names = os.listdir(os.path.join(directory, "sessions"))
            if names and not any(alive(directory, name) for name in names):
                forget_engine(directory)
