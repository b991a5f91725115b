"""Users on macOS: made by dscl, given a session of their own by launchctl, run by sudo."""

import fcntl
import os
import platform
import pwd

from obuilder.backends.sandboxes.accounts import Account
from obuilder.errors import SandboxError
from obuilder.system import process

HOME = "/Users/builder"
_FIRST, _LAST = 600, 1600
_LOCK = "/var/run/obuilder-users.lock"
_CHANGE = 'cd "$0" && exec "$@"'


class MacSystem:
    """See `users_redirected.System`."""

    home = HOME
    shared = ("/private/tmp", "/private/var/tmp")

    def __init__(self) -> None:
        self.prefix = prefix_of(platform.machine())
        self.accounts = MacAccounts()

    def command(
        self, account: Account, env: dict[str, str], cwd: str, argv: tuple[str, ...]
    ) -> list[str]:
        """See `System`."""
        return as_user(account, env, cwd, argv)

    def temporary(self, account: Account) -> str | None:
        """See `System`: the directory below /var/folders that is the user's alone."""
        status, said = process.capture(
            ["sudo", "-n", "-u", account.name, "getconf", "DARWIN_USER_TEMP_DIR"]
        )
        return os.fsdecode(said.strip()) or None if status == 0 else None

    def unlocked(self, path: str) -> list[str] | None:
        """See `System`: files may be marked as not to be changed, by their owner even."""
        return ["chflags", "-R", "nouchg,noschg", path]


class MacAccounts:
    """See `accounts.Accounts`."""

    def add(self, name: str, note: str) -> None:
        """See `Accounts`."""
        with open(_LOCK, "wb") as lock:  # two who look at once would take the same number
            fcntl.flock(lock, fcntl.LOCK_EX)
            taken = {row.pw_uid for row in pwd.getpwall()}
            number = next(number for number in range(_FIRST, _LAST) if number not in taken)
            for words in added(name, note, number):
                _run(words)

    def remove(self, account: Account) -> None:
        """See `Accounts`."""
        for words in removed(account.name):
            status, said = process.capture(words, timeout=60)
            if status != 0 and b"eDSRecordNotFound" not in said and b"eDSUnknownNode" not in said:
                raise SandboxError(f"{words[0]} ended with status {status}: {said!r}")


def _run(words: list[str]) -> None:
    status, said = process.capture(words, timeout=60)
    if status != 0:
        text = said.decode(errors="replace").strip()
        raise SandboxError(f"{' '.join(words[:3])} ended with status {status}: {text}")


# --- command lines ------------------------------------------------------------------------------


def prefix_of(machine: str) -> str:
    """Where Homebrew and its like install, by the machine's architecture."""
    return "/opt/homebrew" if machine == "arm64" else "/usr/local"


def added(name: str, note: str, number: int) -> list[list[str]]:
    """The commands that make a user and a group of that number: hidden, without a password."""
    group, user = (
        ["dscl", ".", "-create", f"/Groups/{name}"],
        ["dscl", ".", "-create", f"/Users/{name}"],
    )
    return [
        group,
        [*group, "PrimaryGroupID", str(number)],
        user,
        [*user, "UniqueID", str(number)],
        [*user, "PrimaryGroupID", str(number)],
        [*user, "UserShell", "/bin/bash"],
        [*user, "NFSHomeDirectory", HOME],
        [*user, "IsHidden", "1"],
        [*user, "RealName", note],
    ]


def removed(name: str) -> list[list[str]]:
    """The commands that remove a user and its group."""
    return [["dscl", ".", "-delete", f"/{kind}/{name}"] for kind in ("Users", "Groups")]


def as_user(account: Account, env: dict[str, str], cwd: str, argv: tuple[str, ...]) -> list[str]:
    """The command that runs `argv` in the user's own session, with exactly that environment."""
    return [
        "launchctl", "asuser", str(account.uid), "sudo", "-n", "-u", account.name, "--",
        "env", "-i", *(f"{key}={value}" for key, value in env.items()),
        "/bin/sh", "-c", _CHANGE, cwd, *argv,
    ]  # fmt: skip
