"""Cache volumes: snapshots under generation keys, so that every store has them alike.

A volume's name may be any bytes; on disk it is known by its hash. Modes:

- private: the step gets its own writable clone; it becomes the next generation if none has
  since (the first release wins), else it is dropped.
- locked: as private, but one step at a time, in all processes: nothing is lost where all are.
- append: as private; if another generation came meanwhile, the clone's new names are added to it.
- shared: one directory that all its users see at once. It has no generations.
- read-only: a view of the newest generation.

A `locked` volume's lock is held while the step runs, and those of one step are taken in one order
for all steps. The lock of releases is held for an instant, while no other is waited for.
"""

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar

import anyio

from obuilder.backends.protocols import Draft, HostDir, Mount, Root, Store
from obuilder.engine.index import Index, Record
from obuilder.engine.locks import held
from obuilder.engine.meta import written
from obuilder.errors import SnapshotMissing, UsageError
from obuilder.plan.model import CacheMount
from obuilder.system.files import copy_tree, remove_tree
from obuilder.values import Key, UnixUser, User, shown

T = TypeVar("T")


def volume_place(name: str) -> str:
    """What a volume is called on disk."""
    return hashlib.sha256(b"volume\0" + os.fsencode(name)).hexdigest()


def release_lock(place: str) -> str:
    """The lock under which a volume gets another generation, or loses the one it has."""
    return f"{place}.release"


class Volumes:
    """The cache volumes of one store."""

    def __init__(self, store: Store, index: Index) -> None:
        self._store, self._index = store, index

    @asynccontextmanager
    async def mounted(
        self, mounts: tuple[CacheMount, ...], user: User
    ) -> AsyncIterator[list[Mount]]:
        """The volumes of one step, released in reverse order, whether the step succeeds or not.

        A volume that is named twice in one mode is opened once.
        """
        wanted = {(volume_place(mount.id), mount.mode): mount for mount in mounts}
        async with AsyncExitStack() as stack:
            for place in sorted({place for place, mode in wanted if mode == "locked"}):
                await stack.enter_async_context(held(self._store.directory, place))
            paths = {
                (place, mode): await stack.enter_async_context(self._open(place, mount, user))
                for (place, mode), mount in wanted.items()
            }
            yield [
                Mount(
                    source=paths[volume_place(mount.id), mount.mode],
                    target=mount.target,
                    readonly=mount.mode == "read-only",
                )
                for mount in mounts
            ]

    @asynccontextmanager
    async def _open(self, place: str, mount: CacheMount, user: User) -> AsyncIterator[str]:
        if mount.mode == "shared":
            path = os.path.join(self._store.directory, "volumes", place)
            os.makedirs(path, mode=0o755, exist_ok=True)
            self._own(path, mount, user)
            self._index.swap_generation(place, mount.id, None, None)
            yield path
        elif mount.mode == "read-only":
            async with self._view(place, mount, user) as path:
                yield path
        else:
            async with self._clone(place, mount, user) as path:
                yield path

    def _own(self, path: str, mount: CacheMount, user: User) -> None:
        # Only the top, never what is in it: files keep whoever wrote them.
        user = mount.owner or user
        if mount.permissions is not None:
            os.chmod(path, mount.permissions)
        if isinstance(user, UnixUser) and not self._store.idmap.single:
            os.chown(path, self._store.idmap.to_disk(user.uid), self._store.idmap.to_disk(user.gid))

    async def _newest(
        self,
        stack: AsyncExitStack,
        place: str,
        name: str,
        opened: Callable[[Key], AbstractAsyncContextManager[T]],
    ) -> tuple[Key, T] | None:
        """The newest generation, opened; None where there is none."""
        while (newest := self._index.generation(place)) is not None:
            try:
                return newest, await stack.enter_async_context(opened(newest))
            except SnapshotMissing:
                # Another was released in between; or else it is lost, and not the newest any more.
                self._index.swap_generation(place, name, newest, None)
        return None

    @asynccontextmanager
    async def _view(self, place: str, mount: CacheMount, user: User) -> AsyncIterator[str]:
        async with AsyncExitStack() as stack:
            newest = await self._newest(stack, place, mount.id, self._store.view)
            if newest is not None:
                yield _directory(newest[1])
            else:
                draft = await stack.enter_async_context(self._store.begin(_new_key(), base=None))
                self._own(_directory(draft.root), mount, user)
                yield _directory(draft.root)

    @asynccontextmanager
    async def _clone(self, place: str, mount: CacheMount, user: User) -> AsyncIterator[str]:
        async with AsyncExitStack() as stack:
            key = _new_key()
            old, draft = await self._draft(stack, place, mount.id, key)
            path = _directory(draft.root)
            self._own(path, mount, user)
            yield path
            # Not reached when the step was cancelled or the builder broke: the clone is dropped.
            async with self._releasing(place):
                if self._index.generation(place) == old:
                    await self._release(draft, key, old, place, mount.id)
                elif mount.mode == "append":
                    await self._merge(path, place, mount.id)

    async def _draft(
        self, stack: AsyncExitStack, place: str, name: str, key: Key
    ) -> tuple[Key | None, Draft]:
        """A clone of the newest generation, which is to be the generation `key`."""
        newest = await self._newest(
            stack, place, name, lambda base: self._store.begin(key, base=base)
        )
        return newest or (
            None, await stack.enter_async_context(self._store.begin(key, base=None))
        )  # fmt: skip

    def _releasing(self, place: str) -> AbstractAsyncContextManager[None]:
        return held(self._store.directory, release_lock(place))

    async def _merge(self, clone: str, place: str, name: str) -> None:
        async with AsyncExitStack() as stack:
            key = _new_key()
            newest, draft = await self._draft(stack, place, name, key)
            target = _directory(draft.root)
            await anyio.to_thread.run_sync(lambda: copy_tree(clone, target, existing="keep"))
            await self._release(draft, key, newest, place, name)

    async def _release(
        self, draft: Draft, key: Key, old: Key | None, place: str, name: str
    ) -> None:
        now = time.time()
        record = Record(
            key=key, kind="volume", heading=shown(name), stage="", base=old,
            created=now, used=now, seconds=0.0, pinned=True,
        )  # fmt: skip
        with anyio.CancelScope(shield=True):
            await draft.commit(written(record, volume=name))
            self._index.add(record)
            self._index.swap_generation(place, name, old, key)
            # Clones made from it are whole without it, so nobody needs an old generation.
            await self._drop(old)

    async def _drop(self, key: Key | None) -> None:
        if key is not None:
            self._index.forget([key])
            await self._store.delete(key)

    async def delete(self, name: str) -> bool:
        """Delete a volume and all that is in it. False if there is none of that name."""
        place = volume_place(name)
        if all(known != place for known, *_ in self._index.volumes()):
            return False
        async with held(self._store.directory, place), self._releasing(place):
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
