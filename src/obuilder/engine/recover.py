"""What a start has to put right: dead sessions' leavings, results a power cut may have taken.

Crash-only: there is no clean shut-down to rely on, so this runs at every start that will build.
"""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from obuilder.backends.protocols import Sandbox, Store
from obuilder.engine.database import boot_id, index_path
from obuilder.engine.index import Index
from obuilder.engine.locks import KeyLock, sweep_locks
from obuilder.engine.logs import logged, remove_log
from obuilder.engine.meta import Meta, read, recorded
from obuilder.engine.volumes import release_lock, volume_place
from obuilder.errors import SnapshotMissing, StoreDamaged
from obuilder.oci.downloads import sweep
from obuilder.system.sessions import alive, dead_sessions, remove_session
from obuilder.values import Key

_ABANDONED = 7 * 86400.0
"""Seconds after which nobody is expected to go on with a pull that was never finished."""


async def recover(store: Store, sandbox: Sandbox, index: Index) -> None:
    """Make store and index agree again. Never touches what a live session owns."""
    # Their names go last: who dies in here leaves the work to the next one.
    dead = dead_sessions(store.directory)
    await sandbox.recover()
    await store.recover()
    index.release(
        holder for holder, session in index.holders().items() if not alive(store.directory, session)
    )
    for key in index.lost():
        index.forget([key])
        await store.delete(key)
        remove_log(store.directory, key)
    if dead or index.fresh:
        await _reconcile(store, index)
        _sweep_logs(store.directory, index)
    sweep_locks(store.directory)
    sweep(store.directory, before=time.time() - _ABANDONED)
    for name in dead:
        remove_session(store.directory, name)


@asynccontextmanager
async def noticing_loss(store: Store, index: Index) -> AsyncIterator[None]:
    """If a result turns out to be missing, all that are: the next build makes them anew.

    Somebody may have removed files or images behind our back, and rarely one of them alone.
    """
    try:
        yield
    except SnapshotMissing:
        with anyio.CancelScope(shield=True):
            for record in index.records():
                if record.kind != "remote" and not await store.contains(record.key):
                    index.forget([record.key])
                    await store.delete(record.key)
                    remove_log(store.directory, record.key)
        raise


async def adopt(store: Store, index: Index, key: Key) -> bool:
    """Put a result into the index that only the store has; True if there is one.

    For the holder of the key's lock. What another boot left is not trusted but dropped, except
    when the index is new: then the store is all there is.
    """
    try:
        found = read(await store.meta(key))
    except SnapshotMissing:
        return False
    if found is None or (found.boot != boot_id() and not index.fresh):
        await store.delete(key)
        return False
    index.add(recorded(found))
    return True


async def _reconcile(store: Store, index: Index) -> None:
    """Who died in the middle of a change left it in the store or in the index alone."""
    records = {record.key: record for record in index.records()}
    newest = {generation for _, _, generation, _ in index.volumes()}
    strangers = list[Meta]()
    for key in await store.keys():
        record = records.get(key)
        if record is None or (record.kind == "volume" and key not in newest):
            try:
                found = read(await store.meta(key))
            except SnapshotMissing:
                continue
            if found is not None and found.key == key:
                strangers.append(found)
    for found in sorted(strangers, key=lambda found: found.created, reverse=True):
        name = None if found.volume is None else os.fsdecode(found.volume)
        lock = KeyLock(
            store.directory, found.key if name is None else release_lock(volume_place(name))
        )
        if not lock.try_acquire():
            continue  # somebody alive is about to finish the change
        try:
            if name is not None:
                await _generation(store, index, found, name)
            elif not index.record(found.key):
                await adopt(store, index, Key(found.key))
        finally:
            lock.release()


async def _generation(store: Store, index: Index, found: Meta, name: str) -> None:
    """Keep a generation if it is the volume's newest, or if there is no other any more."""
    key, place = Key(found.key), volume_place(name)
    if index.fresh and index.swap_generation(place, name, None, key):
        index.add(recorded(found))
    elif index.generation(place) != key:
        index.forget([key])
        await store.delete(key)


def _sweep_logs(directory: str, index: Index) -> None:
    """Remove the logs of attempts that were never finished."""
    for key in logged(directory):
        lock = KeyLock(directory, key)
        if not index.record(key) and lock.try_acquire():
            try:
                if not index.record(key):
                    remove_log(directory, key)
            finally:
                lock.release()


def open_index(directory: str) -> Index:
    """The index of a store; a damaged one is begun anew. StoreError."""
    try:
        return Index(directory)
    except StoreDamaged:
        # The store has all that the index knows: put the damaged file aside and start anew.
        path = index_path(directory)
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(path + suffix):
                os.replace(path + suffix, f"{path}.damaged{suffix}")
        return Index(directory)
