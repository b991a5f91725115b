"""Cache volumes: snapshots under generation keys, so that every store has them alike.

A volume's name may be any bytes; on disk it is known by its hash. Modes:

- private: the step gets its own writable clone; it becomes the next generation if none has
  since (the first release wins), else it is dropped.
- locked: as private, but one step at a time, in all processes: nothing is lost.
- append: as private; if another generation came meanwhile, the clone's new names are added to it.
- shared: one directory that all its users see at once. It has no generations.
- read-only: a view of the newest generation.
"""

import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from obuilder.backends.protocols import Draft, HostDir, Mount, Root, Store
from obuilder.engine.index import Index, Record
from obuilder.engine.locks import KeyLock
from obuilder.errors import SnapshotMissing, UsageError
from obuilder.plan.model import CacheMount
from obuilder.system.files import copy_tree, remove_tree
from obuilder.values import Key, UnixUser, User

_POLL = 0.02


def volume_place(name: str) -> str:
    """What a volume is called on disk."""
    return hashlib.sha256(b"volume\0" + os.fsencode(name)).hexdigest()


class Volumes:
    """The cache volumes of one store."""

    def __init__(self, store: Store, index: Index, session: str) -> None:
        self._store, self._index, self._session = store, index, session

    @asynccontextmanager
    async def mounted(
        self, mounts: tuple[CacheMount, ...], user: User
    ) -> AsyncIterator[list[Mount]]:
        """The volumes of one step, released in reverse order, whether the step succeeds or not."""
        async with AsyncExitStack() as stack:
            yield [
                Mount(
                    source=await stack.enter_async_context(self._open(mount, user)),
                    target=mount.target,
                    readonly=mount.mode == "read-only",
                )
                for mount in mounts
            ]

    @asynccontextmanager
    async def _open(self, mount: CacheMount, user: User) -> AsyncIterator[str]:
        place = volume_place(mount.id)
        if mount.mode == "shared":
            path = os.path.join(self._store.directory, "volumes", place)
            os.makedirs(path, mode=0o755, exist_ok=True)
            self._own(path, user)
            self._index.swap_generation(place, mount.id, None, None)
            yield path
        elif mount.mode == "read-only":
            async with self._view(place, user) as path:
                yield path
        elif mount.mode == "locked":
            async with self._locked(place), self._clone(place, mount, user) as path:
                yield path
        else:
            async with self._clone(place, mount, user) as path:
                yield path

    @asynccontextmanager
    async def _locked(self, place: str) -> AsyncIterator[None]:
        lock = KeyLock(self._store.directory, place)
        while not lock.try_acquire():
            await anyio.sleep(_POLL)
        try:
            yield
        finally:
            lock.release()

    def _own(self, path: str, user: User) -> None:
        # Only the top, never what is in it: files keep whoever wrote them.
        if isinstance(user, UnixUser) and not self._store.idmap.single:
            os.chown(path, self._store.idmap.to_disk(user.uid), self._store.idmap.to_disk(user.gid))

    @asynccontextmanager
    async def _view(self, place: str, user: User) -> AsyncIterator[str]:
        generation = self._index.generation(place)
        async with AsyncExitStack() as stack:
            if generation is not None:
                self._index.lease(generation, self._session)
                root = await stack.enter_async_context(self._store.view(generation))
            else:
                draft = await stack.enter_async_context(self._store.begin(_new_key(), base=None))
                self._own(_directory(draft.root), user)
                root = draft.root
            yield _directory(root)

    @asynccontextmanager
    async def _clone(self, place: str, mount: CacheMount, user: User) -> AsyncIterator[str]:
        old, key = self._index.generation(place), _new_key()
        if old is not None:
            self._index.lease(old, self._session)
        try:
            draft, close = await _enter(self._store, key, old)
        except SnapshotMissing:  # deleted between the look and the use: start empty
            self._index.swap_generation(place, mount.id, old, None)
            old = None
            draft, close = await _enter(self._store, key, None)
        async with close:
            path = _directory(draft.root)
            self._own(path, user)
            yield path
            # Not reached when the step was cancelled or the builder broke: the clone is dropped.
            await self._publish(draft, key, old, place, mount)

    async def _publish(
        self, draft: Draft, key: Key, old: Key | None, place: str, mount: CacheMount
    ) -> None:
        if self._index.generation(place) == old:
            await draft.commit(b"{}")
            self._add(key, mount.id, old)
            if self._index.swap_generation(place, mount.id, old, key):
                await self._drop(old)
                return
            await self._drop(key)
            return
        if mount.mode == "append":
            await self._merge(_directory(draft.root), place, mount)

    async def _merge(self, clone: str, place: str, mount: CacheMount) -> None:
        async with self._locked(place + ".merge"):
            newest, key = self._index.generation(place), _new_key()
            draft, close = await _enter(self._store, key, newest)
            async with close:
                target = _directory(draft.root)
                await anyio.to_thread.run_sync(lambda: copy_tree(clone, target, existing="keep"))
                await draft.commit(b"{}")
            self._add(key, mount.id, newest)
            if self._index.swap_generation(place, mount.id, newest, key):
                await self._drop(newest)
            else:
                await self._drop(key)

    def _add(self, key: Key, name: str, old: Key | None) -> None:
        now = time.time()
        self._index.add(
            Record(
                key=key, kind="volume", heading=name, stage="", base=old,
                created=now, used=now, seconds=0.0, pinned=True,
            ),
            session=self._session,
        )  # fmt: skip

    async def _drop(self, key: Key | None) -> None:
        # Clones made from it are whole without it, so nobody needs an old generation.
        if key is not None:
            self._index.forget([key])
            await self._store.delete(key)

    async def delete(self, name: str) -> bool:
        """Delete a volume and all that is in it. False if there is none of that name."""
        place = volume_place(name)
        known = {row[0]: row[2] for row in self._index.volumes()}
        if place not in known:
            return False
        async with self._locked(place):
            generation = self._index.generation(place)
            self._index.drop_volume(place)
            await self._drop(generation)
            shared = os.path.join(self._store.directory, "volumes", place)
            await anyio.to_thread.run_sync(remove_tree, shared)
        return True


def _new_key() -> Key:
    return Key(os.urandom(32).hex())


def _directory(root: Root) -> str:
    if not isinstance(root, HostDir):
        raise UsageError("this store has no cache volumes that a step could mount")
    return root.path


async def _enter(store: Store, key: Key, base: Key | None) -> tuple[Draft, AsyncExitStack]:
    stack = AsyncExitStack()
    draft = await stack.enter_async_context(store.begin(key, base=base))
    return draft, stack
