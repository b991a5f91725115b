"""Ctrl-C and killed builders: steps that resist end with them, and whoever shares a step goes on."""

import os
import re
import signal
import time
from functools import partial

import pytest

from leftovers import leftovers
from obuilder.system.sessions import alive
from places import Opened, each_kind
from program import Process, Program, cached, finish, heard, running, shell, until

pytestmark = pytest.mark.needs("overlay", "crun")

RESIST = "trap '' INT TERM HUP; echo begun; (trap '' INT TERM; sleep {0} & sleep {0}) & sleep {0} & sleep {0}; wait"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


def _ended_by(process: Process, number: int, mark: str) -> float:
    """Seconds from a signal until the processes of the program's step are gone."""
    process.send_signal(number)
    return until(lambda: not running("sleep", mark), "all end", seconds=5)


def _is_open(store: str) -> bool:
    """Whether a builder lives; one that was ended by a signal may have left its file there."""
    return any(alive(store, name) for name in os.listdir(os.path.join(store, "sessions")))


@each_kind
def test_a_step_that_resists_is_gone_within_a_second(place: Opened, program: Program) -> None:
    program.spec()
    program.ok("build")
    for number in range(0, 10, 1 if place.slow == 1 else 3):
        mark = str(7_400_000 + os.getpid() % 1000 * 100 + number)
        program.spec(shell(RESIST.format(mark)))
        process = program.start("build", "--progress=plain")
        wanted = signal.SIGINT if number % 2 else signal.SIGTERM
        if number < 5:  # from when the builder opens the store to well within the step
            until(partial(_is_open, program.store), "the builder opens")
            time.sleep(number * 0.06)
        else:
            heard(process, b"begun")
        taken = _ended_by(process, wanted, mark)
        done = finish(process, timeout=20)
        # A program that is only just starting does not listen yet: the signal itself ends it.
        assert done.status == 130 or (number < 5 and done.status == -wanted), (number, done)
        assert taken < 1, (number, taken)
        assert not running("sleep", mark), number
        assert not any(mark in record for record in program.ok("ls").splitlines())
    program.ok("prune", "--dry-run")  # whatever the last one left, if it was ended by the signal
    assert leftovers(program.store, program.temporary) == []


@each_kind
@pytest.mark.parametrize("who", ["owner", "follower"])
def test_another_process_that_shares_the_step_goes_on(program: Program, who: str) -> None:
    mark = str(7_300_000 + os.getpid())
    made = "echo ended > /made; cat /made"  # a shell may say on its errors what ended its child
    program.spec(
        shell(
            f"exec 2> /dev/null; cat /proc/sys/kernel/random/uuid; echo begun; sleep {mark}; {made}"
        )
    )
    owner = program.start("build")
    heard(owner, b"begun")
    follower = program.start("build")
    heard(follower, b"begun")
    leaver, stayer = (owner, follower) if who == "owner" else (follower, owner)
    leaver.send_signal(signal.SIGINT)
    assert finish(leaver, timeout=10).status == 130
    until(lambda: running("sleep", mark), "the step goes on, or another's begins")
    for pid in running("sleep", mark):
        os.kill(pid, signal.SIGTERM)
    done = finish(stayer, timeout=30)
    assert done.status == 0, done
    assert "ended\n" in done.out
    log = program.ok("log", done.out.split('"')[-2])
    assert len(UUID.findall(log)) == 1
    assert log.endswith("begun\nended\n")


@each_kind
def test_those_who_wait_for_a_builder_that_is_killed_go_on(program: Program) -> None:
    mark = f"mark-{os.getpid()}"
    wait = f"until [ -e /v/hand/go ]; do sleep 0.05; : {mark}; done"
    program.spec(
        cached(f"cat /proc/sys/kernel/random/uuid; echo begun; {wait}; echo ended", hand="shared")
    )
    owner = program.start("build")
    heard(owner, b"begun")
    waiting = [program.start("build") for _ in range(7)]
    for process in waiting:
        heard(process, b"begun")
    until(lambda: running(mark), "the step runs", seconds=10)  # what was heard may be its heading
    before = set(running(mark))
    owner.kill()
    killed = time.monotonic()
    finish(owner)
    until(lambda: not before & set(running(mark)), "the step ends with its builder", seconds=2)
    until(lambda: running(mark), "another runs it", seconds=5)
    assert time.monotonic() - killed < 5
    program.spec(cached(": > /v/hand/go", hand="shared"), name="go.spec")
    program.ok("build", "-f", "go.spec")
    ends = [finish(process, timeout=60) for process in waiting]
    assert [done.status for done in ends] == [0] * 7
    (key,) = {done.out.split('"')[-2] for done in ends}
    (made,) = UUID.findall(program.ok("log", key))
    assert all(made in done.out for done in ends)
    # One more run and no other: what anybody saw is of the killed attempt or of the one that counts.
    seen = {uuid for done in ends for uuid in UUID.findall(done.out)}
    assert len(seen) <= 2
    program.ok("prune", "--dry-run")  # opens the store anew
    assert leftovers(program.store, program.temporary) == []
