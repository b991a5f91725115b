"""The checks of the sandbox suite, each a coroutine on a `Bench`.

A sandbox that works in its process's own namespaces gets a process for each check:

    python -m obuilder.testing.sandbox_checks CHECK DIRECTORY SUBJECT

It ends with 0, with 1 and a traceback, or with EXCUSED if the sandbox's features spare it.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import msgspec

from obuilder.backends.protocols import Exit, Features, HostDir, Mount, SecretFile
from obuilder.errors import CopyError, SandboxError, Unsupported
from obuilder.system import process
from obuilder.system.tree import Manifest, scan
from obuilder.testing import dockerfile_checks as asked, isolation_checks as apart
from obuilder.testing.bench import Bench, Subject, marked, running
from obuilder.values import Limits, UnixUser

EXCUSED = 77
"""The exit status of a check that the sandbox's features spare it."""

Check = Callable[[Bench], Coroutine[Any, Any, None]]


# --- what every sandbox does -----------------------------------------------------------------------


async def described(bench: Bench) -> None:
    """The sandbox works, and says in a line what it is."""
    await bench.sandbox.check()
    said = await bench.sandbox.describe()
    assert said
    assert "\n" not in said
    if "runtime" in bench.sandbox.features.policies:
        assert (bench.subject.policy.runtime or "") in said, said


