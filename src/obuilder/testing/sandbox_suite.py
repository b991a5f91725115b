"""What every sandbox has to do, each check in a process of its own.

python -m obuilder.testing.sandbox_suite CHECK RUNTIME DIRECTORY
"""

import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable

import anyio

from obuilder.backends.protocols import Command, Exit, HostDir, Mount, SecretFile
from obuilder.backends.sandboxes.oci import OciSandbox, Policy
from obuilder.errors import SandboxError
from obuilder.system import process
from obuilder.system.namespaces import enter
from obuilder.values import Limits, UnixUser, User

_TOOLS = (
    "sh", "cat", "id", "ls", "mknod", "sleep", "wc", "pwd", "env", "unshare", "sync", "seq", "head",
    "tail", "hostname", "touch", "grep", "dd", "kill", "ps", "true", "mount", "mkdir",
)  # fmt: skip


class Bench:
    """A root of busybox and a sandbox to run things in it."""

    def __init__(self, sandbox: OciSandbox, root: str) -> None:
        self.sandbox, self.root = sandbox, root
        self.said = b""

    async def run(
        self,
        script: str,
        *,
        user: User = UnixUser(0, 0),  # noqa: B008 - frozen
        network: tuple[str, ...] = (),
        mounts: tuple[Mount, ...] = (),
        secrets: tuple[SecretFile, ...] = (),
        limits: Limits = Limits(pids=200),  # noqa: B008 - frozen
        cwd: str = "/",
    ) -> Exit:
        """Run a shell script; what it said is in `said`."""
        pieces: list[bytes] = []
        try:
            return await self.sandbox.run(
                HostDir(self.root),
                Command(
                    argv=("/bin/sh", "-c", script), cwd=cwd, user=user,
                    env=(("PATH", "/bin"), ("HOME", "/")), network=network, mounts=mounts,
                    secrets=secrets, limits=limits,
                ),
                output=pieces.append,
            )  # fmt: skip
        finally:
            self.said = b"".join(pieces)


