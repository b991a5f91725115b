"""Builder users: accounts of this machine, made on demand, each for one step at a time.

An account is known as ours by its full name, which says whose it is: the store's mark and the
session. No other is ever touched. What a killed session left, recovery of its store removes. Its
user name has the session in it too, and so is never another's: systems remove users by name, and
two builders may recover at the same time.
"""

import grp
import itertools
import os
import pwd
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import anyio
import anyio.to_thread
from msgspec import Struct

from obuilder.errors import BackendUnavailable, SandboxError
from obuilder.system import process
from obuilder.system.files import remove_tree

_NAME = re.compile(r"obuilder-[0-9a-f]+-\d+")
_PATIENCE = 15.0


class Account(Struct, frozen=True):
    """A user of this machine; `note` is the full name."""

    name: str
    uid: int
    gid: int
    note: str


class Accounts(Protocol):
    """How a system keeps its users."""

    def add(self, name: str, note: str) -> None:
        """Make a user with a group and numbers of its own. SandboxError."""

    def remove(self, account: Account) -> None:
        """Remove a user and its group; no error if it is gone. SandboxError."""


def listed() -> list[Account]:
    """The machine's users that have a name of ours."""
    return [
        Account(row.pw_name, row.pw_uid, row.pw_gid, row.pw_gecos)
        for row in pwd.getpwall()
        if _NAME.fullmatch(row.pw_name)
    ]


class LinuxAccounts:
    """See `Accounts`: useradd and userdel, whatever distribution's."""

    def __init__(self, home: str) -> None:
        self._home = home

    def add(self, name: str, note: str) -> None:
        """See `Accounts`."""
        self._tried(added(name, note, self._home), good={0})

    def remove(self, account: Account) -> None:
        """See `Accounts`. Whether userdel takes the group along, the machine's login.defs says."""
        self._tried(["userdel", account.name], good={0, 6})
        with suppress(KeyError):
            grp.getgrnam(account.name)
            self._tried(["groupdel", account.name], good={0, 6})

    def _tried(self, argv: list[str], good: set[int]) -> None:
        end = time.monotonic() + _PATIENCE
        while True:
            status, said = process.capture(argv, timeout=60)
            if status in good:
                return
            # 1 and 10: another program is changing the tables of users or of groups.
            if status not in (1, 10) or time.monotonic() > end:
                text = said.decode(errors="replace").strip()
                raise SandboxError(f"{argv[0]} ended with status {status}: {text}")
            time.sleep(0.05)


def added(name: str, note: str, home: str) -> list[str]:
    """The command that makes a user on Linux: one of the system's, that nobody logs in as."""
    return [
        "useradd", "--system", "--user-group", "--no-create-home", "--no-log-init",
        "--home-dir", home, "--shell", "/bin/sh", "--comment", note, name,
    ]  # fmt: skip


class Pool:
    """The builder users of one session; `mark` is their store's, `session` who they belong to.

    What they left in the directories `shared` goes with them: their numbers will be others'.
    """

    def __init__(
        self, accounts: Accounts, mark: str, session: str, *, shared: tuple[str, ...] = ()
    ) -> None:
        self._accounts, self._mark, self._session = accounts, mark, session
        self._shared = shared
        self._idle: list[Account] = []
        self._made: list[Account] = []
        self._numbers = itertools.count(1)
        self._making = anyio.Lock()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Account]:
        """A user that nobody else has, for as long as the context lasts. SandboxError."""
        if self._idle:
            account = self._idle.pop()
        else:
            async with self._making:
                with anyio.CancelScope(shield=True):  # or a user would be made and not known
                    account = await anyio.to_thread.run_sync(self._make)
        try:
            yield account
        finally:
            self._idle.append(account)

    def _make(self) -> Account:
        name, note = f"obuilder-{self._session}-{next(self._numbers)}", self._mark + self._session
        self._accounts.add(name, note)
        row = pwd.getpwnam(name)
        account = Account(name, row.pw_uid, row.pw_gid, note)
        self._made.append(account)
        return account

    async def recover(self, dead: Callable[[str], bool]) -> None:
        """Remove the users of this store's sessions that are no more, and those they still make."""

        def still_made() -> bool:  # useradd goes on when its builder is killed
            notes = [word for word in _arguments() if word.startswith(self._mark)]
            return any(dead(note.removeprefix(self._mark)) for note in notes)

        with anyio.move_on_after(_PATIENCE):
            while await anyio.to_thread.run_sync(still_made):
                await anyio.sleep(0.05)
        left = [
            account
            for account in listed()
            if account.note.startswith(self._mark) and dead(account.note.removeprefix(self._mark))
        ]
        for account in left:
            await anyio.to_thread.run_sync(self._drop, account)

    async def close(self) -> None:
        """Remove the users that were made here."""
        with anyio.CancelScope(shield=True):
            while self._made:
                await anyio.to_thread.run_sync(self._drop, self._made.pop())
        self._idle.clear()

    def _drop(self, account: Account) -> None:
        if account in listed():  # else somebody else recovers, and the number may be another's
            end_processes(account.uid)
            remove_files(account.uid, self._shared)
            self._accounts.remove(account)


def end_processes(uid: int) -> None:
    """End all processes of a user, and wait until they are gone. SandboxError."""
    end = time.monotonic() + _PATIENCE
    while found := processes_of(uid):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        if time.monotonic() > end:
            raise SandboxError(f"processes of user {uid} can't be ended: {found}")
        time.sleep(0.005)


def remove_files(uid: int, folders: Sequence[str]) -> None:
    """Remove what a user without processes has right in these directories, as far as that can be."""
    for folder in folders:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == uid:
                        remove_tree(entry.path)


def processes_of(uid: int) -> list[int]:
    """The processes of a user, as far as /proc or ps tell."""
    if not os.path.isdir("/proc/self"):
        status, said = process.capture(["ps", "-U", str(uid), "-o", "pid="])
        return [int(word) for word in said.split()] if status == 0 else []
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, real = _state(name)
            if real == uid and state not in ("Z", "X"):
                found.append(int(name))
    return found


def _state(pid: str) -> tuple[str, int]:
    """Whether a process lives, and whose it is: not whose rights it uses at the moment."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.partition(":")[::2] for line in file)
    return fields["State"].split()[0], int(fields["Uid"].split()[0])


def _arguments() -> list[str]:
    """The words of all of root's command lines, as far as /proc tells."""
    found = []
    if os.path.isdir("/proc/self"):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                if os.fstat(file.fileno()).st_uid == 0:
                    found += os.fsdecode(file.read()).split("\0")
    return found


def need(*programs: str) -> None:
    """BackendUnavailable if one of the system's programs is missing."""
    import shutil

    for program in programs:
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            raise BackendUnavailable(
                f"steps get users of their own, and {program} is not there to make them",
                hint="install the package passwd (Debian) or shadow-utils",
            )
