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

HOSTILE = """
me=$1; meet=/home/builder/meet; cd /home/builder
id -u > $meet/$me.uid
for place in /home/builder /usr/local /run /tmp /var/tmp /dev/shm; do echo $me > $place/mine; done
sleep 300 & echo $! > $meet/$me.pid
touch $meet/$me.here
until [ $(ls $meet | grep -c here) = 4 ]; do sleep 0.05; done
for place in /home/builder /usr/local /run /tmp /var/tmp /dev/shm; do
  [ "$(cat $place/mine)" = $me ] || echo "$me: $place is shared"
done
seen=$(ls /proc | grep -c '^[0-9]'); [ $seen -lt 9 ] || echo "$me: sees $seen processes"
for place in STORE/mnt/* STORE/drafts/*/upper /proc/[0-9]*/root /proc/1/cwd; do
  for file in home/builder usr/local run; do
    found=$(cat $place/$file/mine 2>/dev/null) && [ "$found" != $me ] && echo "$me: reads $place/$file of $found"
    [ $place = /proc/$$/root ] || [ "$found" = $me ] || ! echo x 2>/dev/null > $place/$file/mine || echo "$me: changes $place/$file"
  done
done
ls STORE /root 2>/dev/null && echo "$me: sees the store"
for pid in $(cat $meet/*.pid) $(seq 2 40); do [ $pid = $$ ] || [ $pid = $! ] || kill -9 $pid 2>/dev/null; done
touch /etc/mine /usr/mine /opt/mine 2>/dev/null && echo "$me: changes the machine"
(exec 3<>/dev/tcp/127.0.0.1/22) 2>/dev/null && echo "$me: reaches the network"
touch $meet/$me.done
until [ $(ls $meet | grep -c done) = 4 ]; do sleep 0.05; done
echo "$me: survives"
"""


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


@pytest.fixture
def crowd() -> Iterator[Program]:
    """The same, with a store at a place that a step would see if it were not kept from it."""
    with scratch("/var/lib") as path:
        found = Program(path)
        found.variables["OBUILDER_SANDBOX"] = "users"
        os.makedirs(found.store)
        os.chmod(found.store, 0o755)  # as other sandboxes need it
        yield found


def test_four_at_once_are_four_users_who_can_do_nothing_to_each_other(crowd: Program) -> None:
    builder = crowd
    builder.file("hostile.sh", HOSTILE.replace("STORE", builder.store).encode())
    stages = "".join(
        f"""(build s{number} ((from scratch)
          (copy (src hostile.sh) (dst /home/builder/hostile.sh))
          (run (cache (meet (target /home/builder/meet) (mode shared)))
               (shell "bash /home/builder/hostile.sh {number}"))
          (run (cache (meet (target /home/builder/meet) (mode shared)))
               (shell "cat /home/builder/mine /usr/local/mine /run/mine; ls /tmp"))))
        """
        for number in range(4)
    )
    copies = [
        f"(copy (from (build s{number})) (src /usr/local/mine) (dst /usr/local/of-{number}))"
        for number in range(4)
    ]
    meeting = '(run (cache (meet (target /home/builder/meet) (mode shared))) (shell "sort -u /home/builder/meet/*.uid | wc -l"))'
    builder.spec(*copies, meeting, shell("cat /usr/local/of-*"), before=stages, base="scratch")
    said = builder.ok("build", "--parallel=4", "--timeout=90")
    lines = said.splitlines()
    for number in range(4):
        about = [line for line in lines if line.startswith(f"{number}: ")]
        assert about == [f"{number}: survives"], said
        assert lines.count(str(number)) == 4, said  # kept: home, prefix, run; and what was copied
    assert lines.count("4") == 1, said  # four users
    assert ours(builder) == []
    assert leftovers(builder.store, builder.temporary) == []


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