async def statuses(bench: Bench) -> None:
    """Statuses are exact, also a signal's; output is exact and standard input at its end."""
    for script, status in (("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)):
        assert (await bench.run(script)).status == status, script
    # The pause: runc carries the two outputs itself, one beside the other.
    await bench.run("printf 'a\\0\\377b'; sleep 0.1; printf c >&2")
    assert bench.said == b"a\0\xffbc", bench.said
    assert (await bench.run("cat")).status == 0


async def identity(bench: Bench) -> None:
    """User, directory and environment are what was asked for; the root has nothing new after."""
    before = _names(bench.root)
    await bench.run("id -u; id -g; pwd; hostname; echo $HOME", user=UnixUser(1000, 100), cwd="/tmp")
    assert bench.said == b"1000\n100\n/tmp\nbuilder\n/\n", bench.said
    assert _names(bench.root) == before


async def networks(bench: Bench) -> None:
    """Loopback alone, or the host's."""
    await bench.run("ls /sys/class/net")
    assert bench.said == b"lo\n", bench.said
    assert (await bench.run("ls /sys/class/net", network=("host",))).status == 0
    assert set(bench.said.split()) == {os.fsencode(n) for n in os.listdir("/sys/class/net")}


async def secrets(bench: Bench) -> None:
    """A secret is its user's alone, cannot be changed, and leaves nothing."""
    before = _names(bench.root)
    shown = (SecretFile("/run/secrets/key", b"value"),)
    user = UnixUser(1000, 1000)
    ended = await bench.run(
        "cat /run/secrets/key; ls -ln /run/secrets/key; echo x > /run/secrets/key",
        user=user, secrets=shown,
    )  # fmt: skip
    assert bench.said.startswith(b"value-r--------    1 1000     1000"), bench.said
    assert ended.status != 0
    assert _names(bench.root) == before
    with open("/proc/self/mounts", "rb") as table:
        assert os.fsencode(os.path.dirname(bench.root)) not in table.read()


async def mounts(bench: Bench) -> None:
    """A mount is shown, written to, and not in the root."""
    source = os.path.join(os.path.dirname(bench.root), "cache")
    os.mkdir(source)
    os.chown(source, enter().to_disk(0), enter().to_disk(0))
    before = _names(bench.root)
    shown = (Mount(source, "/var/cache/x"),)
    assert (await bench.run("echo 1 > /var/cache/x/f", mounts=shown)).status == 0, bench.said
    assert os.listdir(source) == ["f"]
    assert _names(bench.root) == before


async def devices(bench: Bench) -> None:
    """No device can be made, no module of the kernel reached."""
    assert (await bench.run("mknod /tmp/d b 7 0")).status != 0
    assert (await bench.run("mknod /tmp/d c 1 1")).status != 0
    assert (await bench.run("echo x > /proc/sys/kernel/core_pattern")).status != 0


async def init(bench: Bench) -> None:
    """Orphans are reaped, and daemons end with the step."""
    script = "(sleep 0.1 & ); sleep 0.4; ps | grep -c '[Z] '; sleep 1000 & exit 3"
    began = time.monotonic()
    assert (await bench.run(script)).status == 3
    assert bench.said == b"0\n", bench.said
    assert time.monotonic() - began < 5


async def limits(bench: Bench) -> None:
    """Processes, memory and time are bounded, and what hit the limit is told."""
    await bench.run(
        "i=0; while [ $i -lt 300 ]; do sleep 5 & i=$((i+1)); done", limits=Limits(pids=60)
    )
    assert b"fork" in bench.said, bench.said
    ended = await bench.run("tail -c 400000000 /dev/zero", limits=Limits(memory=64 << 20))
    assert ended.out_of_memory, (ended, bench.said)
    began = time.monotonic()
    ended = await bench.run("sleep 100", limits=Limits(seconds=1))
    assert ended.timed_out
    assert time.monotonic() - began < 2.5


async def cancel(bench: Bench) -> None:
    """Cancelling ends a step that ignores signals, at once and wholly."""
    cancelled_at = 0.0
    mark = "sleep 97531"
    with anyio.move_on_after(0.7) as scope:
        await bench.run(f"trap '' TERM INT; {mark} & {mark}")
    cancelled_at = scope.deadline
    assert anyio.current_time() - cancelled_at < 1
    assert not _running("97531")


async def nesting(bench: Bench) -> None:
    """User namespaces inside, as the policy says."""
    assert (await bench.run("unshare -r true")).status == 0, bench.said
    bench.sandbox = await _sandbox(bench.sandbox, Policy(nested_userns=False))
    assert (await bench.run("unshare -r true")).status != 0


async def fast_sync(bench: Bench) -> None:
    """Sync calls succeed under either policy."""
    assert (await bench.run("sync")).status == 0
    bench.sandbox = await _sandbox(bench.sandbox, Policy(fast_sync=False))
    assert (await bench.run("sync")).status == 0


async def hostile(bench: Bench) -> None:
    """A root whose directories are links to the host's touches nothing there."""
    outside = os.path.join(os.path.dirname(bench.root), "outside")
    os.mkdir(outside, 0o777)
    os.chmod(outside, 0o777)
    for name in ("dev", "proc", "etc"):
        place = os.path.join(bench.root, name)
        os.rename(place, place + ".away")
        os.symlink(outside, place)
        try:
            await bench.run("true")
        except SandboxError:
            pass
        else:
            raise AssertionError(name)
        os.unlink(place)
        os.rename(place + ".away", place)
    os.symlink(outside, os.path.join(bench.root, "data"))
    shown = (SecretFile("/data/key", b"value"),)
    try:
        await bench.run("true", secrets=shown)
    except SandboxError:
        pass
    assert os.listdir(outside) == []


async def killed_builder(bench: Bench) -> None:
    """The step of a builder that was killed ends with it."""
    directory = os.path.dirname(bench.root)
    builder = [
        sys.executable, "-m", "obuilder.testing.sandbox_suite", "forever", sys.argv[2],
        os.path.join(directory, "other"),
    ]  # fmt: skip
    async with anyio.create_task_group() as tasks:

        async def build() -> None:
            await process.run(builder, output=lambda _: None)

        tasks.start_soon(build)
        end = time.monotonic() + 10
        while not _running("86421") and time.monotonic() < end:
            await anyio.sleep(0.05)
        assert _running("86421")
        tasks.cancel_scope.cancel()  # a kill -9: the builder has no time to do anything
    end = time.monotonic() + 2
    while _running("86421") and time.monotonic() < end:
        await anyio.sleep(0.05)
    assert not _running("86421")
    left = os.path.join(directory, "other", "store", "run")
    assert os.listdir(left) != []
    other = await OciSandbox.open(os.path.dirname(left), enter(), session="later")
    await other.recover()
    assert os.listdir(left) == []


async def neighbours(bench: Bench) -> None:
    """A store's recovery leaves other stores' steps alone, also those of a copy of itself."""
    here = os.path.dirname(bench.root)
    shutil.copytree(os.path.join(here, "store"), os.path.join(here, "copy"))
    ended: list[Exit] = []

    async def build() -> None:
        ended.append(await bench.run("sleep 1; exit 5"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(build)
        await anyio.sleep(0.5)
        for name in ("copy", "new"):
            os.makedirs(os.path.join(here, name), exist_ok=True)
            other = await OciSandbox.open(os.path.join(here, name), enter(), session="other")
            await other.recover()
    assert [found.status for found in ended] == [5]


async def forever(bench: Bench) -> None:
    """Not a check: a step to be killed."""
    await bench.run("sleep 86421")


_ALL: dict[str, Callable[[Bench], Awaitable[None]]] = {
    check.__name__: check
    for check in (
        statuses, identity, networks, secrets, mounts, devices, init, limits, cancel, nesting,
        fast_sync, hostile, killed_builder, neighbours, forever,
    )
}  # fmt: skip
CHECKS = [name for name in _ALL if name != "forever"]


def _names(root: str) -> list[str]:
    return sorted(
        os.path.join(folder, name)
        for folder, folders, files in os.walk(root)
        for name in (*folders, *files)
    )


def _running(word: str) -> bool:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as stream:
                arguments = stream.read().split(b"\0")
        except OSError:
            continue
        if word.encode() in arguments:
            return True
    return False


def _make_root(path: str) -> None:
    for name in ("bin", "proc", "dev", "sys", "etc", "tmp"):
        os.makedirs(os.path.join(path, name))
    os.chmod(os.path.join(path, "tmp"), 0o1777)
    program = os.path.join(path, "bin", "busybox")
    with open("/bin/busybox", "rb") as source, open(program, "wb") as target:
        target.write(source.read())
    os.chmod(program, 0o755)
    for name in _TOOLS:
        os.symlink("busybox", os.path.join(path, "bin", name))
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files, "."):
            os.lchown(os.path.join(folder, name), enter().to_disk(0), enter().to_disk(0))


async def _sandbox(
    old: OciSandbox | None, policy: Policy, session: str | None = None
) -> OciSandbox:
    runtime, directory = sys.argv[2], os.path.join(sys.argv[3], "store")
    # A name of its own, as real sessions have: other suites may run on this machine.
    session = session or f"suite{os.getpid()}" + ("" if old is None else "again")
    return await OciSandbox.open(
        directory, enter(), session=session, runtime=runtime, policy=policy
    )


async def _main() -> None:
    name, directory = sys.argv[1], sys.argv[3]
    os.makedirs(os.path.join(directory, "store"))
    root = os.path.join(directory, "root")
    _make_root(root)
    await _ALL[name](Bench(await _sandbox(None, Policy()), root))


def _open_way() -> None:
    """Let others pass, not look, on the way to the store: test directories are their owner's."""
    place = sys.argv[3]
    while place != "/":
        if not os.stat(os.path.dirname(place)).st_mode & 1 and os.path.dirname(place) != "/":
            os.chmod(os.path.dirname(place), 0o711)
        place = os.path.dirname(place)


if __name__ == "__main__":
    os.makedirs(sys.argv[3], exist_ok=True)
    os.chmod(sys.argv[3], 0o711)
    if os.geteuid() == 0:
        _open_way()
    enter()
    anyio.run(_main)
