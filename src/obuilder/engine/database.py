"""The SQLite file of a store: its tables, opening it, and one transaction at a time.

WAL mode, used from one thread; every transaction is short. Errors of SQLite are the store's own.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from obuilder.errors import StoreDamaged, StoreError, StoreFull
from obuilder.values import Key

SCHEMA = 4
_PATIENCE = 20.0
"""Seconds that others may keep it locked."""
_TABLES = """
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, heading TEXT NOT NULL, stage TEXT NOT NULL,
    base TEXT, created REAL NOT NULL, used REAL NOT NULL, seconds REAL NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0, boot TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS results_used ON results (used);
CREATE TABLE IF NOT EXISTS aliases (key TEXT PRIMARY KEY, target TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    key TEXT NOT NULL, session TEXT NOT NULL, PRIMARY KEY (key, session)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stats (
    path BLOB PRIMARY KEY, signature BLOB NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifests (
    source TEXT NOT NULL, selection BLOB NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (source, selection)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (name BLOB PRIMARY KEY, base BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS volumes (
    place TEXT PRIMARY KEY, id BLOB NOT NULL, generation TEXT, used REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS builds (
    identity TEXT PRIMARY KEY, result TEXT NOT NULL, record BLOB NOT NULL, at REAL NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS finals (key TEXT PRIMARY KEY, said BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blobs (
    key TEXT NOT NULL, form TEXT NOT NULL, said BLOB NOT NULL, PRIMARY KEY (key, form))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS remotes (key TEXT PRIMARY KEY, said BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sent (
    place TEXT NOT NULL, key TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (place, key))
    WITHOUT ROWID;
"""


def boot_id() -> str:
    """What tells this boot of the machine from any other."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def index_path(directory: str) -> str:
    """Where the index of a store is."""
    return os.path.join(directory, "index.sqlite")


class Database:
    """An open file. `fresh` says that the file was new, so that the store should be asked."""

    def __init__(self, directory: str | None, *, create: bool = True) -> None:
        """Open or create; None for one in memory that is forgotten when it is closed.

        FileNotFoundError without `create`; StoreDamaged, StoreError.
        """
        path = ":memory:" if directory is None else index_path(directory)
        if not create and not os.path.exists(path):
            raise FileNotFoundError(path)
        self._boot = boot_id()
        try:
            self._db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            self.fresh = version == 0
            if version > SCHEMA:
                raise StoreError(
                    f"the index {path} was made by a newer obuilder (schema {version})",
                    hint="use that version, or another store",
                )
            if version < SCHEMA:
                self._to_wal()
                # Schema 1 had `specs` where `builds` is now, 2 and 3 fewer tables; the rest is the same.
                self._db.executescript(
                    f"BEGIN IMMEDIATE;{_TABLES}DROP TABLE IF EXISTS specs;"
                    f"PRAGMA user_version={SCHEMA};COMMIT"
                )
            self._db.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.DatabaseError as error:
            raise _translate(error, path) from error
        self._path = path

    def _to_wal(self) -> None:
        """Change to WAL mode, which SQLite does not wait for where others do it too."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > end:
                    raise
                time.sleep(0.01)
            else:
                return

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            raise _translate(error, self._path) from error

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise _translate(error, self._path) from error


def lease(db: sqlite3.Connection, key: Key, holders: Iterable[str]) -> None:
    """Hold `key` for these, in a transaction that is open."""
    rows = [(key, holder) for holder in holders]
    db.executemany("INSERT OR IGNORE INTO leases VALUES (?, ?)", rows)


def _translate(error: sqlite3.DatabaseError, path: str) -> StoreError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    unable = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    if code == sqlite3.SQLITE_FULL or (unable and _is_full(path)):
        return StoreFull(
            f"no space left to write the index {path}",
            hint="free some space, for example with: obuilder prune",
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return StoreDamaged(
            f"the index {path} is damaged: {error}",
            hint="it is rebuilt from the store when it is gone",
        )
    closed = code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
    hint = "a store is for the user who made it" if closed else None
    return StoreError(f"the index {path} can't be used: {error}", hint=hint)


def _is_full(path: str) -> bool:
    # What SQLite maps into memory it can't have then, which it calls an error of the disk.
    found = os.statvfs(os.path.dirname(path))
    return found.f_bavail * found.f_frsize < 1 << 20
