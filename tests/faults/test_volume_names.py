"""The name of a cache volume may be any bytes: it decides nothing about where the volume is."""

import os

import pytest

from leftovers import engine_volumes, leftovers
from places import Opened, each_kind
from program import Program

NAMES = [
    b"../../victim", b"a/b", b"/etc/hosts", b".", b"..", b"../..", b"-rf", b"with space", b",", b"\\",
    b":", b"'\";$(touch /x)", b"two\nlines", b"\xff\xfe\x80", b"\x01\x1b[31m", b"x" * 300, "é".encode(),
    b"volumes", b"*", b"a,upperdir=/etc",
]  # fmt: skip


def _atom(name: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in name) + '"'


def _step(names: list[bytes], mode: str, command: str) -> str:
    caches = " ".join(
        f"({_atom(name)} (target /v/{at}) (mode {mode}))" for at, name in enumerate(names)
    )
    return f'(run (cache {caches}) (shell "cd /v; for v in *; do {command}; done"))'


def _outside(place: Opened) -> dict[str, float]:
    """Everything beside the store, and what the names could point to, with its time."""
    found = {"/etc/hosts": os.stat("/etc/hosts").st_mtime}
    for folder, folders, files in os.walk(place.directory):
        folders[:] = [name for name in folders if name != "store"]
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            found[path] = os.lstat(path).st_mtime
    return found


def _shared(place: Opened, program: Program) -> list[str]:
    """What the volumes that steps share are called where they are."""
    if place.kind == "docker":
        parts = (name.partition("-shared-") for name in engine_volumes(program.store))
        return [name for _, dash, name in parts if dash]
    return os.listdir(f"{program.store}/volumes")


@each_kind
@pytest.mark.needs("root", "crun")
def test_any_name_stays_inside(place: Opened, program: Program) -> None:
    victim = f"{place.directory}/victim"
    os.mkdir(victim)
    names = NAMES if place.rarely == 1 else NAMES[::6]
    texts = [os.fsdecode(name) for name in names]
    for mode in ("private", "locked", "append", "shared"):
        program.spec(_step(names, mode, f"echo {mode} $v > $v/mine"))
        before = _outside(place)
        program.ok("build")
        assert _outside(place) == before
        if mode == "shared":
            shared = _shared(place, program)
            assert len(shared) == len(names)
            assert all(len(name) == 64 and name.isalnum() for name in shared)

        program.spec(_step(names, mode, f"echo {mode}; cat $v/*"))
        said = program.ok("build")
        for at, name in enumerate(names):
            assert f"\n{mode} {at}\n" in said, name
        listed = program.ok("cache", "ls")
        for text in texts:
            assert f"  {text}\n" in listed
        program.ok("cache", "rm", "--", *texts)
        assert program.ok("cache", "ls") == ""
    assert _shared(place, program) == []
    assert os.listdir(victim) == []
    assert leftovers(program.store, program.temporary) == []
