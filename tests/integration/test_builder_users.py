"""Steps as users of the machine: each alone with its files, and nothing of them left."""

import os
import pwd
import subprocess  # useradd is no part of the program
import time
from collections.abc import Iterator

import pytest

from leftovers import leftovers, leftovers_of
from obuilder.backends.sandboxes.accounts import LinuxAccounts, listed
from obuilder.system import linux
from people import gone_with
from places import each_shifted
from program import Program, heard, running, shell, until

pytestmark = [
    pytest.mark.needs("root", "useradd", "overlay"),
    pytest.mark.xdist_group("users"),  # of the machine, which all processes share
]


@pytest.fixture
def builder(program: Program) -> Iterator[Program]:
    """The program, whose steps are users of the machine."""
    program.variables["OBUILDER_SANDBOX"] = "users"
    with gone_with(os.path.dirname(program.store)):
        yield program


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


STUBBORN = (
    "sleep MARK",
    "trap '' TERM INT HUP; sleep MARK",
    "(setsid sh -c 'trap \"\" TERM HUP; (sleep MARK &) ; sleep MARK' >/dev/null 2>&1 &); sleep MARK",
    """ipcmk -M 4096 -Q -S 1 >/dev/null; touch /dev/shm/left /tmp/left /var/tmp/left
    (unshare -Urpf sleep MARK || setsid sleep MARK) >/dev/null 2>&1 & sleep MARK""",
)
"""What steps may do to stay: ignore signals, leave their parents, sessions and namespaces."""


def stages(*runs: list[str]) -> str:
    """As many stages as each list is long, of one run out of each."""
    return "".join(
        f"(build s{number} ((from scratch) (shell /bin/sh -c) {' '.join(ops)}))\n"
        for number, ops in enumerate(zip(*runs, strict=True))
    )


@each_shifted
def test_nothing_is_left_of_four_jobs_of_a_killed_builder(builder: Program, stranger: str) -> None:
    mark = f"{os.getpid()}.{time.monotonic_ns() % 10**9}"
    homes = os.listdir("/home")
    copies = [
        f"(copy (from (build s{number})) (src /home/builder/first) (dst /usr/local/of-{number}))"
        for number in range(4)
    ]
    starts = [shell(f"echo kept-{number} > ~/first") for number in range(4)]
    stays = [shell(f"echo start''ed; {how.replace('MARK', mark)}") for how in STUBBORN]
    builder.spec(*copies, before=stages(starts, stays), base="scratch")
    process = builder.start("build", "--parallel=4")
    try:
        for _ in range(4):
            heard(process, b"started")
        until(lambda: len(running("sleep", mark)) >= 7, "all their processes run")
        users = [account for account in listed() if account.name in ours(builder)]
        assert len({user.uid for user in users}) == 4
    finally:
        process.kill()
        process.communicate()
    assert len(ours(builder)) == 4

    says = [shell("cat ~/first; ls /tmp /var/tmp /dev/shm | grep left; id -un") for _ in range(4)]
    builder.spec(*copies, shell("cat /usr/local/of-*"), before=stages(starts, says), base="scratch")
    lines = builder.ok("build", "--parallel=4").splitlines()
    for number in range(4):
        assert lines.count(f"kept-{number}") == 2, lines
    assert sum("from cache" in line for line in lines) == 5, lines  # scratch, and what was done
    assert "left" not in lines
    assert not {user.name for user in users} & set(lines), "names are never another's"
    assert ours(builder) == []
    assert pwd.getpwnam(stranger)
    assert not running("sleep", mark)
    assert leftovers_of(users) == []
    assert os.listdir("/home") == homes
    assert leftovers(builder.store, builder.temporary) == []


def test_a_user_that_is_made_while_the_builder_is_killed_goes_too(builder: Program) -> None:
    tools = os.path.join(os.path.dirname(builder.context), "tools")
    os.mkdir(tools)
    with open(f"{tools}/useradd", "w", encoding="ascii") as file:
        # The program itself waits so long for another that changes the tables.
        file.write('#!/bin/sh\necho here > "$0.runs"; sleep 1.5; /usr/sbin/useradd "$@"\n')
    os.chmod(f"{tools}/useradd", 0o755)
    builder.spec(shell("true"), base="scratch")
    builder.variables["PATH"] = f"{tools}:{os.environ['PATH']}"
    process = builder.start("build")
    try:
        until(lambda: os.path.exists(f"{tools}/useradd.runs"), "a user is being made")
    finally:
        process.kill()
        process.communicate()
    assert ours(builder) == []
    del builder.variables["PATH"]
    builder.ok("build")
    assert not running(f"{tools}/useradd")
    assert ours(builder) == []


def test_a_user_goes_with_its_group_whatever_the_machine_says(program: Program) -> None:
    name, note = f"obuilder-{os.getpid():016x}-2", "obuilder-a-test"
    accounts = LinuxAccounts("/home/builder")
    accounts.add(name, note)
    (account,) = (account for account in listed() if account.name == name)
    changed = program.file("login.defs", b"USERGROUPS_ENAB no\n")
    linux.mount(changed, "/etc/login.defs", None, linux.MS_BIND)  # in this process's namespace
    try:
        accounts.remove(account)
        accounts.remove(account)
    finally:
        linux.unmount("/etc/login.defs", linux.MNT_DETACH)
    assert leftovers_of([account]) == []


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
