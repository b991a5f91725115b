"""Results as chains of layers that the kernel's overlay shows as one root.

    layers/<id>/             what one step (or several, made one) changed: never written again
    results/<key>/chain      JSON: [[layer id, level], ...], the lowest first

Kinds of stores differ in how they keep chains short, and in what they do without overlays.

Layers in use are those in a chain of a result or of a draft. Who reads a chain to use its layers,
or adds to them, holds `layers.lock` shared; who takes layers away holds it alone.
"""

import errno
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import ClassVar, NamedTuple, final

import anyio
import anyio.to_thread
import msgspec

from obuilder.backends.protocols import HostDir, Root
from obuilder.backends.stores.directory import (
    DirectoryStore,
    detach,
    disk_bytes,
    missing,
    translated,
    write_file,
)
from obuilder.backends.stores.placing import Place, copy_attributes
from obuilder.backends.stores.squash import squash
from obuilder.errors import StoreDamaged, StoreError
from obuilder.system import linux
from obuilder.system.files import remove_tree
from obuilder.values import IdMap, Key

Chain = list[tuple[str, int]]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@final
class LayerDraft:
    """See `Draft`."""

    def __init__(self, store: "LayerStore", name: str, key: Key, chain: Chain) -> None:
        self._store, self._key = store, key
        self.name, self.chain = name, chain
        self.place = store.path("drafts", name)
        self.upper = os.path.join(self.place, "upper")
        self.root: Root = HostDir(store.path("mnt", name))
        self.done = False

    async def commit(self, meta: bytes, *, key: Key | None = None) -> None:
        """See `Draft`."""
        await self._store.commit(self, meta, key or self._key)


class Made(NamedTuple):
    """What is to become a layer, and the chain that it stands on. `size`: bytes that it adds."""

    folder: str
    below: Chain
    size: int | None = None


