"""The index: one SQLite file that says what the store has, and remembers what was looked up.

It is a cache of the store's own `meta` (see `recover`), so it may be lost; it is never the only
place of a result. Every method is one short transaction (see `database`).

What somebody uses is leased: to a holder, `SESSION.N`, one for each build of a session.

A result is usable at once. Until the next group sync its row carries the boot id of the machine,
so that a reboot drops what may not have reached the disk, and a mere crash drops nothing.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from obuilder.engine.database import lease
from obuilder.engine.origin import Origin
from obuilder.engine.remotes import Remotes
from obuilder.errors import StoreDamaged
from obuilder.plan.keys import layer_keys
from obuilder.plan.model import Base, Layer
from obuilder.spec.image import ImageConfig
from obuilder.values import Key


class Record(msgspec.Struct, frozen=True):
    """What the index knows of one result.

    `kind` is layer, run, copy, failed, volume, or remote for what only a cache in another place has.
    Times are seconds since 1970; `used` is 0 for what is unused: no build came by it that keeps it.
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


class Final(msgspec.Struct, frozen=True):
    """What is told of a result besides its files: where it began, an image's settings, and, of what
    a build came to, what went into it.
    """

    base: Base
    config: ImageConfig
    origin: Origin | None = None


_USED_STEP = 60.0
_COLUMNS = ", ".join(Record.__struct_fields__)


def _record(row: tuple[object, ...]) -> Record:
    named = dict(zip(Record.__struct_fields__, row, strict=True))
    return msgspec.convert(named, Record, strict=False)  # SQLite has no booleans


