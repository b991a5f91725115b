"""The sandboxes against their contract, on the real programs."""

import pytest

import places
from obuilder.backends.registry import SANDBOXES, STORES
from obuilder.testing.bench import Subject
from obuilder.testing.sandbox_suite import SandboxSuite
from obuilder.values import Policy

OCI = SANDBOXES["oci"].target


class _Suite(SandboxSuite):
    @pytest.fixture
    def place(self):
        with places.scratch() as path:
            yield path


@pytest.mark.needs("root", "crun")
class TestCrun(_Suite):
    subject = Subject(OCI, Policy(runtime="crun"))


@pytest.mark.needs("root", "runc")
class TestRunc(_Suite):
    subject = Subject(OCI, Policy(runtime="runc"))


@pytest.mark.needs("docker")
class TestDocker(_Suite):
    subject = Subject(
        SANDBOXES["docker"].target,
        store=STORES["docker"].target,
        left="obuilder.testing.engines:left_by",
    )
    excused = frozenset({"variables", "memory_places", "powers"})

    @pytest.fixture(autouse=True)
    def engine(self, docker_engine, monkeypatch):
        monkeypatch.setenv("DOCKER_HOST", docker_engine.host)


@pytest.mark.needs("podman")
class TestPodman(_Suite):
    subject, excused = TestDocker.subject, TestDocker.excused

    @pytest.fixture(autouse=True)
    def engine(self, podman_engine, monkeypatch):
        monkeypatch.setenv("DOCKER_HOST", podman_engine.host)


@pytest.mark.needs("root", "runsc")
class TestRunsc(_Suite):
    subject = Subject(OCI, Policy(runtime="runsc"), visible=False)
    excused = frozenset({"host_network", "process_limit", "nesting", "fast_sync", "privileges"})


@pytest.mark.needs("root")
class TestHost(_Suite):
    subject = Subject(SANDBOXES["host"].target)
    excused = frozenset(
        {
            "secret_owner", "alone", "loopback", "devices", "streams", "orphans", "hostile",
            "nesting", "fast_sync", "powers",
        }
    )  # fmt: skip


class TestFake(_Suite):
    subject = Subject("obuilder.testing.fakes:FakeSandbox", base="scratch", namespaces=False)
    excused = frozenset(
        {
            "secret_owner", "alone", "loopback", "devices", "streams", "orphans", "hostile",
            "host_network", "process_limit", "memory_limit", "nesting", "fast_sync", "privileges",
            "names", "memory_places", "powers",
        }
    )  # fmt: skip
