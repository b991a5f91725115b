"""Which file a request means: the files that the kernel knows by number, for each user their own.

A number stands for one file (a device and an inode), never for a path: so two users' files of one
name are two to the kernel, and nothing that it keeps of one (attributes, pages, mapped programs)
is ever shown as the other. Only the root is shared; so what it and its entries are is asked for
each time.
"""

import errno
import os
import stat
from collections.abc import Callable

ROOT = 1

Place = tuple[int, str]
"""A descriptor of a directory and a path relative to it."""


class _Node:
    """A file that the kernel holds: its names that are known, how often it was told of it."""

    __slots__ = ("key", "lookups", "names", "open")

    def __init__(self, key: tuple[int, int]) -> None:
        self.key = key
        self.names: dict[tuple[int, str], int] = {}
        """By the parent's number and the name: the base that it was found below."""
        self.lookups = 0
        self.open: list[int] = []


class Tree:
    """The numbers of one mount. `base` gives a user's own directory as a descriptor."""

    def __init__(self, base: Callable[[int], int]) -> None:
        self._base = base
        self._nodes: dict[int, _Node] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._named: dict[tuple[int, int, str], int] = {}
        self._next = ROOT

    def place(self, number: int, user: int) -> Place:
        """Where a file is now. OSError: ESTALE if no name of it is known."""
        if number == ROOT:
            return self._base(user), "."
        parts: list[str] = []
        base = -1
        while number != ROOT:
            node = self._nodes.get(number)
            if node is None or not node.names:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            (number, name), base = next(iter(node.names.items()))
            parts.append(name)
        return base, "/".join(reversed(parts))

    def child(self, parent: int, name: str, user: int) -> Place:
        """Where an entry of a directory is, or would be."""
        base, path = self.place(parent, user)
        return base, name if path == "." else f"{path}/{name}"

    def found(self, parent: int, name: str, base: int, status: os.stat_result) -> int:
        """The number of the file that an entry is; the kernel is told of it."""
        key = (status.st_dev, status.st_ino)
        number = self._numbers.get(key)
        if number is None:
            self._next += 1
            number = self._numbers[key] = self._next
            self._nodes[number] = _Node(key)
        node = self._nodes[number]
        node.lookups += 1
        self._name(number, parent, name, base)
        if stat.S_ISDIR(status.st_mode) and len(node.names) > 1:
            # A directory has one name: the others are those that it had.
            for old in [names for names in node.names.items() if names[0] != (parent, name)]:
                self._forget_name(old[0], old[1])
        return number

    def _name(self, number: int, parent: int, name: str, base: int) -> None:
        before = self._named.get((base, parent, name))
        if before is not None and before != number:
            self._forget_name((parent, name), base)
        self._named[base, parent, name] = number
        self._nodes[number].names[parent, name] = base

    def _forget_name(self, entry: tuple[int, str], base: int) -> None:
        number = self._named.pop((base, *entry), None)
        if number is not None and number in self._nodes:
            self._nodes[number].names.pop(entry, None)

    def gone(self, parent: int, name: str, user: int) -> None:
        """An entry was removed."""
        base, _ = self.place(parent, user)
        number = self._named.get((base, parent, name))
        self._forget_name((parent, name), base)
        if number is not None and not self._nodes[number].names:
            # Its inode may be somebody else's soon: then that is another file.
            self._numbers.pop(self._nodes[number].key, None)

    def moved(
        self, user: int, old: tuple[int, str], new: tuple[int, str], *, swapped: bool
    ) -> None:
        """An entry has another place; what was there is gone, or has the old place."""
        base, _ = self.place(old[0], user)
        one, other = self._named.get((base, *old)), self._named.get((base, *new))
        self._forget_name(old, base)
        if swapped:
            self._forget_name(new, base)
        elif one != other:
            self.gone(*new, user)
        if one is not None:
            self._name(one, *new, base)
        if swapped and other is not None:
            self._name(other, *old, base)

    def forget(self, number: int, times: int) -> None:
        """The kernel no longer holds a file, as often as it was told of it."""
        node = self._nodes.get(number)
        if node is None:
            return
        node.lookups -= times
        if node.lookups <= 0:
            for entry, base in list(node.names.items()):
                self._forget_name(entry, base)
            if self._numbers.get(node.key) == number:
                del self._numbers[node.key]
            del self._nodes[number]

    def opened(self, number: int, fd: int) -> None:
        """A descriptor of the file is open: it is reached by that when its last name is gone."""
        if number in self._nodes:
            self._nodes[number].open.append(fd)

    def closed(self, number: int, fd: int) -> None:
        """See `opened`."""
        if number in self._nodes:
            self._nodes[number].open.remove(fd)

    def descriptor(self, number: int) -> int | None:
        """A descriptor that somebody has open."""
        node = self._nodes.get(number)
        return node.open[-1] if node is not None and node.open else None
