"""Making room: the least recently used results go first, and nothing that anyone holds.

A result is first taken out of the index, in the transaction that sees that no live session
leases it, and only then deleted: nobody can look up what is being deleted.
"""

from obuilder.backends.protocols import Store
from obuilder.engine.index import Index, Record
from obuilder.engine.logs import remove_log
from obuilder.system.sessions import alive


def prunable(index: Index, *, before: float | None) -> list[Record]:
    """What may go, the least recently used first; failed roots before all else."""
    found = [
        record
        for record in index.records()
        if not record.pinned and (before is None or record.used < before)
    ]
    return sorted(found, key=lambda record: (record.kind != "failed", record.used))


async def prune(
    store: Store, index: Index, *, before: float | None, limit: int | None
) -> list[Record]:
    """Delete up to `limit` results not used since `before`. What was deleted."""
    living = {name for name in index.sessions() if alive(store.directory, name)}
    gone: list[Record] = []
    for record in prunable(index, before=before):
        if limit is not None and len(gone) >= limit:
            break
        if index.condemn(record.key, living):
            await store.delete(record.key)
            remove_log(store.directory, record.key)
            gone.append(record)
    return gone
