"""Making room: the least recently used results go first, and nothing that anyone holds.

A result is first taken out of the index, in the transaction that sees that no live session
leases it, and only then deleted: nobody can look up what is being deleted. All under the key's
lock: nobody makes it anew in between, to lose what was just made.
"""

from collections.abc import Iterable

from obuilder.backends.protocols import Store
from obuilder.engine.index import Index, Record
from obuilder.engine.locks import KeyLock, held
from obuilder.engine.logs import remove_log
from obuilder.errors import SnapshotMissing
from obuilder.oci.downloads import sweep
from obuilder.system.sessions import alive
from obuilder.values import Key


def prunable(index: Index, *, before: float | None) -> list[Record]:
    """What may go, the least recently used first; failed roots before all else, then what no build
    keeps.
    """
    found = [
        record
        for record in index.records()
        if not record.pinned and (before is None or (record.used or record.created) < before)
    ]
    return sorted(found, key=lambda record: (record.kind != "failed", record.used))


async def taken(store: Store, key: Key) -> int:
    """Bytes that a result adds to what it was made from: none, if only its log was kept."""
    try:
        return await store.size(key)
    except SnapshotMissing:
        return 0


async def prune(
    store: Store,
    index: Index,
    *,
    before: float | None = None,
    limit: int | None = None,
    keep: int | None = None,
    dry_run: bool = False,
) -> list[Record]:
    """Delete up to `limit` results not used since `before`, until all take `keep` bytes or less.

    Blobs of pulls that were never finished go first. What was deleted; with `dry_run`, what would
    be if nobody held it.
    """
    if not dry_run:
        sweep(store.directory, before=before)
    sizes: dict[Key, int] = {}
    if keep is not None:
        sizes = {record.key: await taken(store, record.key) for record in index.records()}
    total = sum(sizes.values())
    dead = _dead(store, index)
    gone: list[Record] = []
    for record in prunable(index, before=before):
        if (limit is not None and len(gone) >= limit) or (keep is not None and total <= keep):
            break
        if dry_run:
            gone.append(record)
            total -= sizes.get(record.key, 0)
            continue
        if await _dropped(store, index, record.key, dead):
            gone.append(record)
            total -= sizes.get(record.key, 0)
    return gone


async def drop_unused(
    store: Store, index: Index, keys: Iterable[Key], *, kept: Iterable[Key]
) -> None:
    """Delete those of `keys` that no build keeps or holds, and all of them that stays in `kept`."""
    if found := index.unused(keys):
        dead = _dead(store, index)
        if [key for key in found if await _dropped(store, index, key, dead, unused=True)]:
            for key in kept:
                await store.compact(key)


async def _dropped(
    store: Store, index: Index, key: Key, dead: set[str], *, unused: bool = False
) -> bool:
    """Delete a result, unless somebody holds it or is making it anew. See `Index.condemn`."""
    lock = KeyLock(store.directory, key)
    if not lock.try_acquire():
        return False
    try:
        if not index.condemn(key, dead, unused=unused):
            return False
        await store.delete(key)
        remove_log(store.directory, key)
    finally:
        lock.release()
    return True


async def forget(store: Store, index: Index, keys: Iterable[Key]) -> None:
    """Delete these results, but for those that a living build holds: they are to be made anew."""
    dead = _dead(store, index)
    for key in keys:
        async with held(store.directory, key):
            if index.condemn(key, dead):
                await store.delete(key)
                remove_log(store.directory, key)


def _dead(store: Store, index: Index) -> set[str]:
    """Who holds leases and lives no more. Who comes to hold one after this call is not in it."""
    return {
        holder for holder, session in index.holders().items() if not alive(store.directory, session)
    }


async def delete(store: Store, index: Index, first: Key) -> int:
    """Delete a result and all that was made from it, whoever holds them. How many."""
    children: dict[Key | None, list[Key]] = {}
    for record in index.records():
        children.setdefault(record.base, []).append(record.key)
    doomed, ahead = list[Key](), [first]
    while ahead:
        key = ahead.pop()
        doomed.append(key)
        ahead.extend(children.get(key, []))
    for key in reversed(doomed):
        async with held(store.directory, key):
            index.forget([key])
            await store.delete(key)
            remove_log(store.directory, key)
    return len(doomed)
