"""Whose directory is shown, and whose rights are used to look into it."""

import os
import pwd


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
        if fd is None or not _same(fd, path):
            caller = _current
            become(0, 0)  # on the way there may be what is not the user's
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            finally:
                become(*caller)
            self._open[path] = fd
        return fd


def _same(fd: int, path: str) -> bool:
    here = os.fstat(fd)
    try:
        there = os.stat(path)
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


_current = (0, 0)
_groups: dict[tuple[int, int], list[int]] = {}


def become(user: int, group: int) -> None:
    """Act with a user's rights from now on: the kernel itself then says what they may do."""
    global _current  # noqa: PLW0603 - it is the process that has the rights
    if _current == (user, group):
        return
    if _current[0] != 0:
        os.seteuid(0)
    os.setegid(group)
    os.setgroups(_groups_of(user, group))
    if user != 0:
        os.seteuid(user)
    _current = (user, group)


def _groups_of(user: int, group: int) -> list[int]:
    found = _groups.get((user, group))  # a number may be another user's by now
    if found is None:
        try:
            row = pwd.getpwuid(user)
            found = os.getgrouplist(row.pw_name, row.pw_gid)
        except KeyError:
            found = [group]
        _groups[user, group] = found
    return found
