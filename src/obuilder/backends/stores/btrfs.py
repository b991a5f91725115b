"""Snapshots as btrfs subvolumes, by ioctl: no program is started.

    drafts/<session>.<n>/root    a writable snapshot, bind-mounted without devices
    results/<key>/root           a read-only snapshot of it

What is published is a new snapshot, so whoever still held the draft could not write to it.
"""

import errno
import fcntl
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import ClassVar, final

import anyio
import anyio.to_thread

from obuilder.backends.protocols import HostDir, Root
from obuilder.backends.stores.directory import (
    DirectoryStore,
    detach,
    disk_bytes,
    missing,
    translated,
    write_file,
)
from obuilder.errors import BackendUnavailable, ObuilderError, StoreError, StoreFull
from obuilder.system.files import remove_tree
from obuilder.values import IdMap, Key

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE, _DESTROY, _SNAPSHOT = 0x5000940E, 0x5000940F, 0x50009417
_SYNC = 0x9408
_GET_FLAGS, _SET_FLAGS, _NO_COW = 0x80086601, 0x40086602, 0x800000
_READ_ONLY = 2
_ROOT_INODE = 256  # of every subvolume


def _create(folder: str, name: str) -> None:
    with _opened(folder) as at:
        fcntl.ioctl(at, _CREATE, bytearray(struct.pack("=q4088s", 0, os.fsencode(name))))


def _snapshot(source: str, folder: str, name: str, *, readonly: bool) -> None:
    flags = _READ_ONLY if readonly else 0
    with _opened(source) as old, _opened(folder) as at:
        words = struct.pack("=qQQ4Q4040s", old, 0, flags, 0, 0, 0, 0, os.fsencode(name))
        fcntl.ioctl(at, _SNAPSHOT, bytearray(words))


def _destroy(folder: str, name: str) -> None:
    with _opened(folder) as at:
        fcntl.ioctl(at, _DESTROY, bytearray(struct.pack("=q4088s", 0, os.fsencode(name))))


def _write_in_place(folder: str) -> None:
    """Files made in `folder` from now on are written in place, which needs no new room.

    SQLite maps a part of the index into memory. Where each write takes room of its own, a full
    disk ends the process there, at a mere store to memory (before Linux 6.16 in any case).
    """
    with _opened(folder) as at, suppress(OSError):
        flags = bytearray(8)
        fcntl.ioctl(at, _GET_FLAGS, flags)
        (found,) = struct.unpack("=q", flags)
        if not found & _NO_COW:
            fcntl.ioctl(at, _SET_FLAGS, struct.pack("=q", found | _NO_COW))


@final
class _opened:  # noqa: N801 - used as a function
    """A directory's descriptor, for as long as a context lasts."""

    def __init__(self, path: str) -> None:
        self._path, self._fd = path, -1

    def __enter__(self) -> int:
        self._fd = os.open(self._path, _FOLDER)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


@final
class BtrfsDraft:
    """See `Draft`."""

    def __init__(self, store: "BtrfsStore", name: str, key: Key) -> None:
        self._store, self._key = store, key
        self.name = name
        self.root: Root = HostDir(store.path("mnt", name))
        self.done = False

    async def commit(self, meta: bytes, *, key: Key | None = None) -> None:
        """See `Draft`."""
        await self._store.commit(self, meta, key or self._key)


