"""A disk that is full: the error names it, nothing wrong is kept, and there is a way out."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from leftovers import leftovers
from obuilder import Builder, Spec, errors, parse
from obuilder.engine.index import Index
from obuilder.engine.logs import LogWriter
from places import loop, tmpfs
from program import Program, shell

pytestmark = [pytest.mark.needs("root", "crun")]

SMALL: dict[str, tuple[str, Callable[[], AbstractContextManager[str]], tuple[str, ...]]] = {
    "overlayfs": ("overlayfs", lambda: tmpfs("24m"), ("overlay", "tmpfs")),
    "overlayfs-on-ext4": ("overlayfs", lambda: loop("ext4", 32 << 20), ("overlay",)),
    "btrfs": ("btrfs", lambda: loop("btrfs", 120 << 20), ("btrfs",)),
}
"""Small disks: the kind of store, and how to make one."""


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.needs(*row[2])) for name, row in SMALL.items()]
)
def small(request: pytest.FixtureRequest) -> Iterator[Program]:
    """The program with a store on a disk of its own."""
    kind, directory, _ = SMALL[request.param]
    with directory() as path:
        yield Program(path, kind=kind)


@contextmanager
def filled(program: Program, *, free: int = 0) -> Iterator[None]:
    """The disk, full but for `free` bytes, for as long as the context lasts."""
    filler = os.path.join(os.path.dirname(program.store), "filler")
    _fill(filler, free)
    try:
        yield
    finally:
        os.unlink(filler)


def _fill(filler: str, free: int) -> None:
    with open(filler, "wb", buffering=0) as file:
        for piece in (1 << 20, 1 << 16, 1 << 12, 1 << 12):
            with suppress(OSError):
                while file.write(bytes(piece)):
                    pass
            with suppress(OSError):
                os.fsync(file.fileno())
        file.truncate(max(file.tell() - free, 0))
        os.fsync(file.fileno())


def _works(program: Program) -> None:
    """A small build does, and there are no leftovers."""
    program.spec(shell(f"echo {os.urandom(4).hex()} > /small"))
    program.ok("build")
    assert leftovers(program.store, program.temporary) == []


def _named(program: Program, error: str) -> None:
    assert f"the disk of {program.store} is full" in error, error
    assert "obuilder prune" in error, error


def test_a_step_that_fills_the_disk(small: Program) -> None:
    _works(small)
    small.spec(shell("cat /dev/zero > /big"))
    done = small.run("build")
    assert done.status == errors.StepFailed.exit_status
    assert "No space left on device" in done.out
    _named(small, done.err)
    assert "obuilder shell" not in done.err  # what fills the disk is not kept
    _works(small)


def test_a_log_that_fills_the_disk(small: Program) -> None:
    _works(small)
    small.spec(f"(run (limits (log 4g)) {shell('head -c 200000000 /dev/zero')[5:]}")
    done = small.run("build", "--progress=quiet")
    assert done.status == errors.StoreFull.exit_status
    _named(small, done.err)
    _works(small)


def test_a_copy_that_does_not_fit(small: Program) -> None:
    _works(small)
    with open(os.path.join(small.context, "big"), "wb") as file:
        file.truncate(1 << 30)
        file.seek(0)
        free = shutil.disk_usage(small.store).free
        while file.tell() < free * 2 // 3:
            file.write(os.urandom(1 << 20))
        file.truncate()
    small.spec("(copy (src big) (dst /big))")
    done = small.run("build")
    assert done.status == errors.StoreFull.exit_status
    _named(small, done.err)
    os.unlink(os.path.join(small.context, "big"))
    _works(small)


def test_a_base_that_does_not_fit(small: Program) -> None:
    with filled(small, free=1 << 20):
        small.spec()
        done = small.run("build")
        assert done.status == errors.StoreFull.exit_status, done
    _works(small)


def test_deleting_makes_room_on_a_disk_that_is_full(small: Program) -> None:
    small.spec(shell("echo > /before"))
    key = small.ok("build", "--progress=quiet").strip()
    with filled(small):
        done = small.run("build")
        assert done.status == errors.StoreFull.exit_status
        assert "obuilder prune" in done.err
        small.ok("delete", key)
        small.ok("clean")
    _works(small)


@pytest.mark.anyio
@pytest.mark.parametrize("moment", [(LogWriter, "done"), (Index, "add")], ids=["files", "index"])
async def test_whatever_little_is_left_when_a_step_ends(
    small: Program, moment: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up before the result's files are written, or only the index is left."""
    filler = os.path.join(os.path.dirname(small.store), "filler")
    expected = "".join(f"{number}\n" for number in range(1, 2001))
    outcomes = list[str]()
    for number in range(8):
        text = f'((from micro) (shell /bin/sh -c) (env N {number}) (run (shell "seq 2000 | tee /made")))'
        spec = parse(text.encode(), file="a test").spec
        await _build(small, parse(b"((from micro))", file="a test").spec)
        with monkeypatch.context() as patched:
            original = getattr(*moment)

            def full(*args: object, **more: object) -> object:
                _fill(filler, number * 4096)  # noqa: B023 - called in this very turn
                return original(*args, **more)  # noqa: B023

            patched.setattr(*moment, full)
            try:
                await _build(small, spec)
                outcomes.append("built")
            except errors.StoreFull as error:
                outcomes.append("full")
                said = [error.message, *getattr(error, "__notes__", ())]
                assert any(small.store in text for text in said), said
        os.unlink(filler)
        found = await _made(small, await _build(small, spec))
        assert found == (expected, expected.encode())
        assert leftovers(small.store, small.temporary) == [], number
    print(outcomes)
    assert "full" in outcomes


async def _build(program: Program, spec: Spec) -> str:
    async with Builder.open(program.settings) as builder:
        return (await builder.build(spec, program.context)).key


async def _made(program: Program, key: str) -> tuple[str, bytes | None]:
    async with Builder.open(program.settings) as builder, builder.view(key) as root:
        return Path(root.path, "made").read_text(), builder.log(key)