class Index(Remotes):
    """An open index. If it is `fresh`, the store should be asked what it has."""

    # --- results ---------------------------------------------------------------------------

    def find(
        self, keys: Iterable[Key], *, holders: Collection[str] = (), remote: bool = False
    ) -> dict[Key, Key]:
        """Which of `keys` have a result, each with the key the result stands under.

        `remote`: also those that only a cache in another place has. What is found is leased to the
        `holders` in the same transaction: nothing can be pruned between the look and the use.
        """
        found: dict[Key, Key] = {}
        query = (
            "SELECT r.key FROM results r WHERE r.key = coalesce("
            "(SELECT target FROM aliases WHERE key = ?1), ?1)"
            " AND kind != 'failed' AND (boot IS NULL OR boot = ?2)"
        )
        if not remote:
            query += " AND kind != 'remote'"
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
                    lease(db, found[key], holders)
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
            lease(db, record.key, holders)

    def alias(self, key: Key, target: Key) -> None:
        """Note that the step defined by `key` has the content-based key `target`."""
        if key != target:
            with self._write() as db:
                db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?)", (key, target))

    def aliases(self) -> list[tuple[Key, Key]]:
        """Every key by definition, with the content-based key it stands for."""
        rows = self._rows("SELECT key, target FROM aliases")
        return [(Key(str(key)), Key(str(target))) for key, target in rows]

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

    def unused(self, keys: Iterable[Key]) -> list[Key]:
        """Those that no build keeps."""
        query = "SELECT key FROM results WHERE key = ? AND used = 0"
        return [Key(str(row[0])) for key in keys for row in self._rows(query, key)]

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
            db.executemany("DELETE FROM finals WHERE key = ?", gone)
            db.executemany("DELETE FROM blobs WHERE key = ?", gone)
            db.executemany("DELETE FROM remotes WHERE key = ?", gone)

    def condemn(self, key: Key, dead: Collection[str], *, unused: bool = False) -> bool:
        """Take `key` out of the index unless a holder that is not `dead` leases it or it is pinned;
        with `unused`, unless a build keeps it by now.

        After True the caller owns the deletion: nobody can look the result up any more.
        """
        with self._write() as db:
            row = db.execute("SELECT pinned, used FROM results WHERE key = ?", (key,)).fetchone()
            if row is None or row[0] or (unused and row[1]):
                return False
            leases = db.execute("SELECT session FROM leases WHERE key = ?", (key,)).fetchall()
            if any(holder not in dead for (holder,) in leases):
                return False
            db.execute("DELETE FROM results WHERE key = ?", (key,))
            db.execute("DELETE FROM aliases WHERE target = ?", (key,))
            db.execute("DELETE FROM manifests WHERE source = ?", (key,))
            db.execute("DELETE FROM finals WHERE key = ?", (key,))
            db.execute("DELETE FROM blobs WHERE key = ?", (key,))
            db.execute("DELETE FROM remotes WHERE key = ?", (key,))
            db.execute("DELETE FROM leases WHERE key = ?", (key,))
        return True

    def lease(self, key: Key, holders: Iterable[str]) -> None:
        """Hold `key` for these, also before it has a result."""
        with self._write() as db:
            lease(db, key, holders)

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
        """Give `name` to an image; None takes the name away.

        Layers of images that have a name are never pruned.
        """
        with self._write() as db:
            if base is None:
                db.execute("DELETE FROM images WHERE name = ?", (os.fsencode(name),))
            else:
                value = msgspec.msgpack.encode(_paths(base, _as_text))
                db.execute(
                    "INSERT OR REPLACE INTO images VALUES (?, ?)", (os.fsencode(name), value)
                )
            _pin_layers(db)

    def image_rows(self) -> list[tuple[bytes, bytes]]:
        """Imported images as they are kept, to be put into another index."""
        rows = self._rows("SELECT name, base FROM images ORDER BY name")
        return [(_bytes(name), _bytes(base)) for name, base in rows]

    def put_image_row(self, name: bytes, base: bytes) -> None:
        """Take over an image of another index."""
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", (name, base))
            _pin_layers(db)

    # --- results as images --------------------------------------------------------------------

    def final(self, key: Key) -> Final | None:
        """What an image of a result says of itself, as the last build that ended with it had it."""
        rows = self._rows("SELECT said FROM finals WHERE key = ?", key)
        if not rows:
            return None
        try:
            said = _told(_bytes(rows[0][0]))
        except (msgspec.MsgspecError, ValueError):  # of another version, or another's stream
            return None
        return Final(_paths(said.base, _as_path), said.config, said.origin)

    def put_finals(self, finals: Mapping[Key, Final]) -> None:
        """Remember what images of results say; nothing is written where that is known."""
        new: list[tuple[Key, bytes]] = []
        for key, final in finals.items():
            said = _said(Final(_paths(final.base, _as_text), final.config, final.origin))
            if self._rows("SELECT said FROM finals WHERE key = ?", key) != [(said,)]:
                new.append((key, said))
        if new:
            with self._write() as db:
                db.executemany("INSERT OR REPLACE INTO finals VALUES (?, ?)", new)

    def final_rows(self) -> list[tuple[Key, bytes]]:
        """What images of results say, as it is kept, to be put into another index."""
        rows = self._rows("SELECT key, said FROM finals ORDER BY key")
        return [(Key(str(key)), _bytes(said)) for key, said in rows]

    def put_final_rows(self, rows: Iterable[tuple[Key, bytes]]) -> None:
        """Take over what another index has, of results that are here and of which nothing is known."""
        with self._write() as db:
            db.executemany(
                "INSERT OR IGNORE INTO finals SELECT ?1, ?2"
                " WHERE EXISTS (SELECT 1 FROM results WHERE key = ?1)",
                rows,
            )

    def blob(self, key: Key, form: str) -> bytes | None:
        """What is remembered of a result's layer, packed in that form."""
        rows = self._rows("SELECT said FROM blobs WHERE key = ? AND form = ?", key, form)
        return _bytes(rows[0][0]) if rows else None

    def put_blob(self, key: Key, form: str, said: bytes) -> None:
        """Remember what a result's layer is, packed: results never change, so as long as they live."""
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (key, form, said))

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


def _said(final: Final) -> bytes:
    try:
        return msgspec.msgpack.encode(final)
    except UnicodeEncodeError:  # bytes that are no text, in a variable say
        import json

        return b"j" + json.dumps(msgspec.to_builtins(final)).encode()


def _told(said: bytes) -> Final:
    if not said.startswith(b"j"):
        return msgspec.msgpack.decode(said, type=Final)
    import json

    return msgspec.convert(json.loads(said[1:]), Final)


def _pin_layers(db: sqlite3.Connection) -> None:
    named = [_base(row[0]) for row in db.execute("SELECT base FROM images")]
    keys = {(key,) for base in named for key in layer_keys(base)}
    db.execute("UPDATE results SET pinned = 0 WHERE kind = 'layer'")
    db.executemany("UPDATE results SET pinned = 1 WHERE key = ?", keys)


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
