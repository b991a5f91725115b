"""Whose directory is shown, and whose rights are used to look into it."""

import os
import pwd
import sys


class Bases:
    """The directories of all users, by the links that name them; `other` is for the rest."""

    def __init__(self, links: str, other: int) -> None:
        self._links = os.open(links, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._other = other
        self._open: dict[str, int] = {}

    def base(self, user: int) -> int:
        """A descriptor of the directory that a user sees now; it stays open."""
        try:
            path = os.readlink(str(user), dir_fd=self._links)
        except OSError:
            return self._other
        fd = self._open.get(path)
        if fd is not None and _same(fd, path):
            return fd
        caller = _current
        become(0, 0)  # on the way there may be what is not the user's
        try:
            if fd is None or not _same(fd, path):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._open[path] = fd
        finally:
            become(*caller)
        return fd


def _same(fd: int, path: str) -> bool:
    here = os.fstat(fd)
    try:
        there = os.stat(path)
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


_current = (0, 0, 0)


def become(user: int, group: int, process: int = 0) -> None:
    """Act with the rights of a user's process from now on: the kernel itself then says what it may do.

    It may be one that is gone, or out of sight: then its groups are not known, but for the one.
    """
    global _current  # noqa: PLW0603 - it is the process that has the rights
    if _current == (user, group, process):
        return
    if _current[0] != 0:
        os.seteuid(0)
    os.setegid(group)
    os.setgroups(_groups_of(user, group, process))
    if user != 0:
        os.seteuid(user)
    _current = (user, group, process)


def _groups_of(user: int, group: int, process: int) -> list[int]:
    if user == 0:
        return [group]
    if sys.platform != "linux":
        try:
            return os.getgrouplist(pwd.getpwuid(user).pw_name, group)
        except KeyError:
            return [group]
    # The name service is not asked: systemd's looks into /usr/local, and if that is the mount,
    # nobody would answer.
    try:
        with open(f"/proc/{process}/status", "rb") as file:
            line = file.read().partition(b"\nGroups:")[2].partition(b"\n")[0]
    except OSError:
        return [group]
    return [int(word) for word in line.split()]
