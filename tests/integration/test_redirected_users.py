"""Steps as users of a machine whose files are kept apart by the redirect, as on macOS.

All but the system's own commands is the same there; here useradd and setpriv stand for those.
"""

import os
import pwd
import subprocess  # a program of the other builder's
import time
from collections.abc import AsyncIterator

import anyio
import pytest

from obuilder.backends.protocols import Command, Exit, HostDir, Mount
from obuilder.backends.sandboxes.accounts import LinuxAccounts, Pool, listed
from obuilder.backends.sandboxes.users_redirected import RedirectedUsers
from obuilder.errors import SandboxError, Unsupported
from obuilder.system.sessions import open_session
from obuilder.system.tree import scan
from obuilder.values import ROOT, IdMap, Limits
from places import scratch
from program import running
from setpriv_system import SetprivSystem

pytestmark = [
    pytest.mark.needs("root", "fuse", "useradd"),
    pytest.mark.anyio,
    pytest.mark.xdist_group("users"),
]

IDS = IdMap(first=1_700_000_000, count=65536)


class Machine:
    """A sandbox and the places on the machine that it shows."""

    def __init__(self, place: str, sandbox: RedirectedUsers) -> None:
        self.place, self.sandbox = place, sandbox
        self.home, self.prefix = f"{place}/home", f"{place}/prefix"

    def root(self, name: str) -> HostDir:
        path = os.path.join(self.place, "store", name)
        os.makedirs(path, exist_ok=True)
        return HostDir(path)

    async def run(
        self,
        root: HostDir,
        script: str,
        *,
        mounts: tuple[Mount, ...] = (),
        limits: Limits = Limits(),  # noqa: B008,
    ) -> tuple[Exit, list[str]]:
        said: list[bytes] = []
        argv = ("/bin/sh", "-c", script)
        env = (("PATH", f"{self.prefix}/bin:/usr/bin:/bin"), ("PREFIX", self.prefix))
        command = Command(argv, self.home, ROOT, env, mounts=mounts, limits=limits)
        ended = await self.sandbox.run(root, command, output=said.append)
        return ended, b"".join(said).decode().splitlines()


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    with scratch("/var/lib") as place:
        for name in ("home", "prefix", "store"):
            os.mkdir(os.path.join(place, name))
            os.chmod(os.path.join(place, name), 0o755)
        os.mkdir(os.path.join(place, "tmp"))
        os.chmod(os.path.join(place, "tmp"), 0o1777)
        store = os.path.join(place, "store")
        session = open_session(store)
        sandbox = await RedirectedUsers.open(SetprivSystem(place), store, IDS, session=session.name)
        await sandbox.check()
        try:
            yield Machine(place, sandbox)
        finally:
            await sandbox.close()
            session.close()
        assert not os.path.ismount(os.path.join(place, "home"))
        assert [account for account in listed() if session.name in account.note] == []


async def test_steps_at_one_time_see_their_own_files_at_one_path(machine: Machine) -> None:
    roots = [machine.root(f"root{number}") for number in range(3)]
    script = """
    mkdir -p $PREFIX/bin; printf '#!/bin/sh\\necho %s\\n' $(id -u) > $PREFIX/bin/me; chmod +x $PREFIX/bin/me
    ls -d /proc/[0-9]*/cwd >/dev/null 2>&1  # its status tells of processes that end meanwhile
    sleep 0.5; me; id -u; stat -c '%u %n' $PREFIX/bin/me; pwd; echo $HOME
    """
    said: dict[int, list[str]] = {}

    async def build(number: int) -> None:
        ended, said[number] = await machine.run(roots[number], script)
        assert ended.status == 0, said

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(build, number)
    users = set()
    for lines in said.values():
        user = lines[1]
        users.add(user)
        assert lines == [
            user, user, f"{user} {machine.prefix}/bin/me", machine.home, machine.home,
        ]  # fmt: skip
    assert len(users) == 3
    for root in roots:
        kept = os.stat(f"{root.path}{machine.prefix}/bin/me")
        assert (kept.st_uid, kept.st_gid) == (IDS.to_disk(0), IDS.to_disk(0))
    # Another user goes on where one left off.
    ended, lines = await machine.run(
        roots[0], "echo again >> $PREFIX/bin/me; tail -1 $PREFIX/bin/me"
    )
    assert (ended.status, lines) == (0, ["again"])


