"""The index: one SQLite file that says what the store has, and remembers what was looked up.

It is a cache of the store's own `meta` (see `recover`), so it may be lost; it is never the only
place of a result. WAL mode, used from one thread; every method is one short transaction.

What somebody uses is leased: to a holder, `SESSION.N`, one for each build of a session.

A result is usable at once. Until the next group sync its row carries the boot id of the machine,
so that a reboot drops what may not have reached the disk, and a mere crash drops nothing.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

import msgspec

from obuilder.errors import StoreDamaged, StoreError, StoreFull
from obuilder.plan.model import Base, Layer
from obuilder.values import Key

SCHEMA = 2
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
"""


class Record(msgspec.Struct, frozen=True):
    """What the index knows of one result.

    `kind` is layer, run, copy, failed or volume. Times are seconds since 1970.
    """

    key: Key
    kind: str
    heading: str
    stage: str
    base: Key | None
    created: float
    used: float
    seconds: float
    pinned: bool = False


_USED_STEP = 60.0
_COLUMNS = ", ".join(Record.__struct_fields__)


def _record(row: tuple[object, ...]) -> Record:
    named = dict(zip(Record.__struct_fields__, row, strict=True))
    return msgspec.convert(named, Record, strict=False)  # SQLite has no booleans


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


class Index:
    """An open index. `fresh` says that the file was new, so that the store should be asked."""

    def __init__(self, directory: str | None, *, create: bool = True) -> None:
        """Open or create; None for one in memory that is forgotten when it is closed.

        FileNotFoundError without `create`; StoreDamaged, StoreError.
        """
        path = ":memory:" if directory is None else index_path(directory)
        if not create and not os.path.exists(path):
            raise FileNotFoundError(path)
        self._boot = boot_id()
        try:
            self._db = sqlite3.connect(path, timeout=20.0, isolation_level=None)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            self.fresh = version == 0
            if version > SCHEMA:
                raise StoreError(
                    f"the index {path} was made by a newer obuilder (schema {version})",
                    hint="use that version, or another store",
                )
            if version < SCHEMA:
                self._db.execute("PRAGMA journal_mode=WAL")
                # Schema 1 had `specs` where `builds` is now; all other tables are the same.
                self._db.executescript(
                    f"BEGIN IMMEDIATE;{_TABLES}DROP TABLE IF EXISTS specs;"
                    f"PRAGMA user_version={SCHEMA};COMMIT"
                )
            self._db.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.DatabaseError as error:
            raise _translate(error, path) from error
        self._path = path

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise _translate(error, self._path) from error

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise _translate(error, self._path) from error

    # --- results ---------------------------------------------------------------------------

    def find(self, keys: Iterable[Key], *, holders: Collection[str] = ()) -> dict[Key, Key]:
        """Which of `keys` have a result, each with the key the result stands under.

        What is found is leased to the `holders` in the same transaction: nothing can be pruned
        between the look and the use.
        """
        found: dict[Key, Key] = {}
        query = (
            "SELECT r.key FROM results r WHERE r.key = coalesce("
            "(SELECT target FROM aliases WHERE key = ?1), ?1)"
            " AND kind != 'failed' AND (boot IS NULL OR boot = ?2)"
        )
        if not holders:
            for key in keys:
                row = self._db.execute(query, (key, self._boot)).fetchone()
                if row is not None:
                    found[key] = Key(row[0])
            return found
        with self._write() as db:
            for key in keys:
                row = db.execute(query, (key, self._boot)).fetchone()
                if row is not None:
                    found[key] = Key(row[0])
                    _lease(db, found[key], holders)
        return found

    def add(self, record: Record, *, holders: Iterable[str] = ()) -> None:
        """Note a published result; it is leased to `holders`."""
        with self._write() as db:
            db.execute(
                f"INSERT OR REPLACE INTO results ({_COLUMNS}, boot)"  # noqa: S608 # our constant
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.key, record.kind, record.heading, record.stage, record.base,
                    record.created, record.used, record.seconds, int(record.pinned), self._boot,
                ),
            )  # fmt: skip
            _lease(db, record.key, holders)

    def alias(self, key: Key, target: Key) -> None:
        """Note that the step defined by `key` has the content-based key `target`."""
        if key != target:
            with self._write() as db:
                db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?)", (key, target))

    def touch(self, keys: Iterable[Key]) -> None:
        """Note that these results were used now, to the minute: most looks then write nothing."""
        now = time.time()
        query = "SELECT used FROM results WHERE key = ?"
        stale = [
            (now, key)
            for key in keys
            if (row := self._db.execute(query, (key,)).fetchone()) and row[0] < now - _USED_STEP
        ]
        if stale:
            with self._write() as db:
                db.executemany("UPDATE results SET used = ? WHERE key = ?", stale)

    def pin(self, keys: Iterable[Key], *, pinned: bool) -> None:
        """Keep these from being pruned, or let them go."""
        with self._write() as db:
            rows = [(int(pinned), key) for key in keys]
            db.executemany("UPDATE results SET pinned = ? WHERE key = ?", rows)

    def records(self) -> list[Record]:
        """Everything, the newest first."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM results ORDER BY created DESC, key")  # noqa: S608
        return [_record(row) for row in rows]

    def record(self, prefix: str) -> list[Record]:
        """The records whose keys start with `prefix`: at most two, to tell one from several."""
        rows = self._rows(
            f"SELECT {_COLUMNS} FROM results WHERE key >= ? AND key < ? LIMIT 2",  # noqa: S608
            prefix, prefix + "g",
        )  # fmt: skip
        return [_record(row) for row in rows]

    def forget(self, keys: Iterable[Key]) -> None:
        """Drop rows of results that are no more."""
        gone = [(key,) for key in keys]
        with self._write() as db:
            db.executemany("DELETE FROM results WHERE key = ?", gone)
            db.executemany("DELETE FROM aliases WHERE target = ?", gone)
            db.executemany("DELETE FROM manifests WHERE source = ?", gone)

    def condemn(self, key: Key, alive: "set[str]") -> bool:
        """Take `key` out of the index unless one of the holders `alive` leases it or it is pinned.

        After True the caller owns the deletion: nobody can look the result up any more.
        """
        with self._write() as db:
            row = db.execute("SELECT pinned FROM results WHERE key = ?", (key,)).fetchone()
            if row is None or row[0]:
                return False
            leases = db.execute("SELECT session FROM leases WHERE key = ?", (key,)).fetchall()
            if any(holder in alive for (holder,) in leases):
                return False
            db.execute("DELETE FROM results WHERE key = ?", (key,))
            db.execute("DELETE FROM aliases WHERE target = ?", (key,))
            db.execute("DELETE FROM manifests WHERE source = ?", (key,))
            db.execute("DELETE FROM leases WHERE key = ?", (key,))
        return True

    def lease(self, key: Key, holders: Iterable[str]) -> None:
        """Hold `key` for these."""
        with self._write() as db:
            _lease(db, key, holders)

    def holders(self) -> dict[str, str]:
        """All that hold leases, dead ones too, each with its session."""
        rows = self._rows("SELECT DISTINCT session FROM leases")
        return {str(row[0]): str(row[0]).partition(".")[0] for row in rows}

    def release(self, holders: Iterable[str]) -> None:
        """Drop the leases of these."""
        with self._write() as db:
            db.executemany("DELETE FROM leases WHERE session = ?", [(h,) for h in holders])

    # --- durability --------------------------------------------------------------------------

    def volatile(self) -> list[Key]:
        """Results of this boot that no group sync has covered yet."""
        rows = self._rows("SELECT key FROM results WHERE boot = ?", self._boot)
        return [Key(str(row[0])) for row in rows]

    def settled(self, keys: Iterable[Key]) -> None:
        """The store was synced after these were added: they survive a power cut from now on."""
        self._db.execute("PRAGMA synchronous=FULL")
        try:
            with self._write() as db:
                rows = [(key,) for key in keys]
                db.executemany("UPDATE results SET boot = NULL WHERE key = ?", rows)
        finally:
            self._db.execute("PRAGMA synchronous=NORMAL")

    def lost(self) -> list[Key]:
        """Results of an earlier boot that may not have reached the disk."""
        rows = self._rows(
            "SELECT key FROM results WHERE boot IS NOT NULL AND boot != ?", self._boot
        )
        return [Key(str(row[0])) for row in rows]

    # --- what was looked up ---------------------------------------------------------------------

    def stats(self, prefix: str) -> dict[bytes, tuple[bytes, str]]:
        """Signature and digest of every known file at or below `prefix`."""
        start = os.fsencode(prefix)
        rows = self._rows(
            "SELECT path, signature, digest FROM stats WHERE path >= ? AND path < ?",
            start, start + b"\xff",
        )  # fmt: skip
        return {row[0]: (row[1], row[2]) for row in rows}  # type: ignore[misc] # as the schema says

    def put_stats(self, rows: Iterable[tuple[bytes, bytes, str]]) -> None:
        """Remember path, signature and digest of files."""
        with self._write() as db:
            db.executemany("INSERT OR REPLACE INTO stats VALUES (?, ?, ?)", rows)

    def manifest(self, source: Key, selection: bytes) -> str | None:
        """The remembered manifest digest of a selection of a result's files."""
        query = "SELECT digest FROM manifests WHERE source = ? AND selection = ?"
        rows = self._rows(query, source, selection)
        return str(rows[0][0]) if rows else None

    def put_manifest(self, source: Key, selection: bytes, digest: str) -> None:
        """Remember a manifest digest: results never change, so for as long as they live."""
        with self._write() as db:
            db.execute(
                "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?)", (source, selection, digest)
            )

    def image(self, name: str) -> Base | None:
        """The image imported under `name`."""
        rows = self._rows("SELECT base FROM images WHERE name = ?", os.fsencode(name))
        return _base(rows[0][0]) if rows else None

    def images(self) -> dict[str, Base]:
        """All imported images by name."""
        rows = self._rows("SELECT name, base FROM images ORDER BY name")
        return {os.fsdecode(_bytes(name)): _base(base) for name, base in rows}

    def put_image(self, name: str, base: Base | None) -> None:
        """Give `name` to an image; None takes the name away."""
        with self._write() as db:
            if base is None:
                db.execute("DELETE FROM images WHERE name = ?", (os.fsencode(name),))
            else:
                value = msgspec.msgpack.encode(_paths(base, _as_text))
                db.execute(
                    "INSERT OR REPLACE INTO images VALUES (?, ?)", (os.fsencode(name), value)
                )

    # --- cache volumes ------------------------------------------------------------------------

    def generation(self, place: str) -> Key | None:
        """The newest generation of the volume at `place`."""
        rows = self._rows("SELECT generation FROM volumes WHERE place = ?", place)
        return Key(str(rows[0][0])) if rows and rows[0][0] is not None else None

    def swap_generation(self, place: str, name: str, old: Key | None, new: Key | None) -> bool:
        """Make `new` the newest generation if `old` still is: the first release wins."""
        with self._write() as db:
            row = db.execute("SELECT generation FROM volumes WHERE place = ?", (place,)).fetchone()
            if (row[0] if row else None) != old:
                return False
            db.execute(
                "INSERT OR REPLACE INTO volumes VALUES (?, ?, ?, ?)",
                (place, os.fsencode(name), new, time.time()),
            )
        return True

    def volumes(self) -> list[tuple[str, str, Key | None, float]]:
        """Place, name, newest generation and last use of every volume."""
        rows = self._rows("SELECT place, id, generation, used FROM volumes ORDER BY id")
        return [
            (
                str(place),
                os.fsdecode(_bytes(name)),
                None if generation is None else Key(str(generation)),
                float(str(used)),
            )
            for place, name, generation, used in rows
        ]

    def drop_volume(self, place: str) -> None:
        """Forget a volume."""
        with self._write() as db:
            db.execute("DELETE FROM volumes WHERE place = ?", (place,))

    # --- explain -----------------------------------------------------------------------------------

    def last_build(self, identity: str) -> bytes | None:
        """The record of the last build of the same spec."""
        rows = self._rows("SELECT record FROM builds WHERE identity = ?", identity)
        return _bytes(rows[0][0]) if rows else None

    def last_result(self, identity: str) -> Key | None:
        """The key of what the last build of the same spec was to make."""
        rows = self._rows("SELECT result FROM builds WHERE identity = ?", identity)
        return Key(str(rows[0][0])) if rows else None

    def put_build(self, identity: str, result: Key, record: bytes) -> None:
        """Remember a build, for `explain`."""
        with self._write() as db:
            db.execute(
                "INSERT OR REPLACE INTO builds VALUES (?, ?, ?, ?)",
                (identity, result, record, time.time()),
            )


