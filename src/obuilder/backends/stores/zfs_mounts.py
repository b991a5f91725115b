"""How a dataset of ZFS comes to be mounted: by the kernel for this process, or by zfs-fuse for all.

With OpenZFS the kernel has the file system: datasets are `legacy`, and this process mounts them in
its own namespace. With zfs-fuse the daemon mounts every dataset, in the daemon's namespace, below
a directory that is given to it; this process takes a copy of the mount. Only who is in the daemon's
namespace can unmount for good, so the zfs program is started there.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar, final

from obuilder.errors import BackendUnavailable, StoreBusy, StoreError
from obuilder.system import linux
from obuilder.system.namespaces import threads_beside

T = TypeVar("T")

KERNEL, FUSE = "zfs", "fuse.zfs"
_SOCKET = "/run/zfs/zfs_socket"
_CONNECTIONS = "/sys/fs/fuse/connections"
_PATIENCE = 5.0


class Busy(StoreBusy):
    """Worth another try."""


def patiently(work: Callable[[], T]) -> T:
    """Try again while something is busy: zfs-fuse lets go some 20 ms after an unmount, say."""
    end, pause = time.monotonic() + _PATIENCE, 0.005
    while True:
        try:
            return work()
        except Busy:
            if time.monotonic() > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def mounted_at(path: str) -> linux.Mounted | None:
    """What ZFS has mounted on `path`, as it was mounted first; None if that is no ZFS."""
    point, mounts = os.path.realpath(path), linux.mounts()
    top = next((mounted for mounted in reversed(mounts) if mounted.point == point), None)
    if top is None or top.kind not in {KERNEL, FUSE}:
        return None
    return next(mounted for mounted in mounts if mounted[1:] == top[1:])


def daemon() -> int | None:
    """The zfs-fuse that serves this process's zfs program; None if none does."""
    try:
        socket = os.stat(_SOCKET)
    except FileNotFoundError:
        return None
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            # The same name elsewhere may be another daemon's, in a namespace of its own.
            if file.read() == "zfs-fuse\n":
                served = os.stat(f"/proc/{pid}/root{_SOCKET}")
                if os.path.samestat(served, socket):
                    return int(pid)
    return None


