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
    """What may go, the least recently used first; failed roots before all else."""
    found = [
        record
        for record in index.records()
        if not record.pinned and (before is None or record.used < before)
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
    living = _living(store, index)
    gone: list[Record] = []
    for record in prunable(index, before=before):
        if (limit is not None and len(gone) >= limit) or (keep is not None and total <= keep):
            break
        if dry_run:
            gone.append(record)
            total -= sizes.get(record.key, 0)
            continue
        lock = KeyLock(store.directory, record.key)
        if not lock.try_acquire():
            continue
        try:
            if index.condemn(record.key, living):
                await store.delete(record.key)
                remove_log(store.directory, record.key)
                gone.append(record)
                total -= sizes.get(record.key, 0)
        finally:
            lock.release()
    return gone


async def forget(store: Store, index: Index, keys: Iterable[Key]) -> None:
    """Delete these results, but for those that a living build holds: they are to be made anew."""
    living = _living(store, index)
    for key in keys:
        async with held(store.directory, key):
            if index.condemn(key, living):
                await store.delete(key)
                remove_log(store.directory, key)


def _living(store: Store, index: Index) -> set[str]:
    """Who holds leases and is alive."""
    return {
        holder for holder, session in index.holders().items() if alive(store.directory, session)
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
