"""kill -9 of the builder at random instants: nothing wrong is kept, and nothing is left over."""

import hashlib
import io
import os
import random
import re
import stat
import subprocess  # a builder with an init of its own
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from leftovers import leftovers, processes
from obuilder import Builder, Settings
from places import Opened, each, each_kind
from program import Program, cached, compile_c, running, shell, until

MODES = ("private", "locked", "append", "shared")

Prepare = Callable[[Program, int], tuple[str, ...]]
"""Makes ready for the try of a number; the arguments of the program that is to be killed."""


def _base(program: Program, number: int) -> None:
    """An image of its own for each try: a busybox, and a file that tells the number."""
    with open("/bin/busybox", "rb") as file:
        busybox = file.read()
    with tarfile.open(os.path.join(program.context, "base.tar"), "w") as tar:
        for name, data in (("bin/sh", busybox), ("number", b"%d\n" % number)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for name in ("cat", "md5sum", "rm", "seq"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.LNKTYPE, "bin/sh"
            tar.addfile(entry)


def everything(program: Program, number: int) -> tuple[str, ...]:
    """A base, a copy, stages side by side, volumes of each mode, a secret."""
    _base(program, number)
    if number == 0:
        os.mkdir(os.path.join(program.context, "tree"))
        for at in range(100):
            program.file(f"tree/{at}", b"%d" % at * 1000)
        program.file("secret", b"hunter2")
    volumes = cached(
        "read n < /number; for v in /v/*; do echo > $v/$n; done",
        **dict(zip(MODES, MODES, strict=True)),
    )
    secret = '(run (secrets (s (target /s))) (shell "cat /s | md5sum > /sum"))'
    side = (
        f"(build side ((from tar:base.tar) (shell /bin/sh -c) {volumes} {shell('seq 900 > /out')}))"
    )
    program.spec(
        "(copy (src tree) (dst /tree))", volumes, shell("cat /tree/* > /all; rm -r /tree/1*"), secret,
        "(copy (from (build side)) (src /out) (dst /out))", shell("md5sum /all /out /sum"),
        before=side, base="tar:base.tar",
    )  # fmt: skip
    return "build", "--secret=s:secret"


def new_store(program: Program, number: int) -> tuple[str, ...]:
    """The first build in a store."""
    program.use(f"store{number}")
    program.spec(f"(env N {number})", shell("echo made > /made"))
    return ("build",)


def squash(program: Program, number: int) -> tuple[str, ...]:
    """The step that makes 16 layers one."""
    first = (shell(f"mkdir /{at}; cd /{at}; seq 400 | xargs touch") for at in range(14))
    more = (shell(f"rm -r /{at}/*; echo > /{at}/new") for at in range(3))
    program.spec(*first, f"(env N {number})", *more)
    return ("build",)


def failing(program: Program, number: int) -> tuple[str, ...]:
    """A step that fails, and its root, which is kept."""
    program.spec(f"(env N {number})", shell("echo partial > /made; echo oops; exit 3"))
    return ("build",)


def dropping(program: Program, number: int) -> tuple[str, ...]:
    """Deleting what was on the way to a result, and making layers one."""
    steps = (shell(f"seq 9 > /f{at}; rm -f /f{at - 1}") for at in range(6))
    program.spec(f"(env N {number})", *steps)
    return "build", "--keep=stages"


def prune(program: Program, number: int) -> tuple[str, ...]:
    """Deleting all results."""
    program.spec(f"(env N {number})", *(shell(f"seq {at} > /f{at}") for at in range(6)))
    program.ok("build")
    return ("clean",)


def delete(program: Program, number: int) -> tuple[str, ...]:
    """Deleting a result and what was made from it."""
    prune(program, number)
    return "delete", program.ok("ls").splitlines()[-1].split()[0]


def image(program: Program, number: int) -> tuple[str, ...]:
    """Importing an image."""
    _base(program, number)
    program.spec(shell("cat /bin/sh | md5sum > /sum"), base="base")
    return "image", "import", "base", "tar:base.tar"


KILLS: dict[Prepare, int] = {
    everything: 12, new_store: 5, dropping: 5, prune: 5, delete: 3, image: 4, failing: 3,
}  # fmt: skip
"""For each place, fewer where things are done rarely; and ten more where layers become one."""


@each_kind
@pytest.mark.needs("root", "crun")
@pytest.mark.parametrize("prepare", KILLS, ids=lambda prepare: prepare.__name__)
def test_a_killed_builder_leaves_nothing(
    place: Opened, program: Program, prepare: Prepare, seed: int
) -> None:
    _killed(program, prepare, seed, -(-KILLS[prepare] // place.rarely))


@each("overlayfs", "xfs")
@pytest.mark.needs("root", "crun")
def test_a_builder_killed_while_layers_become_one(
    place: Opened, program: Program, seed: int
) -> None:
    _killed(program, squash, seed, -(-6 // place.rarely))


def _killed(program: Program, prepare: Prepare, seed: int, kills: int) -> None:
    chance, length = random.Random(seed), 0.0
    wanted: object = None
    for number in range(kills + 2):
        arguments = prepare(program, number)
        began = time.monotonic()
        if number < 2:  # never killed: the first makes all warm, the second is measured
            program.run(*arguments)
            length = time.monotonic() - began
        else:
            victim = program.start(*arguments)
            time.sleep(length * (0.1 + 0.9 * (number - 2 + chance.random()) / kills))
            victim.kill()
            victim.communicate()
            until(lambda: not processes(program.store), "the step ends with its builder", seconds=2)
        if arguments[0] == "image":
            program.ok(*arguments)
        key = _build(program, arguments, fails=prepare is failing)
        if prepare is dropping:
            program.ok(*arguments)  # what only the store knew of is known by now, and goes
            assert program.ok("ls").count("  run  ") == number + 1, (number, kills, length)
        assert leftovers(program.store, program.temporary) == [], (number, kills, length)
        listing = anyio.run(_listing, program.settings, key)
        wanted = wanted or listing
        assert listing == wanted
    if prepare is everything:
        program.spec(cached("ls /v/*", **dict(zip(MODES, MODES, strict=True))))
        listed = program.ok("build").splitlines()
        assert {listed.count(str(number)) for number in range(kills + 2)} == {len(MODES)}


def _build(program: Program, arguments: tuple[str, ...], *, fails: bool) -> str:
    """The next build; the key of its result, or of what is kept of it."""
    done = program.run(*(arguments if arguments[0] == "build" else ("build",)))
    assert done.status == int(fails), done
    if "saved as" not in done.out:
        # All was there already, which is looked up without opening the store. This opens it.
        program.ok("prune", "--dry-run")
    pattern = r"obuilder shell ([0-9a-f]+)" if fails else r'Got: "([0-9a-f]+)"'
    found = re.search(pattern, done.err if fails else done.out)
    assert found is not None
    return found[1]


async def _listing(settings: Settings, key: str) -> dict[str, object]:
    """Every path but the number's, with its kind, mode, owner and content."""
    async with Builder.open(settings) as builder, builder.files(key) as path:
        return _walk(path)


def _walk(root: str) -> dict[str, object]:
    found = dict[str, object]()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status, content = os.lstat(path), ""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.removeprefix(root)] = (status.st_mode, status.st_uid, status.st_gid, content)
    found.pop("/number", None)
    return found


SLOW = """
import sys
from obuilder.backends.sandboxes import programs
from obuilder.cli.main import main
programs._INITS = (sys.argv.pop(1),)
main()
"""


@pytest.mark.needs("root", "overlay", "crun", "gcc")
def test_a_step_whose_init_has_only_just_started_ends_as_well(program: Program) -> None:
    """The kernel ends a process with its parent only once it has asked for it."""
    init, mark = os.path.join(program.context, "init"), f"73{os.getpid()}"
    compile_c(Path(__file__).with_name("slow_init.c"), init)
    program.spec()
    program.ok("build")
    command = f"exec >/dev/null 2>&1; sleep {mark}"
    program.spec(shell(command))
    builder = subprocess.Popen(
        [sys.executable, "-c", SLOW, init, "build"],
        cwd=program.context,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **program.variables},
        stdout=subprocess.DEVNULL,
    )
    try:
        until(
            lambda: running("/dev/.init", "-p", "SIGKILL", "--", "/bin/sh", "-c", command),
            "it starts",
        )
        time.sleep(0.2)
    finally:
        builder.kill()
        builder.wait()
    time.sleep(1.2)  # by now it would have started the command
    assert processes(program.store) == {}
    assert running("sleep", mark) == []
