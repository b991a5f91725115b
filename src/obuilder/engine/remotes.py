"""What the index knows of caches in other places: results that only they have, and what was sent there.

A result of the kind remote has a row like any other, so lists, images and the next build see it; its
files come when somebody needs them. Then, or when a build makes it, the row becomes that of a result.
"""

import time
from collections.abc import Iterable

import msgspec

from obuilder.engine.database import Database, lease
from obuilder.values import Key

TYPE_CHECKING = False
if TYPE_CHECKING:  # a build that finds all here meets none
    from obuilder.engine.cache_entry import Remote

_GOOD = 86400.0
"""Seconds for which it is believed that what was sent is still there."""


class Remotes(Database):
    """The tables of caches in other places."""

    def add_remotes(self, found: "Iterable[Remote]", holders: Iterable[str]) -> None:
        """Note results that are in other places, unless they are here. They are leased to `holders`."""
        now, holders = time.time(), list(holders)
        with self._write() as db:
            for remote in found:
                link = remote.link
                db.execute(
                    "INSERT OR IGNORE INTO results VALUES (?, 'remote', ?, ?, ?, ?, ?, ?, 0, NULL)",
                    (
                        link.key, link.heading, link.stage, link.base, link.created, now,
                        link.seconds,
                    ),
                )  # fmt: skip
                said = msgspec.msgpack.encode(remote)
                db.execute("INSERT OR REPLACE INTO remotes VALUES (?, ?)", (link.key, said))
                lease(db, link.key, holders)

    def lease_all(self, keys: Iterable[Key], holder: str) -> None:
        """Hold all of these for one."""
        keys = list(keys)
        if keys:
            with self._write() as db:
                for key in keys:
                    lease(db, key, [holder])

    def remote(self, key: Key) -> "Remote | None":
        """Where a result is that is not here."""
        rows = self._rows(
            "SELECT said FROM remotes JOIN results USING (key) WHERE key = ? AND kind = 'remote'",
            key,
        )
        if not rows or not isinstance(rows[0][0], bytes):
            return None
        from obuilder.engine.cache_entry import Remote

        return msgspec.msgpack.decode(rows[0][0], type=Remote)

    def sent(self, place: str, keys: Iterable[Key]) -> set[Key]:
        """Which of these steps have an entry in a cache, as far as we know."""
        query = "SELECT key FROM sent WHERE place = ? AND key = ? AND at > ?"
        since = time.time() - _GOOD
        return {key for key in keys if self._rows(query, place, key, since)}

    def put_sent(self, place: str, key: Key, *, there: bool = True) -> None:
        """Note that a cache has an entry of a step, or that it has not."""
        with self._write() as db:
            if there:
                db.execute(
                    "INSERT OR REPLACE INTO sent VALUES (?, ?, ?)", (place, key, time.time())
                )
            else:
                db.execute("DELETE FROM sent WHERE place = ? AND key = ?", (place, key))
