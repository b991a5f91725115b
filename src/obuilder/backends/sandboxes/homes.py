"""What /etc/passwd and /etc/group of a root say of a step's users: ids, groups, home directories."""

import os
import stat
from typing import NamedTuple

from obuilder.errors import Unsupported
from obuilder.system import linux
from obuilder.values import NamedUser, UnixUser, User

_LARGEST = 1 << 20


def home_of(root: str, uid: int) -> str:
    """What /etc/passwd in `root` says is the home of `uid`; / if it says nothing."""
    for line in _read(root, "/etc/passwd").split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 5 and fields[2] == b"%d" % uid:
            return os.fsdecode(fields[5]) or "/"
    return "/"


class Account(NamedTuple):
    """A user by number, with the groups that are also theirs."""

    user: UnixUser
    groups: tuple[int, ...] = ()


def account(root: str, user: User) -> Account:
    """The ids of a user: `NAME`, `UID`, or either with `:GROUP` or `:GID`. Unsupported: no such.

    As Docker has it: without a group, that of /etc/passwd (0 for a number that is not there), and
    every group that lists the user.
    """
    if not isinstance(user, NamedUser):
        return Account(user)
    name, _, team = user.name.partition(":")
    found = next(
        (
            row
            for row in _rows(root, "/etc/passwd", 4)
            if name in (os.fsdecode(row[0]), os.fsdecode(row[2]))
        ),
        None,
    )
    if found is not None:
        uid, gid = _id(found[2]), _id(found[3])
    elif name.isascii() and name.isdecimal():
        uid, gid = _id(name.encode()), 0
    else:
        raise Unsupported(
            f"there is no user {name!r} in this root's /etc/passwd",
            hint="make one in a step before, or use a number",
        )
    groups: tuple[int, ...] = ()
    if team:
        gid = _group(root, team)
    elif found is not None:
        login = found[0]
        groups = tuple(
            sorted(
                {
                    _id(row[2])
                    for row in _rows(root, "/etc/group", 4)
                    if login in row[3].split(b",") and row[2].isdigit()
                }
            )
        )
    return Account(UnixUser(uid, gid), groups)


def _group(root: str, name: str) -> int:
    for row in _rows(root, "/etc/group", 3):
        if os.fsdecode(row[0]) == name and row[2].isdigit():
            return _id(row[2])
    if name.isascii() and name.isdecimal():
        return _id(name.encode())
    raise Unsupported(
        f"there is no group {name!r} in this root's /etc/group",
        hint="make one in a step before, or use a number",
    )


def _id(text: bytes) -> int:
    if not text.isdigit() or len(text) > 10 or int(text) >= (1 << 32) - 1:
        raise Unsupported(f"{text!r} is no id of a user or group")
    return int(text)


def _rows(root: str, path: str, least: int) -> list[list[bytes]]:
    rows = [line.rstrip().split(b":") for line in _read(root, path).split(b"\n")]
    return [row for row in rows if len(row) >= least]


def _read(root: str, path: str) -> bytes:
    """A file of the root, whatever a step has put there; empty if it is none."""
    at = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
        fd = linux.openat2(path, os.O_RDONLY | os.O_NONBLOCK, at=at, resolve=resolve)
    except OSError:
        return b""
    finally:
        os.close(at)
    try:
        return os.read(fd, _LARGEST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