def _lease(db: sqlite3.Connection, key: Key, holders: Iterable[str]) -> None:
    rows = [(key, holder) for holder in holders]
    db.executemany("INSERT OR IGNORE INTO leases VALUES (?, ?)", rows)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise StoreDamaged("the index holds a value of the wrong kind")
    return value


def _base(value: object) -> Base:
    return _paths(msgspec.msgpack.decode(_bytes(value), type=Base), _as_path)


def _paths(base: Base, change: Callable[[str], str]) -> Base:
    """The image with its paths changed: their bytes need not be text, which is all that is stored."""
    layers = tuple(Layer(layer.digest, change(layer.source)) for layer in base.layers)
    return msgspec.structs.replace(base, name=change(base.name), layers=layers)


def _as_text(path: str) -> str:
    return os.fsencode(path).decode("latin-1")


def _as_path(text: str) -> str:
    return os.fsdecode(text.encode("latin-1"))


def _translate(error: sqlite3.DatabaseError, path: str) -> StoreError:
    text = str(error)
    if "full" in text:
        return StoreFull(
            f"no space left to write the index {path}",
            hint="free some space, for example with: obuilder prune",
        )
    if "locked" in text or "readonly" in text or "unable to open" in text:
        hint = None if "locked" in text else "a store is for the user who made it"
        return StoreError(f"the index {path} can't be used: {text}", hint=hint)
    return StoreDamaged(
        f"the index {path} is damaged: {text}", hint="it is rebuilt from the store when it is gone"
    )
