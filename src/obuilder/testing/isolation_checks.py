"""The checks of the sandbox suite that concern sandboxes with one feature or another."""

import os

import msgspec

from obuilder.backends.protocols import HostDir, SecretFile
from obuilder.errors import SandboxError
from obuilder.testing.bench import Bench
from obuilder.values import Limits, Policy, UnixUser


async def identity(bench: Bench) -> None:
    """User and group are what was asked for; the root has nothing new after."""
    before = await bench.names()
    await bench.run("id -u; id -g; pwd; echo $HOME", user=UnixUser(1000, 100), cwd="/tmp")
    assert bench.said == b"1000\n100\n/tmp\n/\n", bench.said
    assert await bench.names() == before


async def secret_owner(bench: Bench) -> None:
    """A secret is its user's alone, and on no file system of the host."""
    shown = (SecretFile("/srv/secrets/key", b"value"),)
    await bench.run("ls -ln /srv/secrets/key", user=UnixUser(1000, 1000), secrets=shown)
    assert bench.said.startswith(b"-r--------    1 1000     1000"), bench.said
    with open("/proc/self/mounts", "rb") as table:
        assert os.fsencode(bench.place) not in table.read()


async def alone(bench: Bench) -> None:
    """A step has its own host name, and sees no process of the machine."""
    await bench.run("hostname; cat /proc/[0-9]*/cmdline")
    assert bench.said.startswith(b"builder\n"), bench.said
    with open("/proc/self/cmdline", "rb") as stream:
        assert stream.read() not in bench.said


async def loopback(bench: Bench) -> None:
    """Where no network is asked for there is loopback alone, and it works."""
    await bench.run("ls /sys/class/net")
    assert bench.said == b"lo\n", bench.said
    await bench.run(
        "nc -l -p 4321 -e echo heard & until nc 127.0.0.1 4321 < /dev/null 2> /dev/null; do"
        " sleep 0.05; done",
        limits=Limits(seconds=20),
    )
    assert bench.said == b"heard\n", bench.said


async def host_network(bench: Bench) -> None:
    """The host's network is the host's."""
    assert (await bench.run("ls /sys/class/net", network=("host",))).status == 0
    assert set(bench.said.split()) == {os.fsencode(n) for n in os.listdir("/sys/class/net")}


async def devices(bench: Bench) -> None:
    """No device can be made, no module of the kernel reached."""
    assert (await bench.run("mknod /tmp/d b 7 0")).status != 0
    assert (await bench.run("mknod /tmp/d c 1 1")).status != 0
    assert (await bench.run("echo x > /proc/sys/kernel/core_pattern")).status != 0


async def streams(bench: Bench) -> None:
    """A step's streams are its own: the machine's devices stay as they are, whoever it makes them."""
    before = os.stat(os.devnull)
    try:
        await bench.run("chmod 644 /proc/self/fd/0; chown 1:1 /proc/self/fd/0")
        after = os.stat(os.devnull)
        assert (before.st_mode, before.st_uid) == (after.st_mode, after.st_uid)
    finally:
        os.chmod(os.devnull, before.st_mode)
        os.chown(os.devnull, before.st_uid, before.st_gid)


async def orphans(bench: Bench) -> None:
    """An init reaps them."""
    assert (await bench.run("(sleep 0.1 & ); sleep 0.4; ps | grep -c '[Z] '; exit 3")).status == 3
    assert bench.said == b"0\n", bench.said


async def hostile(bench: Bench) -> None:
    """A root whose directories are links to the host's touches nothing there."""
    outside = bench.path("outside")
    os.mkdir(outside, 0o777)
    os.chmod(outside, 0o777)
    for name in ("dev", "proc", "etc"):
        async with bench.files(write=True) as inside:
            place = inside(f"/{name}")
            os.rename(place, place + ".away")
            os.symlink(outside, place)
        try:
            await bench.run("true")
        except SandboxError:
            pass
        else:
            # Where no directory of the host is the root, the link may mean one in the root.
            assert not isinstance(bench.root, HostDir), name
        async with bench.files(write=True) as inside:
            place = inside(f"/{name}")
            os.unlink(place)
            os.rename(place + ".away", place)
    async with bench.files(write=True) as inside:
        os.symlink(outside, inside("/data"))
    shown = (SecretFile("/data/key", b"value"),)
    try:
        await bench.run("true", secrets=shown)
    except SandboxError:
        pass
    assert os.listdir(outside) == []


async def process_limit(bench: Bench) -> None:
    """Processes are bounded."""
    await bench.run(
        "i=0; while [ $i -lt 300 ]; do sleep 5 & i=$((i+1)); done", limits=Limits(pids=60)
    )
    assert b"fork" in bench.said, bench.said


async def memory_limit(bench: Bench) -> None:
    """Memory is bounded, and that it was the limit is told."""
    hungry = "x=$(head -c 400000000 /dev/zero | tr '\\0' x)"
    ended = await bench.run(hungry, limits=Limits(memory=64 << 20))
    assert ended.out_of_memory, (ended, bench.said[:100])


async def nesting(bench: Bench) -> None:
    """User namespaces inside, as the policy says."""
    assert (await bench.run("unshare -r true")).status == 0, bench.said
    bench.sandbox = await bench.another(policy=_but(bench, nested_userns=False))
    assert (await bench.run("unshare -r true")).status != 0


async def fast_sync(bench: Bench) -> None:
    """Sync calls succeed under either policy."""
    assert (await bench.run("sync")).status == 0
    bench.sandbox = await bench.another(policy=_but(bench, fast_sync=False))
    assert (await bench.run("sync")).status == 0


async def privileges(bench: Bench) -> None:
    """Setuid programs have power, or none, as the policy says."""
    await bench.run("grep NoNewPrivs /proc/self/status")
    assert bench.said.split()[1:] == [b"0"], bench.said
    bench.sandbox = await bench.another(policy=_but(bench, no_new_privileges=True))
    await bench.run("grep NoNewPrivs /proc/self/status")
    assert bench.said.split()[1:] == [b"1"], bench.said


def _but(bench: Bench, **changes: bool) -> Policy:
    return msgspec.structs.replace(bench.subject.policy, **changes)
