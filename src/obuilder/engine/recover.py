"""What a start has to put right: dead sessions' leavings, results a power cut may have taken.

Crash-only: there is no clean shut-down to rely on, so this runs at every start that will build.
"""

import os
import time

import msgspec

from obuilder.backends.protocols import Sandbox, Store
from obuilder.engine.index import Index, Record
from obuilder.engine.locks import KeyLock, sweep_locks
from obuilder.engine.logs import remove_log
from obuilder.engine.run import Meta
from obuilder.errors import StoreError
from obuilder.system.sessions import alive
from obuilder.values import Key


async def recover(store: Store, sandbox: Sandbox, index: Index) -> None:
    """Make store and index agree again. Never touches what a live session owns."""
    await sandbox.recover()
    await store.recover()
    index.release(name for name in index.sessions() if not alive(store.directory, name))
    for key in index.lost():
        index.forget([key])
        await store.delete(key)
        remove_log(store.directory, key)
    if index.fresh:
        await rebuild(store, index)
    sweep_locks(store.directory)
    _sweep_partial_logs(store.directory)


async def rebuild(store: Store, index: Index) -> int:
    """Put every result into the index that the store has and the index does not. How many."""
    known = {record.key for record in index.records()}
    count = 0
    for key in await store.keys():
        if key in known:
            continue
        try:
            meta = msgspec.json.decode(await store.meta(key), type=Meta)
        except (msgspec.MsgspecError, StoreError):
            continue
        if meta.key != key:
            continue
        index.add(
            Record(
                key=key, kind=meta.kind, heading=meta.heading, stage=meta.stage,
                base=None if meta.base is None else Key(meta.base),
                created=meta.created, used=time.time(), seconds=meta.seconds,
            )
        )  # fmt: skip
        count += 1
    return count


def _sweep_partial_logs(directory: str) -> None:
    folder = os.path.join(directory, "logs")
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        key, _, suffix = name.partition(".")
        if suffix == "partial":
            lock = KeyLock(directory, key)
            if lock.try_acquire():
                try:
                    os.unlink(os.path.join(folder, name))
                except FileNotFoundError:
                    continue
                finally:
                    lock.release()
