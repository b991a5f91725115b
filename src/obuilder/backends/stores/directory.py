"""What the stores have in common that keep roots in a directory of this machine.

    store.json                   version, kind, id map: for ever
    results/<key>/meta           published, beside what the kind of store keeps there
    drafts/<session>.<n>/        being made (or being removed), owned by that session
    mnt/<session>.<n>            where a draft or view is mounted: on a tmpfs in the process's own
                                 mount namespace, so it is gone with the process

A result appears by the rename of a finished directory, so it is whole or not there.
"""

import errno
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import ClassVar

import anyio
import anyio.to_thread
import msgspec

from obuilder.backends.protocols import Draft, HostDir, Root, Usage
from obuilder.errors import BackendUnavailable, SnapshotMissing, StoreBusy, StoreError, of_disk
from obuilder.oci.archive import Upper
from obuilder.system import linux
from obuilder.system.files import remove_tree
from obuilder.system.namespaces import enter
from obuilder.system.sessions import alive
from obuilder.values import IdMap, Key, UnixUser, User

_VERSION = 1
_NOT_FOR_STORES = ("/boot", "/dev", "/proc", "/run", "/sys")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Format(msgspec.Struct, frozen=True):
    version: int
    kind: str
    idmap: IdMap


class DirectoryStore(ABC):
    """The part of a store that does not depend on how snapshots are made."""

    produces: ClassVar[type] = HostDir
    guarded: ClassVar[bool] = True
    kind: ClassVar[str]
    folders: ClassVar[tuple[str, ...]] = ("results", "drafts", "mnt")
    file_systems: ClassVar[tuple[str, ...]] = ()
    """Kinds of file systems that are made for it, where not any one will do; the best first."""

    def __init__(self, directory: str, idmap: IdMap, session: str) -> None:
        self.directory, self.idmap = os.path.abspath(directory), idmap
        self.session = session
        self._numbers = itertools.count()
        self._mounted = False

    @classmethod
    def prepare(cls, directory: str) -> None:
        """See `StoreClass`."""
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise of_disk(f"can't make the store {directory}", error) from error

    @classmethod
    def grounds(cls, near: str) -> list[str]:
        """See `StoreClass`."""
        first = _existing(near)
        found = {os.stat(first).st_dev: first}
        fit = [mounted for mounted in linux.mounts() if mounted.kind in cls.file_systems]
        for mounted in sorted(fit, key=lambda mounted: cls.file_systems.index(mounted.kind)):
            if not mounted.point.startswith(_NOT_FOR_STORES):
                with suppress(OSError):
                    if os.path.isdir(mounted.point) and os.access(mounted.point, os.W_OK):
                        found.setdefault(os.stat(mounted.point).st_dev, mounted.point)
        return list(found.values())

    @classmethod
    async def discard(cls, directory: str) -> None:
        """See `StoreClass`."""
        enter_if_allowed()
        with translated(f"can't remove the store {directory}"):
            remove_tree(directory)

    def _prepare(self) -> None:
        with translated(f"can't open the store {self.directory}"):
            for folder in self.folders:
                os.makedirs(self.path(folder), mode=0o755, exist_ok=True)
            self._check_format()
            if self.guarded:
                self._prepare_mounts()

    def _prepare_mounts(self) -> None:
        mnt = self.path("mnt")
        if os.stat(mnt).st_dev == os.stat(self.directory).st_dev:
            linux.mount("obuilder", mnt, "tmpfs", linux.MS_NODEV | linux.MS_NOSUID, "mode=0755")
            self._mounted = True

    def _check_format(self) -> None:
        path = self.path("store.json")
        ours = _Format(version=_VERSION, kind=self.kind, idmap=self.idmap)
        if not os.path.exists(path):
            temporary = self.path("drafts", self._draft_name())
            write_file(temporary, msgspec.json.encode(ours))
            with suppress(FileExistsError):
                os.link(temporary, path)
            os.unlink(temporary)
        with open(path, "rb") as file:
            try:
                theirs = msgspec.json.decode(file.read(), type=_Format)
            except msgspec.MsgspecError as error:
                raise StoreError(f"{path} is not a store's: {error}") from error
        if theirs != ours:
            what = next(
                name
                for name in ("version", "kind", "idmap")
                if getattr(theirs, name) != getattr(ours, name)
            )
            raise StoreError(
                f"the store {self.directory} was made with another {what}: "
                f"{getattr(theirs, what)}, not {getattr(ours, what)}",
                hint="open it as the user who made it, or choose another directory",
            )

    def path(self, *parts: str) -> str:
        """A path in the store's directory."""
        return os.path.join(self.directory, *parts)

    def _draft_name(self) -> str:
        return f"{self.session}.{next(self._numbers)}"

    # --- the parts of `Store` that are the same for all ---------------------------------------

    @abstractmethod
    def begin(self, key: Key, *, base: Key | None) -> AbstractAsyncContextManager[Draft]:
        """See `Store`."""

    @asynccontextmanager
    async def files(
        self, root: Root, *, only: tuple[str, ...] | None = None, write: bool = False
    ) -> AsyncIterator[str]:
        """See `Store`. A root is a directory already."""
        yield _directory(root)

    @asynccontextmanager
    async def volume(self, key: Key, *, base: Key | None, owner: User) -> AsyncIterator[Draft]:
        """See `Store`. Steps mount what others run in."""
        async with self.begin(key, base=base) as draft:
            self._give(_directory(draft.root), owner)
            yield draft

    async def shared(self, place: str, owner: User) -> Root:
        """See `Store`."""
        path = self.path("volumes", place)
        with translated("can't make a volume"):
            os.makedirs(path, mode=0o755, exist_ok=True)
            self._give(path, owner)
        return HostDir(path)

    async def remove_shared(self, place: str) -> None:
        """See `Store`."""
        with translated("can't delete a volume"):
            await anyio.to_thread.run_sync(remove_tree, self.path("volumes", place))

    def _give(self, path: str, owner: User) -> None:
        if isinstance(owner, UnixUser) and not self.idmap.single:
            os.chown(path, self.idmap.to_disk(owner.uid), self.idmap.to_disk(owner.gid))

    def touched(self, key: Key, *, base: Key) -> Upper | None:
        """See `Store`. Most can't say."""
        return None

    async def contains(self, key: Key) -> bool:
        """See `Store`."""
        return os.path.isdir(self.path("results", key))

    async def compact(self, key: Key) -> None:  # noqa: B027 # what most stores need not do
        """See `Store`. A root has nothing that it does not show."""

    async def keys(self) -> list[Key]:
        """See `Store`."""
        return [Key(name) for name in os.listdir(self.path("results"))]

    async def meta(self, key: Key) -> bytes:
        """See `Store`."""
        try:
            with open(self.path("results", key, "meta"), "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise missing(key) from None

    async def usage(self) -> Usage:
        """See `Store`."""
        found = os.statvfs(self.directory)
        return Usage(
            used=None, free=found.f_bavail * found.f_frsize, total=found.f_blocks * found.f_frsize
        )

    async def sync(self) -> None:
        """See `Store`."""
        await anyio.to_thread.run_sync(self._sync)

    def _sync(self) -> None:
        fd = os.open(self.directory, _FOLDER)
        try:
            with translated("can't write the store to disk"):
                linux.syncfs(fd)
        finally:
            os.close(fd)

    async def recover(self) -> None:
        """See `Store`."""
        with translated("can't remove what a dead session left"):
            await anyio.to_thread.run_sync(self._recover)

    def _recover(self) -> None:
        found = False
        for name in os.listdir(self.path("drafts")):
            session, dot, number = name.partition(".")
            ours = bool(dot) and len(session) == 16 and number.isdigit()
            if ours and not alive(self.directory, session):
                claimed = self.path("drafts", self._draft_name())
                try:
                    os.rename(self.path("drafts", name), claimed)
                except FileNotFoundError:  # another process was the first
                    continue
                self._remove(claimed)
                found = True
        if found:
            self._swept()

    @abstractmethod
    def _swept(self) -> None:
        """After the drafts of the dead are gone: the rest of what they left."""

    @abstractmethod
    def _remove(self, path: str) -> None:
        """Remove a directory of `drafts`, whatever is in it."""

    @abstractmethod
    def _let_go(self) -> None:
        """Close what the kind of store keeps open."""

    async def _drop(self, path: str) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._remove, path)

    async def close(self) -> None:
        """See `Store`."""
        self._let_go()
        if self._mounted:
            self._mounted = False
            with suppress(OSError):  # in use by another store of this process: dies with it
                linux.unmount(self.path("mnt"))

    # --- mounting --------------------------------------------------------------------------------

    def _bind(self, source: str, name: str, *, readonly: bool) -> None:
        """Show a directory at `name` in `mnt`, without devices."""
        tree = linux.open_tree(source, linux.OPEN_TREE_CLONE)
        try:
            readonly_flag = linux.MOUNT_ATTR_RDONLY if readonly else 0
            linux.mount_setattr(tree, add=linux.MOUNT_ATTR_NODEV | readonly_flag)
            target = self.path("mnt", name)
            os.mkdir(target)
            linux.move_mount(tree, target)
        finally:
            os.close(tree)

    # --- publishing ------------------------------------------------------------------------------

    async def _freeze(self, mounted: str, *, whole: bool) -> None:
        """Make a draft's mount (`whole`: its file system) read-only.

        What was killed a moment ago may still be going away, so this is tried for a short while.
        """
        for attempt in range(40):
            try:
                flags = linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NODEV
                linux.mount(None, mounted, None, flags | (0 if whole else linux.MS_BIND))
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                if attempt == 39:
                    raise StoreBusy(
                        "something still writes to the root that was to be published",
                        hint="a process of the step survived, or its root is open elsewhere",
                    ) from error
                await anyio.sleep(0.005)

    def _publish(self, finished: str, key: Key) -> bool:
        """Rename a finished directory to its key. False: somebody else's is there already."""
        try:
            os.rename(finished, self.path("results", key))
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
        return True

    def _empty_root(self, path: str) -> None:
        os.mkdir(path)
        self._own_root(path)

    def _own_root(self, path: str) -> None:
        os.chmod(path, 0o755)  # noqa: S103 - as the root of any system is
        os.chown(path, self.idmap.to_disk(0), self.idmap.to_disk(0))


