"""Ctrl-C and killed builders: steps that resist end with them, and whoever shares a step goes on."""

import os
import re
import signal
import time

import pytest

from places import each_place
from program import Program, finish, heard, running, shell, until

pytestmark = pytest.mark.needs("overlay", "crun")

RESIST = "trap '' INT TERM HUP; echo begun; (trap '' INT TERM; sleep {0} & sleep {0}) & sleep {0} & sleep {0}; wait"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@each_place
def test_a_step_that_resists_is_gone_within_a_second(program: Program) -> None:
    program.spec()
    program.ok("build")
    for number in range(10):
        mark = str(7_400_000 + os.getpid() % 1000 * 100 + number)
        program.spec(shell(RESIST.format(mark)))
        process = program.start("build", "--progress=plain")
        time.sleep(0.05 + number * 0.09)  # from before the step to well within it
        if number >= 5:
            heard(process, b"begun")
        process.send_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
        sent = time.monotonic()
        done = finish(process, timeout=20)
        if number >= 5:
            assert done.status == 130, (number, done)
        else:  # before the program listens a signal is what it is for any
            assert done.status in (130, -signal.SIGTERM, -signal.SIGINT), (number, done)
        until(lambda: not running("sleep", mark), "the step's processes end", seconds=1)  # noqa: B023 # at once
        taken = time.monotonic() - sent
        assert taken < 1.5, (number, taken)
        assert not any(mark in record for record in program.ok("ls").splitlines())
    assert os.listdir(os.path.join(program.store, "drafts")) == []


@each_place
@pytest.mark.parametrize("who", ["owner", "follower"])
def test_another_process_that_shares_the_step_goes_on(program: Program, who: str) -> None:
    program.spec(
        shell(
            "cat /proc/sys/kernel/random/uuid; echo begun; sleep 1.5; echo ended > /made; cat /made"
        )
    )
    owner = program.start("build")
    heard(owner, b"begun")
    follower = program.start("build")
    heard(follower, b"begun")
    leaver, stayer = (owner, follower) if who == "owner" else (follower, owner)
    leaver.send_signal(signal.SIGINT)
    assert finish(leaver, timeout=10).status == 130
    done = finish(stayer, timeout=30)
    assert done.status == 0, done
    assert "ended\n" in done.out
    log = program.ok("log", done.out.split('"')[-2])
    assert len(UUID.findall(log)) == 1
    assert log.endswith("begun\nended\n")


@each_place
def test_those_who_wait_for_a_builder_that_is_killed_go_on(program: Program) -> None:
    program.spec(shell("cat /proc/sys/kernel/random/uuid; echo begun; sleep 1; echo ended"))
    owner = program.start("build")
    heard(owner, b"begun")
    waiting = [program.start("build") for _ in range(7)]
    for process in waiting:
        heard(process, b"begun")
    owner.kill()
    killed = time.monotonic()
    finish(owner)
    ends = [finish(process, timeout=30) for process in waiting]
    assert time.monotonic() - killed < 1 + 5  # the step itself takes one
    assert [done.status for done in ends] == [0] * 7
    (key,) = {done.out.split('"')[-2] for done in ends}
    (made,) = UUID.findall(program.ok("log", key))
    assert all(made in done.out for done in ends)
    # One more run and no other: what anybody saw is of the killed attempt or of the one that counts.
    seen = {uuid for done in ends for uuid in UUID.findall(done.out)}
    assert len(seen) <= 2