class LayerStore(DirectoryStore):
    """What stores of layers have in common."""

    folders: ClassVar[tuple[str, ...]] = ("results", "drafts", "mnt", "layers", "empty")

    def __init__(self, directory: str, idmap: IdMap, session: str) -> None:
        super().__init__(directory, idmap, session)
        # Attributes of `trusted.` are for root of the first user namespace only.
        self._user = idmap.first < 2
        self._opaque = "user.overlay.opaque" if self._user else "trusted.overlay.opaque"
        self._modern = True
        self._layers = -1

    def _prepare(self) -> None:
        super()._prepare()
        self._layers = os.open(self.path("layers"), _FOLDER)

    async def _try(self) -> None:
        """Make a draft, to see whether that works here."""
        async with self.begin(Key("0" * 64), base=None):
            pass

    def _let_go(self) -> None:
        if self._layers >= 0:
            os.close(self._layers)
            self._layers = -1

    # --- chains and locks ------------------------------------------------------------------------

    @contextmanager
    def _locked(self, *, alone: bool) -> Iterator[None]:
        fd = os.open(self.path("layers.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    def _chain(self, *place: str) -> Chain:
        path = self.path(*place, "chain")
        with open(path, "rb") as file:
            try:
                return msgspec.json.decode(file.read(), type=Chain)
            except msgspec.MsgspecError as error:
                raise StoreDamaged(f"{path}: {error}") from error

    def _claim(self, base: Key | None) -> tuple[str, Chain]:
        """A new draft's name, and the chain it stands on, which now nobody takes away."""
        name = self._draft_name()
        with self._locked(alone=False):
            chain: Chain = []
            if base is not None:
                try:
                    chain = self._chain("results", base)
                except FileNotFoundError:
                    raise missing(base) from None
            os.mkdir(self.path("drafts", name))
            write_file(self.path("drafts", name, "chain"), msgspec.json.encode(chain))
        return name, chain

    # --- drafts and views ------------------------------------------------------------------------

    @asynccontextmanager
    async def begin(self, key: Key, *, base: Key | None) -> AsyncIterator[LayerDraft]:
        """See `Store`."""
        with translated("can't start a draft"):
            name, chain = self._claim(base)
        draft = LayerDraft(self, name, key, chain)
        try:
            with translated("can't start a draft"):
                await self._start(draft)
            yield draft
        finally:
            if not draft.done:
                detach(self.path("mnt", name))
                with suppress(OSError):  # never in the place of the first error; swept later
                    await self._drop(draft.place)

    @asynccontextmanager
    async def view(self, key: Key) -> AsyncIterator[Root]:
        """See `Store`."""
        with translated("can't show a result"):
            name, chain = self._claim(key)
        try:
            with translated("can't show a result"):
                await self._show(name, chain)
            yield HostDir(self.path("mnt", name))
        finally:
            detach(self.path("mnt", name))
            await self._clean(self.path("drafts", name))

    async def _start(self, draft: LayerDraft) -> None:
        """Mount the root of a new draft. What its step changes is to be in `draft.upper`."""
        self._empty_root(draft.upper)
        if draft.chain:
            _copy_root(self.path("layers", draft.chain[-1][0]), draft.upper)
        os.mkdir(os.path.join(draft.place, "work"))
        self._mount(draft.name, draft.chain, writable=True)

    async def _show(self, name: str, chain: Chain) -> None:
        """Mount what a chain shows, read-only."""
        self._mount(name, chain, writable=False)

    def _mount(self, name: str, chain: Chain, *, writable: bool) -> None:
        target = self.path("mnt", name)
        os.mkdir(target)
        # Short names, whatever the store's own path is: options are limited in length.
        folder = f"/proc/self/fd/{self._layers}"
        lowers = [f"{folder}/{layer}" for layer, _ in reversed(chain)]
        if not lowers or (not writable and len(lowers) == 1):
            lowers.append(f"{folder}/../empty")
        options = {"index": "off", "nfs_export": "off", "metacopy": "off"}
        if not self._user:
            options["redirect_dir"] = "nofollow"
        if writable:
            options["upperdir"] = f"{folder}/../drafts/{name}/upper"
            options["workdir"] = f"{folder}/../drafts/{name}/work"
        flags = ["volatile"] if writable else []
        if self._user:
            flags.append("userxattr")
        if self._modern:
            try:
                _mount_new(target, lowers, options, flags, writable=writable)
                return
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
                    raise
                self._modern = False  # before Linux 6.7: all lower directories in one option
        words = ["lowerdir=" + ":".join(lowers), *flags]
        words += [f"{name}={value}" for name, value in options.items()]
        readonly = 0 if writable else linux.MS_RDONLY
        linux.mount("overlay", target, "overlay", linux.MS_NODEV | readonly, ",".join(words))

    # --- publishing ------------------------------------------------------------------------------

    async def commit(self, draft: LayerDraft, meta: bytes, key: Key) -> None:
        """Publish a draft of this store; the draft's own `commit` calls it."""
        if draft.done:
            raise StoreError("the draft is published already")
        with translated("can't publish a result"):
            made = await self._finish(draft)
            with anyio.CancelScope(shield=True), self._locked(alone=False):
                if self._long([*made.below, ("", 0)]):
                    await anyio.to_thread.run_sync(self._store, draft, made, meta, key)
                else:  # nothing here waits: no thread is worth its cost
                    self._store(draft, made, meta, key)
            draft.done = True
            await self._clean(draft.place)

    async def _finish(self, draft: LayerDraft) -> Made:
        """Keep all others off a draft, and unmount it."""
        await self._freeze(self.path("mnt", draft.name), whole=True)
        detach(self.path("mnt", draft.name))
        return Made(draft.upper, draft.chain)

    def _long(self, chain: Chain) -> bool:
        """Whether `_shortened` has something to do, which takes time."""
        return False

    def _shortened(self, chain: Chain, place: str, layers: list[str]) -> Chain:
        """A chain that shows the same. Layers that are made, in `place` first, go to `layers`."""
        return chain

    def _store(self, draft: LayerDraft, made: Made, meta: bytes, key: Key) -> None:
        finished = os.path.join(draft.place, "result")
        os.mkdir(finished)
        write_file(os.path.join(finished, "meta"), meta)
        chain = [*made.below, (new_layer(), 0)]
        size = made.size
        if size is None and self._long(chain):
            size = disk_bytes(made.folder)
        if size is not None:
            write_file(os.path.join(finished, "size"), b"%d" % size)
        layers, named = [chain[-1][0]], set[str]()
        try:
            os.rename(made.folder, self.path("layers", layers[0]))
            chain = self._shortened(chain, draft.place, layers)
            write_file(os.path.join(finished, "chain"), msgspec.json.encode(chain))
            if self._publish(finished, key):
                named = {layer for layer, _ in chain}
        finally:
            # Made one with others, or no room for the rest, or another process was the first.
            for layer in layers:
                if layer not in named:
                    with suppress(FileNotFoundError):
                        os.rename(self.path("layers", layer), os.path.join(draft.place, layer))

    def _one(self, layers: list[str], target: str, *, below: list[str], place: Place) -> bool:
        """Make `target` of layers, the newest first. False if the tree is too deep for that."""
        try:
            squash(layers, target, opaque=self._opaque, below=below, place=place)
        except RecursionError:
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENAMETOOLONG):
                return False
            raise
        return True

    # --- removing --------------------------------------------------------------------------------

    async def _clean(self, place: str) -> None:
        if {"chain", "work"}.issuperset(os.listdir(place)):  # the kernel's own folder, empty
            remove_tree(place)
        else:
            await self._drop(place)

    async def delete(self, key: Key) -> None:
        """See `Store`."""
        with anyio.CancelScope(shield=True), translated("can't delete a result"):
            await anyio.to_thread.run_sync(self._delete, key)

    def _delete(self, key: Key) -> None:
        place = self.path("drafts", self._draft_name())
        with self._locked(alone=True):
            try:
                candidates = {layer for layer, _ in self._chain("results", key)}
            except FileNotFoundError:
                return
            os.mkdir(place)
            os.rename(self.path("results", key), os.path.join(place, "deleted"))
            self._collect(candidates, place)
        remove_tree(place)

    def _collect(self, candidates: set[str], place: str) -> None:
        """Move to `place` those of the layers that no chain names. Needs the lock."""
        for folder in ("results", "drafts"):
            for name in os.listdir(self.path(folder)):
                if not candidates:
                    return
                with suppress(FileNotFoundError, NotADirectoryError):
                    candidates.difference_update(layer for layer, _ in self._chain(folder, name))
        for layer in candidates:
            with suppress(FileNotFoundError):
                os.rename(self.path("layers", layer), os.path.join(place, layer))

    def _remove(self, path: str) -> None:
        remove_tree(path)

    def _swept(self) -> None:
        # Whoever died may have left a layer that no result came to name.
        place = self.path("drafts", self._draft_name())
        os.mkdir(place)
        with self._locked(alone=True):
            self._collect(set(os.listdir(self.path("layers"))), place)
        remove_tree(place)

    async def size(self, key: Key) -> int:
        """See `Store`."""
        with suppress(FileNotFoundError), open(self.path("results", key, "size"), "rb") as file:
            return int(file.read())
        try:
            chain = self._chain("results", key)
            return await anyio.to_thread.run_sync(disk_bytes, self.path("layers", chain[-1][0]))
        except FileNotFoundError:
            raise missing(key) from None


def new_layer() -> str:
    """The name of a layer that is not there yet."""
    return os.urandom(10).hex()


def _copy_root(source: str, target: str) -> None:
    fds = [os.open(path, _FOLDER) for path in (source, target)]
    try:
        copy_attributes(fds[0], fds[1])
    finally:
        for fd in fds:
            os.close(fd)


def _mount_new(
    target: str, lowers: list[str], options: dict[str, str], flags: list[str], *, writable: bool
) -> None:
    fs = linux.fsopen("overlay")
    try:
        linux.fsconfig_string(fs, "source", "overlay")
        for lower in lowers:
            linux.fsconfig_string(fs, "lowerdir+", lower)
        for name, value in options.items():
            linux.fsconfig_string(fs, name, value)
        for flag in flags:
            linux.fsconfig_flag(fs, flag)
        linux.fsconfig_create(fs)
        attributes = linux.MOUNT_ATTR_NODEV | (0 if writable else linux.MOUNT_ATTR_RDONLY)
        mounted = linux.fsmount(fs, attributes)
    finally:
        os.close(fs)
    try:
        linux.move_mount(mounted, target)
    finally:
        os.close(mounted)
