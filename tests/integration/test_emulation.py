"""Steps for other architectures, in a namespace whose table of emulators is the test's own."""

import struct
import subprocess  # the program under test is a process
import sys

import pytest

import images
from program import REPO, compile_c

pytestmark = pytest.mark.needs("root", "overlay", "binfmt", "gcc")

_EMULATOR = r"""
#include <stdio.h>
int main(int count, char **words) {
    for (int number = 1; number < count; number++) printf("%s ", words[number]);
    puts("emulated");
    return 0;
}
"""
_MAGIC = rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00".decode()
_MASK = (
    rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff".decode()
)
_TABLE = "/proc/sys/fs/binfmt_misc"


def arm64_program():
    """The header of a program for 64-bit ARM; no code of it is ever looked at here."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    return head + struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, 0, 64, 0, 0, 64, 56, 0, 64, 0, 0)


@pytest.fixture
def build(program, tmp_path):
    """Builds a step for arm64 with a table that a script has filled."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "prog").write_bytes(arm64_program())
    (root / "prog").chmod(0o755)
    images.run("tar", "cf", f"{program.context}/arm.tar", "-C", str(root), ".")
    (tmp_path / "emulator.c").write_text(_EMULATOR)
    compile_c(tmp_path / "emulator.c", f"{program.context}/emulator")
    text = "((from tar:arm.tar) (shell /prog) (run (shell word)))"
    program.file("obuilder.spec", text.encode())

    def run(script, *options):
        words = " ".join([sys.executable, "-m", "obuilder", "build", *options])
        return subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", f"{script}\n{words}"],
            cwd=program.context, capture_output=True, text=True, timeout=120, check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": f"{REPO}/src",
                 "HOME": program.context, **program.variables},
        )  # fmt: skip

    return run


MOUNTED = f"mount -t binfmt_misc none {_TABLE}"
REGISTER = MOUNTED + f"\necho ':any-name:M::{_MAGIC}:{_MASK}:'$PWD/emulator:%s > {_TABLE}/register"


def test_a_registered_emulator_runs_them(build):
    done = build(REGISTER % "F", "--platform=linux/arm64")
    assert done.returncode == 0, done.stderr
    assert "/prog word emulated\n" in done.stdout


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (MOUNTED, "no emulator for arm64 is registered"),
        (REGISTER % "", "the emulator any-name is registered without the flag F"),
        (f"{REGISTER % 'F'}\necho 0 > {_TABLE}/any-name", "no emulator for arm64 is registered"),
        (f"{REGISTER % 'F'}\necho 0 > {_TABLE}/status", "is switched off"),
        (f"mount -t tmpfs none {_TABLE}", "is not mounted"),
    ],
)
def test_without_one_they_are_refused_before_anything_runs(build, program, script, said):
    done = build(script, "--platform=linux/arm64")
    assert done.returncode == 2, done.stdout
    assert "steps for linux/arm64 can't run on this machine" in done.stderr
    assert said in done.stderr
    assert "qemu-user-static" in done.stderr
    assert "saved as" not in done.stdout


def test_what_the_machine_runs_itself_needs_none(build, program):
    text = '((from micro) (shell /bin/sh -c) (run (shell "echo native")))'
    program.file("obuilder.spec", text.encode())
    done = build(f"mount -t tmpfs none {_TABLE}")
    assert "native\n" in done.stdout, done.stderr
