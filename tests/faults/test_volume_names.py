"""The name of a cache volume may be any bytes: it decides nothing about where the volume is."""

import os

import pytest

from leftovers import leftovers
from places import Opened, each_kind
from program import Program

NAMES = [
    b"../../victim", b"a/b", b"/etc/hosts", b".", b"..", b"../..", b"-rf", b"with space", b",", b"\\",
    b":", b"'\";$(touch /x)", b"two\nlines", b"\xff\xfe\x80", b"\x01\x1b[31m", b"x" * 300, "é".encode(),
    b"volumes", b"*", b"a,upperdir=/etc",
]  # fmt: skip


def _atom(name: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in name) + '"'


def _step(mode: str, command: str) -> str:
    caches = " ".join(
        f"({_atom(name)} (target /v/{at}) (mode {mode}))" for at, name in enumerate(NAMES)
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


@each_kind
@pytest.mark.needs("root", "crun")
def test_any_name_stays_inside(place: Opened, program: Program) -> None:
    victim, volumes = f"{place.directory}/victim", f"{program.store}/volumes"
    os.mkdir(victim)
    texts = [os.fsdecode(name) for name in NAMES]
    for mode in ("private", "locked", "append", "shared"):
        program.spec(_step(mode, f"echo {mode} $v > $v/mine"))
        before = _outside(place)
        program.ok("build")
        assert _outside(place) == before
        if mode == "shared":
            assert len(os.listdir(volumes)) == len(NAMES)
            assert all(len(name) == 64 and name.isalnum() for name in os.listdir(volumes))

        program.spec(_step(mode, f"echo {mode}; cat $v/*"))
        said = program.ok("build")
        for at, name in enumerate(NAMES):
            assert f"\n{mode} {at}\n" in said, name
        listed = program.ok("cache", "ls")
        for text in texts:
            assert f"  {text}\n" in listed
        program.ok("cache", "rm", "--", *texts)
        assert program.ok("cache", "ls") == ""
    assert os.listdir(volumes) == []
    assert os.listdir(victim) == []
    assert leftovers(program.store, program.temporary) == []
