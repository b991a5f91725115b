"""Tests that use something costly to make run in one process, so that it is made once.

    pytestmark = pytest.mark.xdist_group("docker")

xdist writes the group's name into the test's id, which pytest 9.2 no longer takes; so here the files
are looked through for it. All tests of a file with a group are in that group. Groups come first, and what
is quick comes last, so that no process is at something long when the others have nothing left.
"""

import functools
import re
from collections import OrderedDict

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from program import REPO

_LONGEST = ("stress", "faults", "conformance", "integration")
"""Where the longest tests are."""


class GroupScheduling(LoadScopeScheduling):
    """Deals tests out one by one, but for those of a group."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid.partition("::")[0]) or nodeid

    def schedule(self) -> None:
        """Deal out the first tests, and put the others in order."""
        begun = self.collection is not None
        super().schedule()
        if not begun:
            self.workqueue = OrderedDict(sorted(self.workqueue.items(), key=_turn))


def _turn(unit: tuple[str, dict[str, bool]]) -> int:
    scope, tests = unit
    if len(tests) > 1:
        return -len(tests)
    kind = scope.split("/")[1]
    return _LONGEST.index(kind) if kind in _LONGEST else len(_LONGEST)


@functools.cache
def _group(path: str) -> str | None:
    found = re.search(r'xdist_group\("(\w+)"\)', (REPO / path).read_text())
    return found[1] if found else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling | None:
    """The scheduler of `--dist loadgroup`."""
    return GroupScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None
