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

from obuilder.backends.protocols import Draft, Mount, Root, Store
from obuilder.engine.index import Index, Record
from obuilder.engine.locks import held
from obuilder.engine.meta import written
from obuilder.errors import SnapshotMissing
from obuilder.plan.model import CacheMount
from obuilder.system.files import copy_tree
from obuilder.values import Key, User, shown

T = TypeVar("T")

_USUAL = 0o755


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
            roots = {
                (place, mode): await stack.enter_async_context(self._open(place, mount, user))
                for (place, mode), mount in wanted.items()
            }
            yield [
                Mount(
                    source=roots[volume_place(mount.id), mount.mode],
                    target=mount.target,
                    readonly=mount.mode == "read-only",
                )
                for mount in mounts
            ]

    @asynccontextmanager
    async def _open(self, place: str, mount: CacheMount, user: User) -> AsyncIterator[Root]:
        if mount.mode == "shared":
            root = await self._store.shared(place, mount.owner or user)
            await self._permit(root, mount)
            self._index.swap_generation(place, mount.id, None, None)
            yield root
        elif mount.mode == "read-only":
            async with self._view(place, mount, user) as root:
                yield root
        else:
            async with self._clone(place, mount, user) as root:
                yield root

    async def _permit(self, root: Root, mount: CacheMount) -> None:
        """Give the top directory the permissions that are asked for, if they are not the usual."""
        if mount.permissions not in (None, _USUAL):
            async with self._store.files(root, write=True) as path:
                os.chmod(path, mount.permissions or 0)

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
    async def _view(self, place: str, mount: CacheMount, user: User) -> AsyncIterator[Root]:
        async with AsyncExitStack() as stack:
            newest = await self._newest(stack, place, mount.id, self._store.view)
            if newest is not None:
                yield newest[1]
            else:
                draft = self._store.volume(_new_key(), base=None, owner=mount.owner or user)
                yield (await stack.enter_async_context(draft)).root

    @asynccontextmanager
    async def _clone(self, place: str, mount: CacheMount, user: User) -> AsyncIterator[Root]:
        async with AsyncExitStack() as stack:
            key = _new_key()
            old, draft = await self._draft(stack, place, mount.id, key, mount.owner or user)
            await self._permit(draft.root, mount)
            yield draft.root
            # Not reached when the step was cancelled or the builder broke: the clone is dropped.
            async with self._releasing(place):
                if self._index.generation(place) == old:
                    await self._release(draft, key, old, place, mount.id)
                elif mount.mode == "append":
                    await self._merge(draft.root, place, mount.id, mount.owner or user)

    async def _draft(
        self, stack: AsyncExitStack, place: str, name: str, key: Key, user: User
    ) -> tuple[Key | None, Draft]:
        """A clone of the newest generation, which is to be the generation `key`."""

        def begun(base: Key | None) -> AbstractAsyncContextManager[Draft]:
            return self._store.volume(key, base=base, owner=user)

        newest = await self._newest(stack, place, name, begun)
        return newest or (None, await stack.enter_async_context(begun(None)))

    def _releasing(self, place: str) -> AbstractAsyncContextManager[None]:
        return held(self._store.directory, release_lock(place))

    async def _merge(self, clone: Root, place: str, name: str, user: User) -> None:
        async with AsyncExitStack() as stack:
            key = _new_key()
            newest, draft = await self._draft(stack, place, name, key, user)
            async with (
                self._store.files(clone) as source,
                self._store.files(draft.root, write=True) as target,
            ):
                await anyio.to_thread.run_sync(lambda: copy_tree(source, target, existing="keep"))
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
            await self._store.remove_shared(place)
        return True


def _new_key() -> Key:
    return Key(os.urandom(32).hex())
