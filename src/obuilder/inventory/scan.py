"""All packages of a root: what each database tells, and a note for each that can't be read."""

import os
from collections.abc import Callable, Iterator

from obuilder.inventory.distributions import APK, apk, dpkg, dpkg_files, system_of
from obuilder.inventory.languages import walk
from obuilder.inventory.model import Inventory, Package, System
from obuilder.inventory.reading import Root, Unreadable
from obuilder.inventory.rpm import FILES, rpm
from obuilder.values import shown

_MOST = 200_000
"""Packages that are told."""
_MOST_NOTES = 20


def take(path: str) -> Inventory:
    """The inventory of the root at `path`, which may be hostile: all that goes wrong is a note.

    OSError if there is no root.
    """
    notes: list[str] = []

    def note(place: str, reason: str) -> None:
        if len(notes) < _MOST_NOTES:
            notes.append(f"/{shown(place)}: {reason}")
        elif len(notes) == _MOST_NOTES:
            notes.append("and more")

    with Root(path) as root:
        system = System()
        try:
            system = system_of(root)
        except Unreadable as error:
            note("etc/os-release", str(error))
        found: set[Package] = set()
        for package in _packages(root, note):
            if len(found) == _MOST:
                notes.append(f"there are more than {_MOST} packages")
                break
            found.add(package)
    return Inventory(system, tuple(sorted(found)), tuple(notes))


def _packages(root: Root, note: Callable[[str, str], None]) -> Iterator[Package]:
    files: list[str] = []
    try:
        files = dpkg_files(root)
    except Unreadable as error:
        note("var/lib/dpkg/status.d", str(error))
    seen: set[tuple[int, int]] = set()
    for path in files:
        yield from _noting(path, dpkg(root, path), note)
    for path in APK:
        yield from _noting(path, apk(root, path), note)
    for path in FILES:
        yield from _noting(path, rpm(root, path, seen), note)
    yield from walk(root.fd, note)


def _noting(
    path: str, packages: Iterator[Package], note: Callable[[str, str], None]
) -> Iterator[Package]:
    """What can be had of a database that may be damaged."""
    try:
        yield from packages
    except Unreadable as error:
        note(path, str(error))
    except OSError as error:
        note(path, error.strerror or os.strerror(error.errno or 0))