@contextmanager
def alone() -> Iterator[None]:
    """Keep others from mounting: zfs-fuse mixes up mounts that are made at the same time."""
    if not os.path.exists(_SOCKET):
        yield
        return
    lock = os.open(os.path.dirname(_SOCKET), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def copy_here(directory: str) -> None:
    """Mount here what zfs-fuse has on that directory, where its mounts don't show by themselves."""
    serving = daemon()
    if serving is not None:
        with threads_beside(serving) as threads:
            if not threads.submit(_device, directory).result():
                return
            tree = threads.submit(linux.open_tree, directory, linux.OPEN_TREE_CLONE).result()
        linux.move_mount(tree, directory)
        os.close(tree)


def unmount(point: str) -> None:
    """Unmount what is mounted on a directory, if anything is. StoreBusy: it is in use."""
    device = _device(point)
    if device:
        _wait_for_fuse(device)
        _unmount(point)


def _unmount(point: str) -> None:
    try:
        linux.unmount(point)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(f"{point} is in use") from error
        if error.errno != errno.EINVAL:  # somebody else did it
            raise


def _refuse_writers(point: str) -> None:
    try:
        linux.mount(None, point, None, linux.MS_REMOUNT | linux.MS_RDONLY)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(f"something still writes to {point}") from error
        raise


def _device(point: str) -> int:
    """Of what is mounted on a directory; 0 if nothing is."""
    try:
        device = os.stat(point).st_dev
    except FileNotFoundError:
        return 0
    return 0 if device == os.stat(os.path.dirname(point)).st_dev else device


def _wait_for_fuse(device: int) -> None:
    """Wait until the daemon has read all that the kernel told it.

    zfs-fuse hangs for good when the end of a mount overtakes the news that a file was closed.
    """
    try:
        if not os.path.ismount(_CONNECTIONS):
            linux.mount("fusectl", _CONNECTIONS, "fusectl", 0)
    except OSError:
        return  # no FUSE here
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            with open(f"{_CONNECTIONS}/{os.minor(device)}/waiting", encoding="ascii") as file:
                if file.read() == "0\n":
                    return
        except FileNotFoundError:  # no mount of FUSE
            return
        time.sleep(0.001)
    raise Busy("zfs-fuse does not answer")


def detach(target: str) -> None:
    """Undo `Mounts.attach`, if it came to that, and remove the directory. StoreBusy."""
    patiently(lambda: unmount(target))
    with suppress(FileNotFoundError):
        os.rmdir(target)


class Mounts(Protocol):
    """The mounts of a store's datasets, which are named in full."""

    @property
    def properties(self) -> tuple[str, ...]:
        """Of the dataset that all others are below."""

    @property
    def keep_out(self) -> bool:
        """Whether who still holds a directory of a dataset can't use it once it is attached anew."""

    def there(self, work: Callable[[], T]) -> T:
        """Do something where the mounts are that the zfs program looks at."""

    def attach(self, dataset: str, target: str, *, writable: bool) -> None:
        """Mount a dataset on a directory that is there, without devices. StoreBusy."""

    def release(self, dataset: str) -> None:
        """Have it mounted nowhere, for it is to be destroyed or rolled back. StoreBusy."""

    def close(self) -> None:
        """Let go of other namespaces."""


@final
class KernelMounts:
    """OpenZFS's: see `Mounts`."""

    properties = ("mountpoint=legacy",)
    keep_out = True

    def there(self, work: Callable[[], T]) -> T:
        """Here."""
        return work()

    def attach(self, dataset: str, target: str, *, writable: bool) -> None:
        """See `Mounts`."""
        try:
            flags = linux.MS_NODEV | (0 if writable else linux.MS_RDONLY)
            linux.mount(dataset, target, "zfs", flags)
        except OSError as error:
            if error.errno == errno.EBUSY:  # what it was made by its end, read-only, still lives
                raise StoreBusy(f"somebody still holds {dataset}") from error
            raise

    def release(self, dataset: str) -> None:
        """It was detached."""

    def close(self) -> None:
        """There are none."""


@final
class FuseMounts:
    """See `Mounts`: zfs-fuse's, below `folder`; `mount` is the program that asks the daemon to mount."""

    keep_out = False

    def __init__(self, folder: str, mount: Callable[[str], object]) -> None:
        self._folder, self._mount = folder, mount
        self.properties = (f"mountpoint={folder}", "canmount=off")
        self._threads = None
        serving = daemon()
        if serving is None:
            raise BackendUnavailable("no zfs-fuse daemon runs here", hint="start zfs-fuse")
        theirs, ours = (os.stat(f"/proc/{pid}/ns/mnt") for pid in (serving, "self"))
        if not os.path.samestat(theirs, ours):
            self._threads = threads_beside(serving)
            self._forget_copies()

    def _forget_copies(self) -> None:
        """What this namespace was born with would keep datasets busy that others unmount."""
        for mounted in reversed(linux.mounts()):
            if mounted.point.startswith(f"{self._folder}/"):
                with suppress(OSError):  # the daemon's was unmounted meanwhile, and that shows here
                    linux.unmount(mounted.point, linux.MNT_DETACH)

    def there(self, work: Callable[[], T]) -> T:
        """See `Mounts`."""
        if self._threads is None:
            return work()
        try:
            return self._threads.submit(work).result()
        except BrokenExecutor as error:
            raise StoreError("the zfs-fuse daemon is no more", hint="start zfs-fuse") from error

    def _point(self, dataset: str) -> str:
        return os.path.join(self._folder, os.path.basename(dataset))

    def attach(self, dataset: str, target: str, *, writable: bool) -> None:
        """See `Mounts`."""
        tree = self.there(lambda: self._copy(dataset))
        try:
            flags = linux.MOUNT_ATTR_NODEV | (0 if writable else linux.MOUNT_ATTR_RDONLY)
            linux.mount_setattr(tree, add=flags)
            linux.move_mount(tree, target)
        finally:
            os.close(tree)
        if writable:  # it was made read-only as a whole when it was published
            linux.mount(None, target, None, linux.MS_REMOUNT | linux.MS_NODEV)

    def _copy(self, dataset: str) -> int:
        if not _device(self._point(dataset)):  # after a rollback, or a start of the daemon
            self._mount(dataset)
        return linux.open_tree(self._point(dataset), linux.OPEN_TREE_CLONE)

    def release(self, dataset: str) -> None:
        """See `Mounts`."""
        point = self._point(dataset)
        # Copies first: while one is in use, the daemon would hang at the end of its own.
        for mounted in linux.mounts():
            if mounted.source == dataset and mounted.point != point:
                detach(mounted.point)
        patiently(lambda: self._release(point))

    def _release(self, point: str) -> None:
        device = self.there(lambda: _device(point))
        if device:
            self.there(lambda: _refuse_writers(point))
            _wait_for_fuse(device)
            with alone():
                self.there(lambda: _unmount(point))

    def close(self) -> None:
        """See `Mounts`."""
        if self._threads is not None:
            self._threads.shutdown()