@final
class BtrfsStore(DirectoryStore):
    """See `Store`. Made by `open`."""

    kind: ClassVar[str] = "btrfs"

    @classmethod
    async def open(cls, directory: str, idmap: IdMap, *, session: str) -> "BtrfsStore":
        """Open, or make, the store. BackendUnavailable, StoreError."""
        store = cls(directory, idmap, session)
        store._prepare()
        _write_in_place(store.directory)
        try:
            async with store.begin(Key("0" * 64), base=None):
                pass
        except StoreFull:
            await store.close()
            raise
        except ObuilderError as error:
            await store.close()
            raise BackendUnavailable(
                f"{store.directory} can't keep btrfs snapshots: {error.message}",
                hint="put the store on btrfs (an ordinary user's mounted with "
                "user_subvol_rm_allowed), or use --store=overlayfs:DIRECTORY",
            ) from error
        except BaseException:
            await store.close()
            raise
        return store

    def _let_go(self) -> None:
        """Nothing is kept open."""

    def _sync(self) -> None:
        super()._sync()
        # Unlike syncfs, this also starts freeing what deleted snapshots took.
        with _opened(self.directory) as at, translated("can't write the store to disk"):
            fcntl.ioctl(at, _SYNC)

    def _swept(self) -> None:
        """Nothing is shared between results."""

    # --- drafts and views ------------------------------------------------------------------------

    @asynccontextmanager
    async def begin(self, key: Key, *, base: Key | None) -> AsyncIterator[BtrfsDraft]:
        """See `Store`."""
        name = self._draft_name()
        place = self.path("drafts", name)
        draft = BtrfsDraft(self, name, key)
        try:
            with translated("can't start a draft"):
                os.mkdir(place)
                if base is None:
                    _create(place, "root")
                    self._own_root(os.path.join(place, "root"))
                else:
                    try:
                        _snapshot(self.path("results", base, "root"), place, "root", readonly=False)
                    except FileNotFoundError:
                        raise missing(base) from None
                self._bind(os.path.join(place, "root"), name, readonly=False)
            yield draft
        finally:
            if not draft.done:
                detach(self.path("mnt", name))
                with translated("can't remove a draft"):
                    await self._drop(place)

    @asynccontextmanager
    async def view(self, key: Key) -> AsyncIterator[Root]:
        """See `Store`."""
        name = self._draft_name()
        place = self.path("drafts", name)
        try:
            with translated("can't show a result"):
                # A snapshot of its own, so that a result may be deleted while it is looked at.
                os.mkdir(place)
                try:
                    _snapshot(self.path("results", key, "root"), place, "root", readonly=True)
                except FileNotFoundError:
                    raise missing(key) from None
                self._bind(os.path.join(place, "root"), name, readonly=True)
            yield HostDir(self.path("mnt", name))
        finally:
            detach(self.path("mnt", name))
            with translated("can't let go of a result"):
                await self._drop(place)

    # --- publishing and removing ----------------------------------------------------------------

    async def commit(self, draft: BtrfsDraft, meta: bytes, key: Key) -> None:
        """Publish a draft of this store; the draft's own `commit` calls it."""
        if draft.done:
            raise StoreError("the draft is published already")
        place = self.path("drafts", draft.name)
        with translated("can't publish a result"):
            await self._freeze(self.path("mnt", draft.name), whole=False)
            detach(self.path("mnt", draft.name))
            finished = os.path.join(place, "result")
            os.mkdir(finished)
            write_file(os.path.join(finished, "meta"), meta)
            await anyio.to_thread.run_sync(
                lambda: _snapshot(os.path.join(place, "root"), finished, "root", readonly=True)
            )
            self._publish(finished, key)
            draft.done = True
            await self._drop(place)

    async def delete(self, key: Key) -> None:
        """See `Store`."""
        place = self.path("drafts", self._draft_name())
        with anyio.CancelScope(shield=True), translated("can't delete a result"):
            os.mkdir(place)
            with suppress(FileNotFoundError):
                os.rename(self.path("results", key), os.path.join(place, "deleted"))
            await self._drop(place)

    def _remove(self, path: str) -> None:
        for folder in (path, os.path.join(path, "result"), os.path.join(path, "deleted")):
            try:
                found = os.stat(os.path.join(folder, "root"), follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if found.st_ino == _ROOT_INODE:
                self._remove_subvolume(folder)
        remove_tree(path)

    def _remove_subvolume(self, folder: str) -> None:
        try:
            _destroy(folder, "root")
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            # A step made subvolumes of its own. Only what is still writable can hold any.
            remove_tree(os.path.join(folder, "root"))

    async def size(self, key: Key) -> int:
        """See `Store`. What it shares with others is counted too: btrfs tells no better cheaply."""
        root = self.path("results", key, "root")
        if not os.path.isdir(root):
            raise missing(key)
        return await anyio.to_thread.run_sync(disk_bytes, root)
