"""Builds that keep only what their stages come to, on real stores, beside others that want more."""

import json
import os
import tarfile

import pytest

from leftovers import leftovers
from obuilder.backends.stores.directory import disk_bytes
from places import each, each_kind
from program import Program, cached, finish, heard, shell

pytestmark = pytest.mark.needs("crun")

SIDE = f"(build side ((from micro) (shell /bin/sh -c) {shell('echo one > /s')} {shell('echo two >> /s')}))"
COPY = "(copy (from (build side)) (src /s) (dst /s))"
FIRST, SECOND = shell("echo a > /a"), shell("head -c 3000000 /dev/urandom > /big; echo b > /b")


def results(program: Program) -> list[str]:
    """What the results there are did, in an order of its own; base images are left out."""
    records = json.loads(program.ok("ls", "--json"))
    stored = set(os.listdir(os.path.join(program.store, "results")))
    assert stored == {record["key"] for record in records}
    return sorted(record["heading"] for record in records if record["kind"] != "layer")


def files(program: Program, key: str) -> dict[str, bytes]:
    """The files of a result that the steps of this test make."""
    target = os.path.join(program.temporary, "result.tar")
    program.ok("export", key, f"tar:{target}")
    with tarfile.open(target) as tar:
        found = {
            name: tar.extractfile(name)
            for name in tar.getnames()
            if name in ["a", "b", "c", "d", "s"]
        }
        content = {name: file.read() for name, file in found.items() if file is not None}
    os.unlink(target)
    return content


@each_kind
def test_what_is_on_the_way_goes_and_what_stays_is_whole(program: Program) -> None:
    program.variables["OBUILDER_KEEP"] = "stages"
    program.spec(FIRST, SECOND, shell("echo partial > /p; exit 3"))
    assert program.run("build").status == 1
    *_, failed = json.loads(program.ok("ls", "--json"))[::-1]
    assert failed["kind"] == "failed"
    assert len(results(program)) == 3  # it goes on from here when what was wrong is put right
    program.spec(FIRST, SECOND, COPY, shell("rm /big; cat /a /b /s > /c"), before=SIDE)
    out = program.ok("build")
    assert out.count("saved as") == 4
    headings = [FIRST, SECOND, COPY, "echo one"]
    assert not any(heading in kept for kept in results(program) for heading in headings)
    assert len(results(program)) == 3  # the failed one, the stage's and the build's
    assert program.ok("shell", failed["key"], "cat", "/a", "/b", "/p") == "a\nb\npartial\n"
    key = out.partition('Got: "')[2][:64]
    assert files(program, key) == {
        "a": b"a\n",
        "b": b"b\n",
        "s": b"one\ntwo\n",
        "c": b"a\nb\none\ntwo\n",
    }
    # What is gone is not needed, and is told so.
    assert "to run" not in program.ok("plan")
    assert program.ok("explain").startswith("nothing differs from the last build\n")
    again = program.ok("build")
    assert "saved as" not in again
    assert f'Got: "{key}"' in again
    # After a change in the middle the steps before it run again, but the stage is there.
    program.spec(FIRST, shell("echo B > /b"), COPY, shell("cat /b /s > /c"), before=SIDE)
    assert [line[:6] for line in program.ok("plan").splitlines()].count("to run") == 4
    changed = program.ok("build")
    assert changed.count("saved as") == 4
    assert files(program, changed.partition('Got: "')[2][:64])["c"] == b"B\none\ntwo\n"
    assert files(program, key)["c"] == b"a\nb\none\ntwo\n"
    assert len(results(program)) == 4
    assert leftovers(program.store, program.temporary) == []


@each_kind
@pytest.mark.parametrize("keep", ["all", "stages"])
def test_what_another_process_works_on_stays_until_that_is_done(
    program: Program, keep: str
) -> None:
    """The other one goes on, step by step, on results that the first would drop."""
    wait = cached("echo here; until [ -e /v/v/go ]; do sleep 0.05; done; cat /a /b", v="shared")
    program.spec(FIRST, SECOND, wait, shell("cat /a /b > /d"), name="slow.spec")
    program.spec(FIRST, SECOND, shell("cat /a /b > /c"))
    slow = program.start("build", "-f", "slow.spec", "--keep", keep)
    try:
        heard(slow, b"here")
        quick = program.ok("build", "--keep=stages")
        assert quick.count("saved as") == 1
        program.spec(cached("echo > /v/v/go", v="shared"), name="go.spec")
        program.ok("build", "-f", "go.spec", "--keep=stages")
    finally:
        done = finish(slow)
    assert done.status == 0, done
    assert "a\nb\n" in done.out
    assert files(program, done.out.partition('Got: "')[2][:64])["d"] == b"a\nb\n"
    assert len(results(program)) == (3 if keep == "stages" else 6)
    assert leftovers(program.store, program.temporary) == []


@each("overlayfs", "xfs")
def test_what_later_steps_deleted_takes_no_room(program: Program) -> None:
    layers = os.path.join(program.store, "layers")
    program.spec()
    program.ok("build")
    before = disk_bytes(layers)
    program.spec(FIRST, SECOND, shell("rm /big"))
    program.ok("build", "--keep=stages")
    assert disk_bytes(layers) - before < 100_000


@each_kind
def test_builds_side_by_side_that_share_what_neither_keeps(program: Program) -> None:
    for number in range(3):
        last = f"cat /a /b > /c; echo {number} >> /c"
        program.spec(FIRST, SECOND, shell(last), shell("cat /c > /d"), name=f"{number}.spec")
    started = [program.start("build", "-f", f"{n}.spec", "--keep=stages") for n in range(3)]
    for number, process in enumerate(started):
        done = finish(process)
        assert done.status == 0, done
        key = done.out.partition('Got: "')[2][:64]
        assert files(program, key)["d"] == b"a\nb\n%d\n" % number
    assert results(program) == ['/: (run (shell "cat /c > /d"))'] * 3
    assert leftovers(program.store, program.temporary) == []