async def statuses(bench: Bench) -> None:
    """Statuses are exact, also a signal's; output is exact and standard input at its end."""
    for script, status in (("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)):
        assert (await bench.run(script)).status == status, script
    # The pause: runc carries the two outputs itself, one beside the other.
    await bench.run("printf 'a\\0\\377b'; sleep 0.1; printf c >&2")
    assert bench.said == b"a\0\xffbc", bench.said
    assert (await bench.run("cat")).status == 0
    assert bench.said == b"", bench.said


async def environment(bench: Bench) -> None:
    """The environment is what was asked for, and all of it."""
    odd = (("A", "b = 'c' $D"), ("E", ""), ("G", "\u00e9"))
    assert (await bench.run("", argv=("/bin/env",), env=odd)).status == 0, bench.said
    expected = [b"A=b = 'c' $D", b"E=", b"G=\xc3\xa9", b"HOME=/", b"PATH=/bin"]
    assert sorted(bench.said.splitlines()) == expected, bench.said
    try:
        await bench.run('printf %s "$B"', env=(("B", "\udcff"),))
        assert bench.said == b"\xff", bench.said
    except Unsupported:
        pass  # bytes that are no text pass as they are, or not at all


async def directories(bench: Bench) -> None:
    """A step starts in the directory it names, which is made, for root, if it is not there."""
    before = await bench.names()
    await bench.run("pwd", cwd=bench.at("/tmp"))
    assert bench.said == os.fsencode(bench.at("/tmp\n")), bench.said
    assert await bench.names() == before
    place = bench.at("/made/for/it")
    await bench.run("pwd; echo 1 > file", cwd=place)
    assert bench.said == os.fsencode(f"{place}\n"), bench.said
    async with bench.files() as inside:
        assert os.stat(inside(place)).st_uid == bench.idmap.to_disk(0)
        assert os.listdir(inside(place)) == ["file"]


async def unstartable(bench: Bench) -> None:
    """What can't be started is an error; what is not found is a status. The root stays as it is."""
    before = await bench.names()
    assert (await bench.run("", argv=("/bin/no-such-program",))).status in (126, 127)
    async with bench.files(write=True) as inside:
        with open(inside(bench.at("/tmp/file")), "xb"):
            pass
    gone = (Mount(HostDir(bench.path("gone")), bench.at("/srv/x")),)
    for attempt in (bench.run("true", cwd=bench.at("/tmp/file")), bench.run("true", mounts=gone)):
        try:
            await attempt
        except SandboxError as error:
            assert error.message
        else:
            raise AssertionError(bench.said)
    async with bench.files(write=True) as inside:
        os.unlink(inside(bench.at("/tmp/file")))
    assert await bench.names() == before


async def secrets(bench: Bench) -> None:
    """A secret is read, cannot be changed, and leaves nothing."""
    before = await bench.names()
    key, other = bench.at("/srv/secrets/key"), bench.at("/etc/x")
    shown = (SecretFile(key, b"value\n"), SecretFile(other, b"\0\xff"))
    assert (await bench.run(f"cat {key} {other}", secrets=shown)).status == 0, bench.said
    assert bench.said == b"value\n\0\xff", bench.said
    assert (await bench.run(f"echo x > {key}", secrets=shown)).status != 0
    assert await bench.names() == before


async def mounts(bench: Bench) -> None:
    """A mount is shown, written to unless it may not be, and not in the root."""
    source, fixed = await bench.volume(), await bench.volume()
    async with bench.files(fixed, write=True) as outside:
        with open(outside("/one"), "w", encoding="ascii") as file:
            file.write("1\n")
    before = await bench.names()
    place = bench.at("/srv")
    shown = (Mount(source, f"{place}/cache/x"), Mount(fixed, f"{place}/fixed", readonly=True))
    script = f"cat {place}/fixed/one > {place}/cache/x/f"
    assert (await bench.run(script, mounts=shown)).status == 0, bench.said
    assert (await bench.run(f"echo x > {place}/fixed/two", mounts=shown)).status != 0
    async with bench.files(source) as outside:
        with open(outside("/f"), encoding="ascii") as file:
            assert file.read() == "1\n"
    async with bench.files(fixed) as outside:
        assert os.listdir(outside("/")) == ["one"]
        if isinstance(fixed, HostDir):
            single = (Mount(HostDir(outside("/one")), f"{place}/file", readonly=True),)
            assert (await bench.run(f"cat {place}/file", mounts=single)).status == 0
            assert bench.said == b"1\n", bench.said
            assert (await bench.run(f"echo x > {place}/file", mounts=single)).status != 0
    assert await bench.names() == before


async def copies(bench: Bench) -> None:
    """What is copied in is as its manifest says; no symlink leads out, no directory changes."""
    source, outside = bench.folder("source"), bench.folder("outside")
    for name, text in (("tool", "a tool\n"), ("text", "a text\n")):
        with open(os.path.join(source, name), "w", encoding="ascii") as file:
            file.write(text)
    os.chmod(os.path.join(source, "tool"), 0o750)
    os.symlink("/gone", os.path.join(source, "link"))
    async with bench.files(write=True) as inside:
        os.chmod(inside(bench.at("/tmp")), 0o1777)
        os.symlink(bench.at("/tmp"), inside(bench.at("/way")))
        os.symlink("/../.." + outside, inside(bench.at("/out")))
    owner = UnixUser(1000, 100)

    def manifest(to: str) -> Manifest:
        return scan(source, (".",), into=True, dst=to, exclude=(), ignored=None, stats=None)

    async def put(tree: Manifest, to: str) -> None:
        await bench.sandbox.put(bench.root, tree, HostDir(source), to=bench.at(to), owner=owner)

    await put(manifest("/way/x"), "/way/x")
    async with bench.files() as inside:
        place = inside(bench.at("/tmp/x"))
        found = {name: os.lstat(os.path.join(place, name)) for name in sorted(os.listdir(place))}
        assert os.stat(inside(bench.at("/tmp"))).st_mode & 0o7777 == 0o1777
    assert {name: oct(status.st_mode) for name, status in found.items()} == {
        "link": "0o120777", "text": "0o100644", "tool": "0o100755",
    }  # fmt: skip
    expected = 1000 if bench.sandbox.features.users else 0
    assert {status.st_uid for status in found.values()} == {bench.idmap.to_disk(expected)}
    script = f"cat {bench.at('/tmp/x/tool')} {bench.at('/way/x/text')}"
    assert (await bench.run(script)).status == 0, bench.said
    assert bench.said == b"a tool\na text\n", bench.said

    stale = manifest("/tmp/y")
    with open(os.path.join(source, "text"), "w", encoding="ascii") as file:
        file.write("b text\n")
    for tree, to in ((stale, "/tmp/y"), (manifest("/out/z"), "/out/z")):
        try:
            await put(tree, to)
        except CopyError as error:
            assert error.message
        else:
            raise AssertionError(to)
    assert os.listdir(outside) == []


async def daemons(bench: Bench) -> None:
    """What a step left running ends with it, and nobody waits for it."""
    began, seconds = time.monotonic(), marked(bench.place)
    assert (await bench.run(f"sleep {seconds} & exit 3")).status == 3
    assert time.monotonic() - began < 5
    assert not running(seconds)


async def cancel(bench: Bench) -> None:
    """Cancelling ends a step that ignores signals, at once and wholly."""
    before, seconds = await bench.names(), marked(bench.place)
    with anyio.CancelScope() as scope:
        await bench.run(
            f"trap '' TERM INT; sleep {seconds} & echo started; sleep {seconds}",
            output=lambda _: scope.cancel(),
        )
    assert scope.cancelled_caught
    assert bench.said == b"started\n", bench.said
    assert not running(seconds)
    assert await bench.names() == before


async def cancel_at_once(bench: Bench) -> None:
    """So does cancelling at any moment of a step's start."""
    seconds = marked(bench.place)
    for milliseconds in (0, 1, 3, 10, 20, 40, 80):
        with anyio.move_on_after(milliseconds / 1000) as scope:
            await bench.run(f"sleep {seconds}")
        assert scope.cancelled_caught
        assert anyio.current_time() - scope.deadline < 1
    assert not running(seconds)


async def time_limit(bench: Bench) -> None:
    """A step is ended when its time is up, and that is told."""
    began = time.monotonic()
    await bench.run("true")
    alone = time.monotonic() - began
    began = time.monotonic()
    ended = await bench.run("echo first; sleep 100", limits=Limits(seconds=1))
    assert ended.timed_out
    assert time.monotonic() - began < 2.5 + alone
    assert bench.said == b"first\n", bench.said


async def killed_builder(bench: Bench) -> None:
    """The step of a builder that was killed ends with it; recovery removes what is left of it."""
    subject = msgspec.json.encode(bench.subject).decode()
    other = os.path.join(bench.place, "other")
    seconds = marked(other)
    builder = [sys.executable, "-m", __spec__.name, "forever", other, subject]
    heard: list[bytes] = []
    with anyio.fail_after(20) as patience:
        async with anyio.create_task_group() as tasks:

            async def build() -> None:
                await process.run(builder, output=heard.append)
                raise AssertionError(b"".join(heard))

            tasks.start_soon(build)
            while b"started" not in b"".join(heard):
                await anyio.sleep(0.05)
            assert running(seconds) == (bench.subject.namespaces and bench.subject.visible)
            tasks.cancel_scope.cancel()  # a kill -9: the builder has no time to do anything
        patience.deadline = anyio.current_time() + 2
        while running(seconds):
            await anyio.sleep(0.05)
    assert bench.left("other") != []
    await bench.recover("other")
    assert bench.left("other") == []


async def neighbours(bench: Bench) -> None:
    """Recovery leaves the steps of the living alone: of this store, of others, of a copy of it."""
    shutil.copytree(bench.path("store"), bench.path("copy"))
    ended: list[Exit] = []

    async def build() -> None:
        ended.append(await bench.run("sleep 1; exit 5"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(build)
        await anyio.sleep(0.5)
        for name in ("copy", "new", "store"):
            await (await bench.another(name)).recover()
    assert [found.status for found in ended] == [5]


# --- which of them concern whom --------------------------------------------------------------------

Concern = Callable[[Features], bool]
"""Whether a sandbox with these features has to pass a check."""

_EVERYONE = (
    described, statuses, environment, directories, unstartable, mounts, copies, daemons, cancel,
    cancel_at_once, killed_builder, neighbours,
)  # fmt: skip
_ISOLATING = (
    apart.alone,
    apart.loopback,
    apart.devices,
    apart.streams,
    apart.orphans,
    apart.hostile,
)
_OTHERS: dict[Check, Concern] = {
    secrets: lambda features: features.secrets,
    asked.variables: lambda features: features.secrets and features.secret_variables,
    asked.names: lambda features: features.named_users,
    asked.memory_places: lambda features: features.mounts,
    asked.powers: lambda features: features.mounts and features.isolation,
    time_limit: lambda features: "seconds" in features.limits,
    apart.identity: lambda features: features.users,
    apart.secret_owner: lambda features: features.isolation and features.users,
    apart.host_network: lambda features: "host" in features.networks,
    apart.process_limit: lambda features: "pids" in features.limits,
    apart.memory_limit: lambda features: "memory" in features.limits,
    apart.nesting: lambda features: "nested_userns" in features.policies,
    apart.fast_sync: lambda features: "fast_sync" in features.policies,
    apart.privileges: lambda features: "no_new_privileges" in features.policies,
}
_CONCERNS: dict[Check, Concern] = {
    **dict.fromkeys(_EVERYONE, lambda _: True),
    **dict.fromkeys(_ISOLATING, lambda features: features.isolation),
    **_OTHERS,
}
_NAMED = {check.__name__: check for check in _CONCERNS}
CHECKS = tuple(_NAMED)
"""The names of all checks."""


async def run_check(name: str, place: str, subject: Subject) -> bool:
    """Run one check in the directory `place`. False if the sandbox's features spare it."""
    bench = await Bench.open(subject, place)
    try:
        if name == "forever":
            await bench.run(f"echo started; sleep {marked(place)}", output=_show)
            return True
        check = _NAMED[name]
        concerned = _CONCERNS[check](bench.sandbox.features)
        if concerned:
            await check(bench)
        return concerned
    finally:
        await bench.close()


def _show(data: bytes) -> None:
    os.write(1, data)


if __name__ == "__main__":
    _, _name, _place, _subject = sys.argv
    _ran = anyio.run(run_check, _name, _place, msgspec.json.decode(_subject, type=Subject))
    sys.exit(0 if _ran else EXCUSED)
