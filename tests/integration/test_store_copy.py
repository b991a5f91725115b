"""Results brought from one store to another: the same files, logs and keys, however often it stops."""

import io
import json
import os
import subprocess  # a pipe between two of the program
import sys
from pathlib import Path

import pytest

from obuilder import Builder, Settings, errors
from obuilder.engine.transfer import unpack_into
from places import Opened, opened
from program import Program, cached, finish, shell

pytestmark = [pytest.mark.needs("overlay", "crun", "btrfs")]

SPEC = (
    shell("mkdir /d && echo one > /d/a && ln /d/a /d/b && ln -s a /d/c && chmod 4711 /d/a && echo said"),
    cached("echo kept > /v/c/kept; rm /d/c; echo two > /d/a", c="private"),
    "(user (uid 7) (gid 8))", "(copy (from (build dev)) (src /big) (dst /w/))",
    "(user (uid 0) (gid 0))", shell("truncate -s 1M /sparse; rm -r /w; echo last"),
)  # fmt: skip
DEV = (
    f"(build dev ((from micro) (shell /bin/sh -c) {shell('head -c 3000000 /dev/urandom > /big')}))"
)


@pytest.fixture
def other(request):
    with opened("btrfs") as ready:
        yield ready


def listing(program: Program, key: str, name: str) -> bytes:
    target = os.path.join(program.temporary, name)
    program.ok("export", key, f"tar:{target}")
    with open(target, "rb") as file:
        return file.read()


def test_between_kinds_of_stores(program: Program, other: Opened) -> None:
    program.spec(*SPEC, before=DEV)
    key = program.ok("build", "-q").strip()
    program.ok("image", "import", "mine", "micro")
    results = {r["key"]: r for r in json.loads(program.ok("ls", "-a", "--json"))}
    before = listing(program, key, "before.tar")
    source, target = program.settings.store, f"btrfs:{other.directory}/other"
    out = program.ok("store", "copy", source, target)
    assert out.splitlines()[-1] == f"copied {len(results)}"
    assert program.ok("store", "copy", source, target) == "copied 0\n"
    program.variables["OBUILDER_STORE"] = target
    copied = {r["key"]: r for r in json.loads(program.ok("ls", "-a", "--json"))}
    assert set(copied) == set(results)
    assert all(
        copied[k]["heading"] == r["heading"] and copied[k]["base"] == r["base"]
        for k, r in results.items()
    )
    assert listing(program, key, "after.tar") == before
    images = [os.path.join(program.temporary, name) for name in ("here", "there")]
    for place, image in zip((source, target), images, strict=True):
        program.variables["OBUILDER_STORE"] = place
        program.ok("export", key, f"oci-archive:{image}")
    assert Path(images[0]).read_bytes() == Path(images[1]).read_bytes()
    again = program.ok("build")
    assert "saved as" not in again
    assert "said\n" in again
    assert "mine" in program.ok("image", "ls")
    program.spec(cached("cat /v/c/kept", c="private"))
    assert "kept\n" in program.ok("build")
    assert program.ok("store", "copy", target, f"overlayfs:{program.store}-back").endswith(
        f"copied {len(results) + 1}\n"
    )


def test_through_a_pipe(program: Program) -> None:
    program.spec(*SPEC, before=DEV)
    key = program.ok("build", "-q").strip()
    before = listing(program, key, "before.tar")
    with program.start("store", "copy", program.settings.store, "-") as sender:
        taker = subprocess.run(
            [sys.executable, "-m", "obuilder", "store", "copy", "-", f"overlayfs:{program.store}-2"],
            stdin=sender.stdout, capture_output=True, check=True, cwd=program.context,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    assert sender.returncode == 0
    assert taker.stdout == b"copied 7\n"
    program.use("store-2")
    assert listing(program, key, "after.tar") == before


def test_a_copy_that_was_killed_goes_on(program: Program) -> None:
    program.spec(*(shell(f"head -c 2000000 /dev/urandom > /f{number}") for number in range(12)))
    key = program.ok("build", "-q").strip()
    before = listing(program, key, "before.tar")
    target = f"overlayfs:{program.store}-2"
    process = program.start("store", "copy", program.settings.store, target)
    for _ in range(4):
        assert process.stdout.readline()
    process.kill()
    finish(process)
    rest = program.ok("store", "copy", program.settings.store, target)
    assert 1 <= int(rest.split()[-1]) <= 10
    program.use("store-2")
    assert listing(program, key, "after.tar") == before


@pytest.mark.anyio
async def test_what_is_cut_off_or_damaged_is_refused(program: Program) -> None:
    program.spec(shell("head -c 300000 /dev/urandom > /f"), shell("echo 2 > /g"))
    program.ok("build")
    stream = io.BytesIO()
    async with Builder.open(program.settings) as builder:
        assert await builder.pack(stream) == 3
        assert await builder.unpack(io.BytesIO(stream.getvalue())) == 0
    whole = stream.getvalue()
    for number, cut in enumerate(
        (0, 10, 40, len(whole) // 2, len(whole) - 400000, len(whole) - 30)
    ):
        async with Builder.open(Settings(store=f"overlayfs:{program.store}-{number}")) as builder:
            with pytest.raises(errors.UsageError):
                await unpack_into(builder.receiver(), io.BytesIO(whole[:cut]))
            taken = [record.key for record in builder.records()]
            assert sorted(await builder.store.keys()) == sorted(taken)
            assert await builder.unpack(io.BytesIO(whole)) == 3 - len(taken)


def test_bad_requests(program: Program) -> None:
    for line, said in (
        (("nope:/x", "overlayfs:/y"), "no store called 'nope'"),
        (("overlayfs:/x", "overlayfs:/x"), "both stores are the same"),
        (("-", f"overlayfs:{program.store}"), "no stream of results"),
    ):
        done = program.run("store", "copy", *line)
        assert done.status == 2
        assert said in done.err
