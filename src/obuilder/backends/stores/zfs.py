"""Snapshots of ZFS: what is built on end is one dataset, with a snapshot for every result.

    NAME/state               mounted on the store's directory
    NAME/roots/D@N-KEY       the result KEY, the Nth step in the dataset D
    results/<key>/snapshot   its name
    heads/<D@N-KEY>          D is as it was then, nobody works on it, and it may be taken on
    drafts/<session>.<n>/    dataset: the D, or D@N-KEY, that is in this draft's hands

A step takes the head of its base's dataset on, if it is there to be had, and makes a clone else.
So a chain of steps costs one command each, `zfs snapshot`, and only where builds branch there is a
new dataset. A snapshot that is deleted while clones stand on it goes with the last of them; a
dataset all of whose results are gone hands what clones need over to one of them (`zfs promote`).
So there are never more than two snapshots to a result.

A dataset that no head and no draft names is at rest: who finds it so, holding `heads.lock` alone,
may settle it. Names come and go by rename. From heads to drafts that is free; back from drafts to
heads it needs the lock, shared, so that who looks at heads first and then at drafts misses none.
"""

import fcntl
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import ClassVar, final

import anyio
import anyio.to_thread

from obuilder.backends.protocols import HostDir, Root, Usage
from obuilder.backends.stores.directory import DirectoryStore, missing, translated, write_file
from obuilder.backends.stores.zfs_command import NoDataset, Zfs, provide
from obuilder.backends.stores.zfs_mounts import detach, mounted_at
from obuilder.errors import BackendUnavailable, StoreBusy, StoreError, StoreFull
from obuilder.system.files import remove_tree
from obuilder.system.sessions import alive
from obuilder.values import IdMap, Key

_DATASET = re.compile(r"([0-9a-f]{16})\.[0-9]+")
_SNAPSHOT = re.compile(r".+@[0-9]+-([0-9a-f]{64})")


@final
class ZfsDraft:
    """See `Draft`."""

    def __init__(self, store: "ZfsStore", name: str, key: Key) -> None:
        self._store, self._key = store, key
        self.name, self.dataset, self.steps = name, name, 0
        self.root: Root = HostDir(store.path("mnt", name))
        self.done = False

    async def commit(self, meta: bytes, *, key: Key | None = None) -> None:
        """See `Draft`."""
        await self._store.commit(self, meta, key or self._key)


