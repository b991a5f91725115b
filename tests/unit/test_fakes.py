"""The fake sandbox's shell: what it understands is done as a shell does it, the rest is refused."""

import os
import subprocess  # the shell that it is held against

import pytest

import places
from obuilder.backends.protocols import Command, HostDir, Mount
from obuilder.errors import SandboxError
from obuilder.testing.fakes import open_fakes
from obuilder.values import ROOT

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory():
    with places.memory() as path:
        os.mkdir(os.path.join(path, "root"))
        yield path


@pytest.fixture
async def sandbox(directory):
    async with open_fakes(os.path.join(directory, "store")) as (_, sandbox):
        yield sandbox


@pytest.fixture
def said(sandbox, directory):
    async def run(script, mounts=()):
        pieces = []
        command = Command(
            argv=("sh", "-c", script), cwd="/", user=ROOT, env=(("A", "a b"),), mounts=mounts
        )
        ended = await sandbox.run(HostDir(f"{directory}/root"), command, output=pieces.append)
        return ended.status, b"".join(pieces)

    return run


@pytest.mark.parametrize(
    "script",
    [
        'echo a \'b  c\' "d $A" e\\ f; echo $A$NONE-${A}x \'$A\' \\$A "\\$A \\""',
        "false; echo $?; true && echo yes || echo no; false && echo yes || echo no",
        "false || false || echo third; true && false; echo $?; exit 7; echo never",
        "echo one # and no more\necho two\n\n",
        'B=1; C="$B 2"; echo $B$C',
        "printf 'a\\tb\\n%s-%s\\\\\\101' x y; echo -n end",
        "mkdir -p d/e; echo 1 > d/e/f; echo 2 >> d/e/f; cat < d/e/f; cat d/e/f d/e/f; ls d",
        "echo out; echo err >&2; cat missing 2> file; echo $?",
        "echo 1 > f; rm f; cat f 2> log; echo $?",
        "no-such-word 2> log; echo $?; sleep 0; cat missing > log 2>&1; echo $?",
        "sleep 0.2 & echo now",
    ],
)
async def test_it_does_what_a_shell_does(said, directory, script):
    os.mkdir(f"{directory}/real")
    real = subprocess.run(  # noqa: ASYNC221 - nothing else goes on
        ["sh", "-c", script], cwd=f"{directory}/real", env={"A": "a b", "PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        timeout=20,
    )  # fmt: skip
    assert await said(script) == (real.returncode, real.stdout)


@pytest.mark.parametrize(
    "script",
    [
        "cat x | cat", "echo $(pwd)", 'echo "$(pwd)"', "echo `pwd`", "(exit 1)", "ls *", "A=1 env",
        "echo >", "echo 'open", "sleep", "sleep long", "id", "kill -9 x y", "exit much",
        "echo x >&7", "echo x >&y",
    ],
)  # fmt: skip
async def test_what_it_does_not_understand_is_no_result(said, script):
    with pytest.raises(SandboxError):
        await said(script)


async def test_paths_stay_in_the_root_and_go_through_mounts(said, directory):
    os.mkdir(f"{directory}/outside")
    os.symlink(f"{directory}/outside", f"{directory}/root/way")
    os.symlink("loop", f"{directory}/root/loop")
    os.symlink("/m/../m", f"{directory}/root/mounted")
    status, text = await said("echo x > way/f; cat loop")
    assert status == 1
    assert b"way/f: No such file" in text
    assert b"loop: Too many levels" in text
    assert os.listdir(f"{directory}/outside") == []
    mounts = (
        Mount(HostDir(f"{directory}/outside"), "/m"),
        Mount(HostDir(f"{directory}/root"), "/r", readonly=True),
    )
    assert (await said("echo x > /mounted/f; cat ../m/f", mounts)) == (0, b"x\n")
    status, text = await said("echo x > /r/f", mounts)
    assert (status, text) == (1, b"sh: /r/f: Read-only file system\n")


async def test_a_test_can_teach_it_words(said, sandbox):
    async def word(call):
        call.write(b"%s heard %d\n" % (call.argv[1].encode(), len(call.stdin)))
        return 4

    sandbox.programs["word"] = word
    assert await said("echo 123 > f; word X < f || echo $?") == (0, b"X heard 4\n4\n")


async def test_a_person_may_enter(sandbox, directory, monkeypatch, capfdbinary):
    with open(f"{directory}/typed", "w") as file:
        file.write("echo 1 > /f\ncat /f\nexit 5\n")
    with open(f"{directory}/typed") as typed:
        monkeypatch.setattr("sys.stdin", typed)
        command = Command(argv=("/bin/sh",), cwd="/", user=ROOT)
        assert (await sandbox.enter(HostDir(f"{directory}/root"), command)).status == 5
    assert capfdbinary.readouterr().out == b"1\n"
