"""Steps without isolation: said so, and their results kept apart from all others."""

import os

import pytest

from leftovers import leftovers
from program import Program, shell

pytestmark = pytest.mark.needs("root", "crun", "overlay")


def test_what_is_not_kept_from_a_step_is_said_before_it_runs(program: Program) -> None:
    program.spec(shell("ls /sys/class/net | wc -l; readlink /proc/self/ns/net"))
    said = program.ok("build", "--sandbox=host")
    assert said.index("warning: NO ISOLATION") < said.index("(from micro)")
    assert os.readlink("/proc/self/ns/net") in said, "the network is the machine's"
    checked = program.ok("healthcheck", "--sandbox=host")
    assert "NO ISOLATION" in checked
    assert leftovers(program.store, program.temporary) == []


def test_no_result_of_one_sandbox_is_taken_for_that_of_another(program: Program) -> None:
    program.file("x", b"x")
    program.spec("(copy (src x) (dst /x))", shell("readlink /proc/self/ns/net > /seen; cat /seen"))
    machine = os.readlink("/proc/self/ns/net")
    first = program.ok("build")
    assert machine not in first
    second = program.ok("build", "--sandbox=host")
    assert machine in second
    assert second.count("from cache") == 2, "the layer and the copy are made by the builder itself"
    for arguments, expected in (((), first), (("--sandbox=host",), second)):
        again = program.ok("build", *arguments)
        assert again.splitlines()[-1] == expected.splitlines()[-1]
        assert again.count("from cache") == 3
        assert (machine in again) == ("--sandbox=host" in arguments)
    assert program.ok("plan") != program.ok("plan", "--sandbox=host")
