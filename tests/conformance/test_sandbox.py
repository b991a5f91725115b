"""The sandboxes against their contract, on the real programs."""

import pytest

import places
from obuilder.backends.registry import SANDBOXES
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


class TestFake(_Suite):
    subject = Subject("obuilder.testing.fakes:FakeSandbox", base="scratch", namespaces=False)
    excused = frozenset(
        {
            "secret_owner", "alone", "loopback", "devices", "orphans", "hostile", "host_network",
            "process_limit", "memory_limit", "nesting", "fast_sync", "privileges", "names",
            "memory_places", "powers",
        }
    )  # fmt: skip
