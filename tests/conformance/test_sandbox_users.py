"""The sandbox of users against its contract."""

import pytest

import places
from obuilder.backends.registry import SANDBOXES
from obuilder.testing.bench import Subject
from obuilder.testing.sandbox_suite import SandboxSuite

pytestmark = pytest.mark.xdist_group("users")  # of the machine, which all processes share


@pytest.mark.needs("root", "useradd")
class TestUsers(SandboxSuite):
    subject = Subject(
        SANDBOXES["users"].target, base="scratch", home="/home/builder",
        left="obuilder.testing.bench:users_of",
    )  # fmt: skip
    excused = frozenset(
        {
            "identity", "secret_owner", "alone", "loopback", "devices", "streams", "orphans",
            "hostile", "privileges", "names", "memory_places", "powers",
        }
    )  # fmt: skip

    @pytest.fixture
    def place(self):
        with places.scratch() as path:
            yield path
