"""ZFS pools to test on, in sparse files: the kernel's if it has ZFS, else a zfs-fuse's of our own.

That daemon's socket, lock and memory of pools are on a tmpfs in this process's own mount namespace,
so it meets no other zfs-fuse of the machine, and all is gone with the process, however it ends.
The kernel's pools would stay, so a program waits that destroys what a process leaves.
"""

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from obuilder.backends.stores.zfs_mounts import unmount
from obuilder.errors import BackendUnavailable, StoreBusy
from obuilder.system import linux, process
from obuilder.system.namespaces import enter

_FOLDERS = ("/run/zfs", "/run/lock/zfs", "/var/lib/zfs")
_DAEMON = "exec zfs-fuse --no-daemon --no-kstat-mount >/dev/null 2>&1"
_GUARD = 'trap "" HUP INT TERM; read -r end; zpool destroy -f "$1"; rm -f "$2"'
_PATIENCE = 10.0


def kernel_has_zfs() -> bool:
    """Whether the kernel itself has ZFS, loaded."""
    try:
        os.close(linux.fsopen("zfs"))
    except OSError:
        return False
    return True


class Daemon:
    """The zfs-fuse of this process and its children."""

    def __init__(self) -> None:
        self._started: process.Started | None = None

    @property
    def crashed(self) -> bool:
        """Whether it has ended by itself, as it does once in a great while, and no other was started."""
        return self._started is not None and not self._started.running

    def start(self) -> None:
        """Start it, unless it runs. BackendUnavailable."""
        if self._started is None:
            atexit.register(self._end)
        elif self.crashed:
            self._end()
            for folder in _FOLDERS:  # by what is there the next one would look for its pools
                linux.unmount(folder, linux.MNT_DETACH)
        else:
            return
        for folder in _FOLDERS:
            os.makedirs(folder, exist_ok=True)
            linux.mount("obuilder-test", folder, "tmpfs", 0, "mode=755")
        # It ends with the thread that starts it, which is the main one.
        self._started = process.start(["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _DAEMON])
        try:
            _patiently("zpool", "list")
        except BackendUnavailable:
            self._end()
            raise

    def _end(self) -> None:
        if self._started is not None:
            self._started.discard()


DAEMON = Daemon()


@contextmanager
def zfs_pool(folder: str, size: int = 1 << 30) -> Iterator[str]:
    """A new pool in a file in `folder`; the directory that it is mounted on."""
    enter()
    if not kernel_has_zfs():
        DAEMON.start()
    name = f"obuilder-test-{os.getpid()}-{os.urandom(4).hex()}"
    image, mounted = (os.path.join(folder, end) for end in (f"{name}.image", name))
    with open(image, "wb") as file:
        file.truncate(size)
    guard = process.start(["sh", "-c", _GUARD, "sh", name, image], held=True)
    try:
        _patiently("zpool", "create", "-m", mounted, name, image)
        try:
            yield mounted
        finally:
            _unmount_below(mounted)
            if not DAEMON.crashed:
                _patiently("zpool", "destroy", "-f", name)
            os.rmdir(mounted)
    finally:
        guard.discard()
        os.unlink(image)


def _unmount_below(path: str) -> None:
    for mounted in reversed(linux.mounts()):
        if mounted.point == path or mounted.point.startswith(f"{path}/"):
            try:
                unmount(mounted.point)
            except StoreBusy:
                linux.unmount(mounted.point, linux.MNT_DETACH)


def _patiently(*words: str) -> None:
    """Run a program until it works: zfs-fuse starts, and lets go of mounts, in its own time."""
    end = time.monotonic() + _PATIENCE
    while True:
        status, said = process.capture(words)
        if status == 0:
            return
        if time.monotonic() > end or status == 127:
            text = said.decode(errors="replace").strip()
            raise BackendUnavailable(f"`{' '.join(words)}` failed: {text}")
        time.sleep(0.02)
