"""The zfs program, as far as the store needs it: OpenZFS's, and zfs-fuse's old one.

All calls block. A dataset or snapshot of a store is named in short, by what stands after the name
of the dataset that all are below.
"""

import os
import shutil
import time
from contextlib import nullcontext, suppress

from obuilder.backends.stores.zfs_mounts import (
    FUSE,
    Busy,
    FuseMounts,
    KernelMounts,
    Mounts,
    alone,
    copy_here,
    mounted_at,
    patiently,
)
from obuilder.errors import BackendUnavailable, ObuilderError, StoreError, StoreFull
from obuilder.system import linux, process

_MOUNTING = {"create", "clone", "mount", "rollback", "destroy"}
_TIMEOUT = 300.0
_ROOM = (32 << 20, 4 << 20)
_WISHES = (
    "atime=off",
    "sync=disabled",  # a crash takes drafts only, and a snapshot is on disk once it is made
    "xattr=sa",
    "acltype=posixacl",
    "com.sun:auto-snapshot=false",
)


class NoDataset(StoreError):
    """There is no dataset, or snapshot, of that name."""


class _Exists(StoreError):
    """What was to be made or mounted is so already."""


# --- the programs --------------------------------------------------------------------------------


def said(program: str, *words: str) -> str:
    """What a program said. Every ObuilderError; Busy when somebody holds what it works on."""
    folders = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    path = shutil.which(program, path=folders)
    if path is None:
        raise BackendUnavailable(
            f"{program} is not installed", hint="install zfsutils-linux, or zfs-fuse"
        )
    env = {**os.environ, "PATH": folders, "LC_ALL": "C"}
    status, heard = process.capture([path, *words], timeout=_TIMEOUT, env=env)
    text = heard.decode(errors="replace").strip()
    if not status:
        return text
    error = _error(words[0], text)
    if error is BackendUnavailable:
        raise BackendUnavailable(
            "the kernel has no ZFS loaded, and no zfs-fuse runs",
            hint="modprobe zfs, or start zfs-fuse",
        )
    hint = "`obuilder prune` makes room" if error is StoreFull else None
    raise error(f"`{program} {' '.join(words)}` failed: {text}", hint=hint)


def _error(verb: str, text: str) -> type[ObuilderError]:
    # The status is 1 for all of them.
    if verb == "rollback" and "I/O error" in text:  # zfs-fuse still lets go of a mount
        return Busy
    for words, error in (
        ("is busy", Busy),
        ("does not exist", NoDataset),
        ("already exists", _Exists),
        ("already mounted", _Exists),
        ("out of space", StoreFull),
        ("is greater than available space", StoreFull),
        ("No space left", StoreFull),
        ("uota exceeded", StoreFull),
        ("initialize ZFS library", BackendUnavailable),
        ("modules are not loaded", BackendUnavailable),
    ):
        if words in text:
            return error
    return StoreError


def _zfs(*words: str) -> str:
    def once() -> str:
        with alone() if words[0] in _MOUNTING else nullcontext():
            return said("zfs", *words)

    return patiently(once)


# --- the store's own directory -------------------------------------------------------------------


def provide(directory: str) -> None:
    """Have a dataset mounted on `directory`, made if there is none yet, that stays mounted.

    To be called before the process enters namespaces of its own. Its name is the end of the
    directory's, from the name of a pool on. BackendUnavailable, StoreError.
    """
    if not mounted_at(directory):
        _mount(_dataset_for(directory), directory)


def _mount(name: str, directory: str) -> None:
    try:
        place = _zfs("get", "-H", "-o", "value", "mountpoint", name)
    except NoDataset:
        with suppress(_Exists):  # another process was the first
            _zfs("create", "-p", "-o", f"mountpoint={directory}", name)
    else:
        if place != directory:
            raise BackendUnavailable(
                f"the dataset {name} belongs on {place}, not on {directory}",
                hint="zfs:/PREFIX/POOL names a pool that is mounted somewhere else",
            )
        with suppress(_Exists):  # the same, or this process does not see it
            _zfs("mount", name)
    if not mounted_at(directory):
        copy_here(directory)
    if not mounted_at(directory):
        raise BackendUnavailable(f"{name} is not mounted on {directory}")
    os.chmod(directory, 0o700)


def _dataset_for(directory: str) -> str:
    pools = said("zpool", "list", "-H", "-o", "name").split()
    parts = directory.strip("/").split("/")
    for start, part in enumerate(parts[:-1]):
        if part in pools:
            return "/".join(parts[start:])
    raise BackendUnavailable(
        f"there is no ZFS pool for {directory}",
        hint=f"pools are: {', '.join(pools)}" if pools else "make one: zpool create NAME DEVICE",
    )


# --- what the store works with -------------------------------------------------------------------


