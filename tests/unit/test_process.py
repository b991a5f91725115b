"""Starting programs: what they say and how they end is exact, and nothing is left running."""

import os
import sys
import time

import anyio
import pytest

from obuilder.system import process


def run(script, **options):
    pieces = []

    async def main():
        return await process.run(["sh", "-c", script], output=pieces.append, **options)

    return anyio.run(main), b"".join(pieces)


def test_both_outputs_in_their_order():
    ended, said = run("printf a; printf b >&2; printf 'c\\0\\377'")
    assert ended == process.Ended(status=0)
    assert said == b"abc\0\xff"


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -9 $$", 137)])
def test_statuses(script, status):
    assert run(script)[0].status == status


def test_much_output_is_whole():
    assert len(run("head -c 3000000 /dev/zero")[1]) == 3_000_000


def test_input_is_at_its_end():
    assert run("cat; echo end")[1] == b"end\n"


def test_time_limit_ends_it_and_keeps_what_it_said():
    began = time.monotonic()
    ended, said = run("echo before; exec sleep 50", timeout=0.3)
    assert ended.timed_out
    assert ended.status == 137
    assert said == b"before\n"
    assert time.monotonic() - began < 2


def test_cancelling_kills_and_reaps():
    pids = []

    async def main():
        with anyio.move_on_after(0.3):
            await process.run(
                ["sh", "-c", "echo $$; trap '' TERM INT; exec sleep 50"],
                output=lambda data: pids.append(int(data)),
            )

    anyio.run(main)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_daemon_that_holds_the_output_is_not_waited_for():
    began = time.monotonic()
    _, said = run("sleep 2 & echo done")
    assert said == b"done\n"
    assert time.monotonic() - began < 1.5


def test_no_descriptor_is_left():
    before = len(os.listdir("/proc/self/fd"))
    run("true")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_program_that_is_not_there():
    async def main():
        await process.run(["/nowhere/program"], output=lambda _: None)

    with pytest.raises(FileNotFoundError):
        anyio.run(main)
    assert process.capture(["/nowhere/program"])[0] == 127


def test_capture():
    assert process.capture([sys.executable, "-c", "print(1)"]) == (0, b"1\n")
    assert process.capture(["sleep", "9"], timeout=0.1)[0] == 124


def test_what_the_listener_raises_comes_out_as_it_is():
    def listen(data):
        raise OSError(28, "no room")

    async def main():
        await process.run(["sh", "-c", "echo a; sleep 60"], output=listen)

    began = time.monotonic()
    with pytest.raises(OSError, match="no room"):
        anyio.run(main)
    assert time.monotonic() - began < 10