def enter_if_allowed() -> None:
    """Enter namespaces to remove files in: an ordinary user's have owners that are theirs in there.

    Where that is not allowed, nobody has made such files.
    """
    with suppress(BackendUnavailable):
        enter()


def _existing(directory: str) -> str:
    """A directory to make others in, on the file system that `directory` is on, or would be."""
    place = directory
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    above = os.path.dirname(place)
    beside = place == directory and os.stat(above).st_dev == os.stat(place).st_dev
    return above if beside and os.access(above, os.W_OK) else place


def _directory(root: Root) -> str:
    assert isinstance(root, HostDir), root
    return root.path


def unsuited(kind: str, package: str) -> str:
    """A hint for who has no file system of that kind: how to get one, without a disk to spare."""
    image = f"/var/lib/obuilder.{kind}"
    return (
        f"put the store on {kind}; a file can hold one: truncate -s 20G {image} && mkfs.{kind} "
        f"{image} && mkdir /srv/obuilder && mount -o loop {image} /srv/obuilder (mkfs.{kind} is in "
        f"the package {package}, on Debian and on Fedora)"
    )


def missing(key: Key) -> SnapshotMissing:
    """The error for a key that is not there."""
    return SnapshotMissing(
        f"the store has no result {key[:12]}", hint="build again: what is missing is made anew"
    )


@contextmanager
def translated(what: str) -> Iterator[None]:
    """OSErrors as the store's own errors."""
    try:
        yield
    except OSError as error:
        unable = error.errno in (errno.ENODEV, errno.ENOSYS)
        raise of_disk(what, error, BackendUnavailable if unable else StoreError) from error


def write_file(path: str, data: bytes) -> None:
    """Write a new file."""
    with open(path, "xb") as file:
        file.write(data)


def detach(mounted: str) -> None:
    """Unmount, whoever still looks at it, and take the mount point away."""
    with suppress(OSError):
        linux.unmount(mounted, linux.MNT_DETACH)
    with suppress(OSError):
        os.rmdir(mounted)


def disk_bytes(path: str) -> int:
    """What a tree takes on disk, each file counted once."""
    total, seen = 0, set[int]()
    for _, _, names, folder in os.fwalk(path):
        for name in (*names, "."):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_blocks * 512
    return total
