"""Tests that use something costly to make run in one process, so that it is made once.

    pytestmark = pytest.mark.xdist_group("docker")

xdist writes the group's name into the test's id, which pytest 9.2 no longer takes; so here the files
are looked through for it. All tests of a file with a group are in that group.
"""

import functools
import re

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from program import REPO


class GroupScheduling(LoadScopeScheduling):
    """Deals tests out one by one, but for those of a group."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid.partition("::")[0]) or nodeid


@functools.cache
def _group(path: str) -> str | None:
    found = re.search(r'xdist_group\("(\w+)"\)', (REPO / path).read_text())
    return found[1] if found else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling | None:
    """The scheduler of `--dist loadgroup`."""
    return GroupScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None