async def test_what_outlives_a_step_is_ended_and_time_is_kept(machine: Machine) -> None:
    root = machine.root("root")
    ended, _ = await machine.run(root, "setsid sleep 97431 & exit 3")
    assert ended.status == 3
    began = time.monotonic()
    ended, _ = await machine.run(
        root, "trap '' TERM; setsid sleep 97431 & sleep 97431", limits=Limits(seconds=1)
    )
    assert ended.timed_out
    assert time.monotonic() - began < 3
    assert not running("97431")


async def test_no_step_finds_what_another_left_in_places_of_the_machine(machine: Machine) -> None:
    shared = os.path.join(machine.place, "tmp")
    with open(f"{shared}/others", "w", encoding="ascii"):
        pass
    leave = f"""for place in {shared} $TMPDIR; do
      mkdir -p $place/mine/deep && echo x > $place/mine/deep/file && ln -s {shared}/others $place/link
    done; ls {shared}; ls $TMPDIR"""
    for _ in range(2):  # the same user, who can't tell whose it was
        ended, lines = await machine.run(machine.root("root"), leave)
        assert (ended.status, lines) == (0, ["link", "mine", "others", "link", "mine"])
        assert os.listdir(shared) == ["others"]


async def test_copies_and_caches_are_the_steps_own(machine: Machine) -> None:
    root, cache = machine.root("root"), os.path.join(machine.place, "cache")
    source = os.path.join(machine.place, "source")
    for path in (cache, source):
        os.mkdir(path)
    with open(os.path.join(source, "tool"), "w", encoding="ascii") as file:
        file.write("#!/bin/sh\necho tool\n")
    os.chmod(os.path.join(source, "tool"), 0o755)
    to = f"{machine.prefix}/bin"
    tree = scan(source, (".",), into=True, dst=to, exclude=(), ignored=None, stats=None)
    await machine.sandbox.put(root, tree, HostDir(source), to=to, owner=ROOT)
    mount = Mount(HostDir(cache), f"{machine.home}/.cache")
    for count in (1, 2):
        ended, lines = await machine.run(
            root,
            "tool; echo x >> ~/.cache/f; wc -l < ~/.cache/f; test -O ~/.cache/f",
            mounts=(mount,),
        )
        assert (ended.status, lines) == (0, ["tool", str(count)])
    assert not os.path.lexists(f"{root.path}{machine.home}/.cache")
    with pytest.raises(Unsupported):
        await machine.run(
            root, "true", mounts=(Mount(HostDir(cache), f"{machine.home}/c", readonly=True),)
        )


async def test_users_of_dead_sessions_are_removed_and_no_others(machine: Machine) -> None:
    root = machine.root("root")
    await machine.run(root, "true")
    store = os.path.join(machine.place, "store")
    alive = {account.name for account in listed()}
    place = os.stat(store)
    accounts = LinuxAccounts(machine.home)
    dead = f"obuilder-{place.st_dev:x}-{place.st_ino:x}-{'0' * 16}"
    name = f"obuilder-{'0' * 16}-1"
    accounts.add(name, dead)
    left = os.path.join(machine.place, "tmp", "left")
    os.mkdir(left)
    os.chown(left, pwd.getpwnam(name).pw_uid, -1)
    with pytest.raises(SandboxError, match="useradd"):
        accounts.add(name, dead)
    await machine.sandbox.recover()
    with pytest.raises(KeyError):
        pwd.getpwnam(name)
    assert not os.path.exists(left)
    assert {account.name for account in listed()} == alive


async def test_who_recovers_late_touches_nobody_elses_user(machine: Machine) -> None:
    accounts, mark, sessions = LinuxAccounts(machine.home), "obuilder-late-", ("0" * 16, "1" * 16)
    names = [f"obuilder-{session}-1" for session in sessions]
    accounts.add(names[0], mark + sessions[0])
    lives = list[subprocess.Popen[bytes]]()

    def dead(session: str) -> bool:
        if session == sessions[0]:  # the users were looked at: now another builder recovers first
            (gone,) = (account for account in listed() if account.name == names[0])
            accounts.remove(gone)
            accounts.add(names[1], mark + sessions[1])
            number = pwd.getpwnam(names[1]).pw_uid
            assert number == gone.uid, "useradd takes the number that is free again"
            lives.append(subprocess.Popen(["sleep", "60"], user=number))
        return session == sessions[0]

    try:
        await Pool(accounts, mark, "2" * 16).recover(dead)
        (process,) = lives
        assert process.poll() is None
        assert pwd.getpwnam(names[1])
    finally:
        for process in lives:
            process.kill()
            process.wait()
        for account in listed():
            if account.note.startswith(mark):
                accounts.remove(account)