class Zfs:
    """The datasets below STORE/roots, of the store that has STORE/state mounted as its own."""

    def __init__(self, state: linux.Mounted) -> None:
        self._state, self._directory = state.source, state.point
        self._store = os.path.dirname(self._state)
        self.parent = f"{self._store}/roots"
        self._mounts: Mounts = KernelMounts()
        if state.kind == FUSE:
            folder = f"{state.point}/roots"
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._mounts = FuseMounts(folder, lambda dataset: _zfs("mount", dataset))
        self.keep_out, self.close = self._mounts.keep_out, self._mounts.close

    def _run(self, *words: str) -> str:
        return self._mounts.there(lambda: _zfs(*words))

    def _long(self, name: str) -> str:
        return f"{self.parent}/{name}"

    def _short(self, name: str) -> str:
        return name.removeprefix(f"{self.parent}/")

    # --- datasets and snapshots ------------------------------------------------------------------

    def make_parent(self) -> None:
        """Make the dataset that all others are below, if it is not there yet."""
        words = [word for text in self._mounts.properties for word in ("-o", text)]
        with suppress(_Exists):
            self._run("create", *words, self.parent)
        for wish in _WISHES:
            with suppress(StoreError):  # zfs-fuse does not know all of them
                self._run("set", wish, self.parent)
        self.flush()

    def create(self, dataset: str) -> None:
        """Make an empty one."""
        self._run("create", self._long(dataset))

    def snapshot(self, snapshot: str) -> None:
        """Make one; it is on disk then."""
        self._run("snapshot", self._long(snapshot))

    def clone(self, snapshot: str, dataset: str) -> None:
        """Make a dataset that starts as `snapshot`. NoDataset."""
        self._run("clone", self._long(snapshot), self._long(dataset))

    def attach(self, dataset: str, target: str, *, writable: bool) -> None:
        """Mount a dataset on a directory that is there, without devices. StoreBusy."""
        self._mounts.attach(self._long(dataset), target, writable=writable)

    def destroy(self, dataset: str) -> None:
        """Destroy a dataset without snapshots. No error if there is none."""
        self._mounts.release(self._long(dataset))
        with suppress(NoDataset):
            self._run("destroy", self._long(dataset))

    def destroy_snapshot(self, snapshot: str) -> None:
        """Destroy a snapshot, once nothing stands on it. No error if there is none."""
        with suppress(NoDataset):
            self._run("destroy", "-d", self._long(snapshot))

    def rollback(self, snapshot: str) -> None:
        """Make its dataset what it was then. StoreError if the dataset has newer snapshots."""
        self._mounts.release(self._long(snapshot.partition("@")[0]))
        try:
            self._run("rollback", self._long(snapshot))
        except StoreFull:  # zfs-fuse asks for room, to make room
            self._run("set", "refreservation=none", self._state)
            try:
                self._run("rollback", self._long(snapshot))
            finally:
                self.flush()

    def promote(self, dataset: str) -> None:
        """Give a clone the snapshot it stands on, and all before: the other is the clone then."""
        self._run("promote", self._long(dataset))

    def datasets(self) -> dict[str, str]:
        """All datasets, each with the snapshot it is a clone of, or `-`."""
        found = self._list("filesystem", self.parent)
        return {name: origin for name, origin in found if name != self.parent}

    def snapshots(self, dataset: str) -> tuple[str, list[str]]:
        """The snapshot that it is a clone of, or `-`; its own, the oldest first. NoDataset."""
        found = self._list("filesystem,snapshot", self._long(dataset))
        origin = next(origin for name, origin in found if name == dataset)
        return origin, [name for name, _ in found if name.startswith(f"{dataset}@")]

    def _list(self, kinds: str, below: str) -> list[tuple[str, str]]:
        lines = self._run("list", "-H", "-r", "-t", kinds, "-o", "name,origin", below).splitlines()
        pairs = (line.partition("\t") for line in lines)
        return [(self._short(name), self._short(origin)) for name, _, origin in pairs]

    # --- space -----------------------------------------------------------------------------------

    def _number(self, name: str, what: str) -> int:
        # zfs-fuse knows `get -p`, but not `list -p`.
        return int(self._run("get", "-H", "-p", "-o", "value", what, name))

    def space(self) -> tuple[int, int]:
        """Bytes that the store uses, and that are free for it."""
        return self._number(self._store, "used"), self._number(self._store, "available")

    def written(self, snapshot: str) -> int:
        """Bytes in a snapshot that are not in the one before it. NoDataset."""
        try:
            return self._number(self._long(snapshot), "written")
        except NoDataset:
            raise
        except StoreError:  # zfs-fuse keeps no such count
            origin, names = self.snapshots(snapshot.partition("@")[0])
        before = [origin, *names][names.index(snapshot)]
        names = [snapshot] if before == "-" else [snapshot, before]
        whole, *earlier = (self._number(self._long(name), "referenced") for name in names)
        return max(0, whole - sum(earlier))

    def flush(self) -> None:
        """All that was written to the pool before this call is on disk after it.

        And results can be deleted when the pool is full: there is room kept for the store's files.
        """
        found = os.statvfs(self._directory)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        for room in _ROOM:
            with suppress(StoreFull):
                self._run("set", f"refreservation={used + room}", self._state)
                return
        self._run("set", f"obuilder:flushed={time.time_ns()}", self._state)