@final
class ZfsStore(DirectoryStore):
    """See `Store`. Made by `open`."""

    kind: ClassVar[str] = "zfs"
    folders: ClassVar[tuple[str, ...]] = ("results", "drafts", "mnt", "heads")

    def __init__(self, directory: str, idmap: IdMap, session: str, zfs: Zfs) -> None:
        super().__init__(directory, idmap, session)
        self._zfs = zfs

    @classmethod
    def prepare(cls, directory: str) -> None:
        """See `StoreClass`."""
        if os.geteuid() != 0:
            raise BackendUnavailable(
                "a store on ZFS is for root alone: nobody else may mount it",
                hint="use --store=overlayfs:DIRECTORY",
            )
        provide(directory)

    @classmethod
    async def open(cls, directory: str, idmap: IdMap, *, session: str) -> "ZfsStore":
        """Open, or make, the store. BackendUnavailable, StoreError."""
        found = mounted_at(directory)
        if found is None:
            raise BackendUnavailable(f"no ZFS is mounted on {directory}")
        zfs = Zfs(found)
        store = cls(directory, idmap, session, zfs)
        try:
            if not os.path.exists(store.path("store.json")):
                await anyio.to_thread.run_sync(zfs.make_parent)
            store._prepare()
        except BaseException:
            await store.close()
            raise
        return store

    def _let_go(self) -> None:
        self._zfs.close()

    # --- who has what ----------------------------------------------------------------------------

    @contextmanager
    def _locked(self, *, alone: bool) -> Iterator[None]:
        fd = os.open(self.path("heads.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    def _snapshot(self, key: Key) -> str:
        snapshot = _text(self.path("results", key, "snapshot"))
        if snapshot is None:
            raise missing(key)
        return snapshot

    def _is_result(self, snapshot: str) -> bool:
        key = snapshot.rpartition("-")[2]
        return _text(self.path("results", key, "snapshot")) == snapshot

    def _take(self, snapshot: str, place: str) -> bool:
        """Take a head on, if it is there to be had."""
        try:
            os.rename(self.path("heads", snapshot), os.path.join(place, "dataset"))
        except FileNotFoundError:
            return False
        return True

    def _in_use(self, dataset: str, *, but: str) -> bool:
        """Whether a head, or another draft than `but`, names it."""
        if any(_dataset(head) == dataset for head in os.listdir(self.path("heads"))):
            return True
        drafts = self.path("drafts")
        places = (os.path.join(drafts, name) for name in os.listdir(drafts))
        return any(_dataset(_held(place) or "") == dataset for place in places if place != but)

    # --- drafts and views ------------------------------------------------------------------------

    @asynccontextmanager
    async def begin(self, key: Key, *, base: Key | None) -> AsyncIterator[ZfsDraft]:
        """See `Store`."""
        draft = ZfsDraft(self, self._draft_name(), key)
        try:
            with translated("can't start a draft"):
                await anyio.to_thread.run_sync(self._begin, draft, base)
            yield draft
        finally:
            if not draft.done:
                await self._leave(draft.name)

    def _begin(self, draft: ZfsDraft, base: Key | None) -> None:
        place, root = self._place(draft.name), self.path("mnt", draft.name)
        if base is None:
            _note(place, draft.dataset)
            self._zfs.create(draft.dataset)
            self._zfs.attach(draft.dataset, root, writable=True)
            self._own_root(root)
            return
        snapshot = self._snapshot(base)
        draft.steps = _steps(snapshot)
        if self._may_take(place) and self._take(snapshot, place):
            draft.dataset = _dataset(snapshot)
            try:
                self._zfs.attach(draft.dataset, root, writable=True)
                return
            except StoreBusy:  # what held a descriptor could write into this draft too
                self._offer(snapshot, place)
                draft.dataset = draft.name
        self._branch(snapshot, place, draft.dataset, base)
        self._zfs.attach(draft.dataset, root, writable=True)

    def _may_take(self, place: str) -> bool:
        """Whether nobody that works now can have kept a descriptor of a step that is over."""
        return self._zfs.keep_out or os.listdir(self.path("drafts")) == [os.path.basename(place)]

    @asynccontextmanager
    async def view(self, key: Key) -> AsyncIterator[Root]:
        """See `Store`."""
        name = self._draft_name()
        try:
            with translated("can't show a result"):
                await anyio.to_thread.run_sync(self._view, name, key)
            yield HostDir(self.path("mnt", name))
        finally:
            await self._leave(name)

    def _view(self, name: str, key: Key) -> None:
        # A clone, so that a result may be deleted while it is looked at.
        self._branch(self._snapshot(key), self._place(name), name, key)
        self._zfs.attach(name, self.path("mnt", name), writable=False)

    def _place(self, name: str) -> str:
        place = self.path("drafts", name)
        os.mkdir(place)
        os.mkdir(self.path("mnt", name))
        return place

    def _branch(self, snapshot: str, place: str, dataset: str, key: Key) -> None:
        write_file(os.path.join(place, "origin"), snapshot.encode())
        _note(place, dataset)
        try:
            self._zfs.clone(snapshot, dataset)
        except NoDataset:
            raise missing(key) from None

    async def _leave(self, name: str) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._let_go_of, name)

    def _let_go_of(self, name: str) -> None:
        with suppress(StoreError, OSError):  # never in the place of the first error
            detach(self.path("mnt", name))
            self._clear(self.path("drafts", name))

    # --- publishing ------------------------------------------------------------------------------

    async def commit(self, draft: ZfsDraft, meta: bytes, key: Key) -> None:
        """Publish a draft of this store; the draft's own `commit` calls it."""
        if draft.done:
            raise StoreError("the draft is published already")
        with translated("can't publish a result"):
            await self._freeze(self.path("mnt", draft.name), whole=True)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._commit, draft, meta, key)

    def _commit(self, draft: ZfsDraft, meta: bytes, key: Key) -> None:
        with suppress(StoreBusy):  # somebody only reads, which is no harm
            detach(self.path("mnt", draft.name))
        place = self.path("drafts", draft.name)
        snapshot = f"{draft.dataset}@{draft.steps + 1}-{key}"
        _note(place, snapshot)
        self._zfs.snapshot(snapshot)
        finished = os.path.join(place, "result")
        os.mkdir(finished)
        write_file(os.path.join(finished, "meta"), meta)
        write_file(os.path.join(finished, "snapshot"), snapshot.encode())
        published = self._publish(finished, key)
        draft.done = True
        if published:
            with suppress(OSError):
                self._offer(snapshot, place)
        self._remove(place)

    def _offer(self, snapshot: str, place: str) -> None:
        """Let others take the head on; unless its result is deleted already."""
        with self._locked(alone=False):
            os.rename(os.path.join(place, "dataset"), self.path("heads", snapshot))
        if not self._is_result(snapshot):
            self._take(snapshot, place)

    # --- removing --------------------------------------------------------------------------------

    async def delete(self, key: Key) -> None:
        """See `Store`."""
        with anyio.CancelScope(shield=True), translated("can't delete a result"):
            await anyio.to_thread.run_sync(self._delete, key)

    def _delete(self, key: Key) -> None:
        snapshot = _text(self.path("results", key, "snapshot"))
        if snapshot is None:
            return
        place = self.path("drafts", self._draft_name())
        os.mkdir(place)
        self._take(snapshot, place)
        with suppress(FileNotFoundError):  # another process was the first
            os.rename(self.path("results", key), os.path.join(place, "deleted"))
        with suppress(StoreBusy):  # the next recovery tries again
            self._clear(place)

    def _remove(self, path: str) -> None:
        with suppress(StoreError, OSError):  # the next recovery tries again
            self._clear(path)

    def _clear(self, place: str) -> None:
        """Give up what a draft, a view or a deletion has in its hands, and remove its directory."""
        remove_tree(os.path.join(place, "result"))  # what fills the disk first
        deleted = _text(os.path.join(place, "deleted", "snapshot"))
        if deleted is not None:
            self._zfs.destroy_snapshot(deleted)
        held = _held(place)
        if held is not None and "@" not in held:  # never published, so nobody else's
            self._zfs.destroy(held)
            held = _text(os.path.join(place, "origin"))
        if held is None:
            remove_tree(place)
            return
        with self._locked(alone=True):
            self._settle(_dataset(held), but=place)
            remove_tree(place)

    def _settle(self, dataset: str, *, but: str) -> None:
        """Destroy what no result needs of a dataset that is at rest. Needs the lock."""
        while dataset and not self._in_use(dataset, but=but):
            try:
                origin, snapshots = self._zfs.snapshots(dataset)
            except NoDataset:
                return
            live, ours = None, [name for name in snapshots if _SNAPSHOT.fullmatch(name)]
            for snapshot in ours:
                if self._is_result(snapshot):
                    live = snapshot
                else:
                    self._zfs.destroy_snapshot(snapshot)
            if live is not None:
                self._restore(live, but)
                return
            dataset = self._dissolve(dataset, origin, shared=bool(ours))

    def _restore(self, snapshot: str, place: str) -> None:
        """Make a dataset what it was at its last result, to be taken on."""
        try:
            self._zfs.rollback(snapshot)
        except (StoreBusy, StoreFull):
            raise
        except StoreError:
            return  # newer snapshots are deleted, but clones stand on them; or they are foreign
        head = os.path.join(place, "head")
        write_file(head, snapshot.encode())
        os.rename(head, self.path("heads", snapshot))

    def _dissolve(self, dataset: str, origin: str, *, shared: bool) -> str:
        """Destroy a dataset without results; what it stood on, which may be at rest now too."""
        if shared:
            clones = {
                name: snapshot
                for name, snapshot in self._zfs.datasets().items()
                if _dataset(snapshot) == dataset
            }
            if clones:
                heir = max(clones, key=lambda name: _steps(clones[name]))
                self._zfs.promote(heir)
                origin = heir
        try:
            self._zfs.destroy(dataset)
        except StoreBusy:
            raise
        except StoreError:
            return ""  # a foreign snapshot is in it
        return "" if origin == "-" else _dataset(origin)

    def _swept(self) -> None:
        """What names nobody has: a settling that was interrupted left them, or a lost directory."""
        place = self.path("drafts", self._draft_name())
        os.mkdir(place)
        with self._locked(alone=True):
            for dataset in self._zfs.datasets():
                ours = _DATASET.fullmatch(dataset)
                if ours and not alive(self.directory, ours[1]):
                    with suppress(StoreError):
                        self._settle(dataset, but=place)
        remove_tree(place)

    # --- space -----------------------------------------------------------------------------------

    async def size(self, key: Key) -> int:
        """See `Store`. What was deleted since the result before is counted too."""
        try:
            return await anyio.to_thread.run_sync(self._zfs.written, self._snapshot(key))
        except NoDataset:
            raise missing(key) from None

    async def usage(self) -> Usage:
        """See `Store`."""
        used, free = await anyio.to_thread.run_sync(self._zfs.space)
        return Usage(used=used, free=free, total=used + free)

    def _sync(self) -> None:
        super()._sync()
        self._zfs.flush()


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _held(place: str) -> str | None:
    """What a directory of `drafts` has in its hands."""
    return _text(os.path.join(place, "dataset")) or _text(
        os.path.join(place, "deleted", "snapshot")
    )


def _note(place: str, held: str) -> None:
    """Write down what a draft has in its hands, at once and whole."""
    new = os.path.join(place, "dataset.new")
    write_file(new, held.encode())
    os.rename(new, os.path.join(place, "dataset"))


def _dataset(snapshot: str) -> str:
    return snapshot.partition("@")[0]


def _steps(snapshot: str) -> int:
    return int(snapshot.partition("@")[2].partition("-")[0])
