"""Steps as users of the machine: each alone with its files, and nothing of them left."""

import os
import pwd
import signal
import subprocess  # useradd is no part of the program
from collections.abc import Iterator

import pytest

from leftovers import leftovers
from obuilder.backends.sandboxes.accounts import listed
from places import each_shifted, scratch
from program import Program, heard, running, shell

pytestmark = [
    pytest.mark.needs("root", "useradd", "overlay"),
    pytest.mark.xdist_group("users"),  # of the machine, which all processes share
]

@pytest.fixture
def builder(program: Program) -> Program:
    """The program, whose steps are users of the machine."""
    program.variables["OBUILDER_SANDBOX"] = "users"
    return program


def ours(program: Program) -> list[str]:
    """The users of a store's steps."""
    with open(os.path.join(program.store, "sandbox-id"), encoding="ascii") as file:
        mark = file.read()
    return [account.name for account in listed() if mark in account.note]


@pytest.fixture
def stranger() -> Iterator[str]:
    """A user that has a name like a builder's, and is none."""
    name = f"obuilder-{os.getpid():016x}-1"
    argv = ["useradd", "--system", "--no-create-home", "--comment", "obuilder-none-of-yours", name]
    subprocess.run(argv, check=True)
    yield name
    subprocess.run(["userdel", name], check=True)


@each_shifted
def test_nothing_is_left_of_a_killed_builder(builder: Program, stranger: str) -> None:
    mark = str(9_870_000 + os.getpid() % 10_000)
    builder.spec(shell(f"echo start''ed; sleep {mark}"), base="scratch")
    process = builder.start("build")
    heard(process, b"started")
    (user,) = ours(builder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert ours(builder) == [user]
    builder.spec(shell("id -un"), base="scratch")
    builder.ok("build")
    assert ours(builder) == []
    assert pwd.getpwnam(stranger)
    assert not running("sleep", mark)
    assert leftovers(builder.store, builder.temporary) == []


@each_shifted
@pytest.mark.needs("gcc")
def test_a_package_is_built_and_used(builder: Program) -> None:
    builder.file("hello.c", b'#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n')
    cache = "(cache (c (target /home/builder/.cache)))"
    builder.spec(
        "(workdir /home/builder/src)",
        "(copy (src hello.c) (dst ./))",
        f'(run {cache} (shell "echo 1 >> ~/.cache/f; gcc -o hello hello.c && install -D hello /usr/local/bin/hello"))',
        f'(run {cache} (shell "hello; rm hello; stat -c %U:%G:%a /usr/local/bin/hello; id -un; cat ~/.cache/f"))',
        base="scratch",
    )
    said = builder.ok("build").splitlines()
    user = said[said.index("hello") + 2]
    assert said[said.index("hello") :][:4] == ["hello", f"{user}:{user}:755", user, "1"], said
    assert leftovers(builder.store, builder.temporary) == []


@pytest.mark.parametrize(
    ("op", "what"),
    [
        ("(copy (src x) (dst /src/))", "copy to /src"),
        ('(workdir /src)\n(run (shell "true"))', "start in /src"),
        ('(run (cache (c (target /var/cache))) (shell "true"))', "mount on /var/cache"),
        ('(run (secrets (s (target /etc/s))) (shell "true"))', "mount on /etc/s"),
        ('(run (network other) (shell "true"))', "no network called 'other'"),
    ],
)
def test_what_a_step_can_not_have_is_refused_before_the_first(
    builder: Program, op: str, what: str
) -> None:
    builder.file("x", b"")
    builder.file("secret", b"s")
    builder.spec(shell("echo ran"), op, base="scratch")
    done = builder.run("build", "--secret=s:secret")
    assert done.status == 2
    assert what in done.err
    assert "ran" not in done.out


def test_a_base_that_is_not_roots_is_named(builder: Program, tmp_path: os.PathLike[str]) -> None:
    home = os.path.join(tmp_path, "tree", "home", "builder")
    os.makedirs(home)
    os.chown(home, 1234, 1234)
    builder.spec(shell("true"), base=f"rootfs:{tmp_path}/tree")
    done = builder.run("build")
    assert done.status == 4
    assert "/home/builder in the base is not root's" in done.err


def test_a_prepared_tree_is_a_base(builder: Program, tmp_path: os.PathLike[str]) -> None:
    for name in ("home/builder", "usr/local/bin"):
        os.makedirs(os.path.join(tmp_path, name))
    tool = os.path.join(tmp_path, "usr/local/bin/tool")
    with open(tool, "w", encoding="ascii") as file:
        file.write("#!/bin/sh\necho prepared\n")
    os.chmod(tool, 0o755)
    builder.spec(shell("tool; echo more >> /usr/local/bin/tool"), base=f"rootfs:{tmp_path}")
    assert "prepared" in builder.ok("build").splitlines()
