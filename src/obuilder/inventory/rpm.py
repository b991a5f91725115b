"""Packages of rpm's database: headers, as rpm has them in memory, in a file of one of three kinds.

SQLite since rpm 4.16, `ndb` of SUSE, and Berkeley DB's hash of old (and of RHEL 8), which rpm itself
only reads by now. The latter two are read as they lie on disk; see `rpm_files`.
"""

import os
import sqlite3
import struct
from collections.abc import Iterator
from typing import BinaryIO

from obuilder.inventory.model import Package
from obuilder.inventory.reading import Root, Unreadable, text_of
from obuilder.inventory.rpm_files import MOST_HEADER, berkeley_values, ndb_values

_DIRECTORIES = ("var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm")
_FILES = {"rpmdb.sqlite": "sqlite", "Packages.db": "ndb", "Packages": "berkeley"}
FILES = tuple(f"{directory}/{name}" for directory in _DIRECTORIES for name in _FILES)
_TAGS = {
    "name": 1000, "version": 1001, "release": 1002, "epoch": 1003, "vendor": 1011, "license": 1014,
    "architecture": 1022, "source": 1044,
}  # fmt: skip
_INT32, _STRING, _STRING_ARRAY, _I18N = 4, 6, 8, 9
_MOST_TAGS = 1 << 16
_LONGEST = 1 << 12
"""Bytes of a string that are looked at."""
_MOST_WORK = 2000
"""Times 100,000 instructions of SQLite: more than a million packages."""


def rpm(root: Root, path: str, seen: set[tuple[int, int]]) -> Iterator[Package]:
    """What a database tells, unless it was `seen` under another name. Unreadable."""
    file = root.open(path)
    if file is None:
        return
    with file:
        status = os.fstat(file.fileno())
        mark = (status.st_dev, status.st_ino)
        if mark in seen or not status.st_size:
            return
        seen.add(mark)
        kind = _FILES[path.rpartition("/")[2]]
        if kind == "sqlite":
            values = _sqlite_values(file)
        elif kind == "ndb":
            values = ndb_values(file, status.st_size)
        else:
            values = berkeley_values(file, status.st_size)
        for value in values:
            said = _header(value)
            name, version = said.get("name"), said.get("version")
            if not name or not version or name == "gpg-pubkey":
                continue
            release = said.get("release")
            yield Package(
                "rpm", name, f"{version}-{release}" if release else version,
                said.get("architecture", ""), path, said.get("license", ""),
                said.get("vendor", ""), said.get("source", ""), said.get("epoch", ""),
            )  # fmt: skip
    if kind == "sqlite":
        _check_log(root, path)


def _check_log(root: Root, path: str) -> None:
    """Unreadable: SQLite has left changes beside a database, which only a writer could bring in."""
    file = root.open(f"{path}-wal")
    if file is not None:
        with file:
            if os.fstat(file.fileno()).st_size:
                raise Unreadable(
                    "rpm was killed: its last changes are beside it, and not told here"
                )


def _sqlite_values(file: BinaryIO) -> Iterator[bytes]:
    """The headers in a database of SQLite, which may have been made to keep us busy."""
    work = 0

    def enough() -> bool:
        nonlocal work
        work += 1
        return work > _MOST_WORK

    name = f"file:/proc/self/fd/{file.fileno()}?mode=ro&immutable=1"
    try:
        database = sqlite3.connect(name, uri=True)
        try:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_HEADER)
            database.set_progress_handler(enough, 100_000)
            database.execute("PRAGMA trusted_schema=OFF")
            kind = "SELECT type FROM sqlite_master WHERE name = 'Packages'"
            if database.execute(kind).fetchall() != [("table",)]:
                raise Unreadable("it has no table of packages")
            for (value,) in database.execute("SELECT blob FROM Packages ORDER BY rowid"):
                if isinstance(value, bytes):
                    yield value
        finally:
            database.close()
    except sqlite3.Error as error:
        raise Unreadable(str(error)) from error


def _header(data: bytes) -> dict[str, str]:
    """What is wanted of a header: its fields stand in an index before their values. Unreadable."""
    if len(data) < 8:
        raise Unreadable("a header is too short")
    count, length = struct.unpack_from(">II", data)
    start = 8 + 16 * count
    if count > _MOST_TAGS or start + length > len(data):
        raise Unreadable("a header is longer than its place")
    names = {tag: name for name, tag in _TAGS.items()}
    said: dict[str, str] = {}
    for at in range(8, start, 16):
        tag, kind, offset, number = struct.unpack_from(">IIII", data, at)
        if tag not in names or not number or offset >= length:
            continue
        place = start + offset
        if kind == _INT32 and offset + 4 <= length:
            said[names[tag]] = str(struct.unpack_from(">I", data, place)[0])
        elif kind in (_STRING, _STRING_ARRAY, _I18N):
            end = data.find(b"\0", place, min(place + _LONGEST, start + length))
            said[names[tag]] = text_of(data[place : end if end >= 0 else place + _LONGEST])
    return said
