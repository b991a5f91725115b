"""The list of leftovers sees what there is while a step runs, so that an empty one means something."""

import pytest

from leftovers import leftovers
from places import Opened, each_place
from program import Program, finish, heard


@each_place
@pytest.mark.needs("root", "crun")
def test_what_runs_is_seen(place: Opened, program: Program) -> None:
    # The word is none of the step's heading, which is there before the step is.
    program.spec("(run (secrets (s (target /s))) (shell \"echo star''ted; sleep 60\"))")
    program.file("secret", b"hunter2")
    process = program.start("build", "--secret=s:secret")
    heard(process, b"started")
    try:
        found = leftovers(program.store, program.temporary)
        kinds = ("cgroup", "mount of process", "in run")
        if place.kind == "docker":
            kinds = ("container", "image of nothing", "secret")
        for kind in ("process", *kinds, "in drafts", "in sessions"):
            assert any(line.startswith(kind) for line in found), (kind, found)
        assert any(line.startswith("in locks") for line in found)
        assert any(line.startswith("a log of nothing") for line in found)
    finally:
        process.send_signal(2)
        finish(process)
    assert leftovers(program.store, program.temporary) == []
