"""Places for stores: one line for each kind of store and file system that tests try it on.

Mounts are made in this process's own mount namespace, so they and their loop devices are gone
with it, however it ends; directories that a killed run left are removed by the next one.
"""

import os
import subprocess  # mount and mkfs are no part of the program
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Literal, NamedTuple

import pytest

from obuilder.system import linux
from obuilder.system.files import remove_tree
from obuilder.system.namespaces import enter
from obuilder.testing.zfs_pool import zfs_pool

_PREFIX = "obuilder-test."


@contextmanager
def scratch(folder: str | None = None) -> Iterator[str]:
    """An empty directory that everyone may pass, as steps do; pytest's own is closed to them."""
    folder = folder or tempfile.gettempdir()
    _sweep(folder)
    path = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}.", dir=folder)
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        remove_tree(path)


def memory() -> AbstractContextManager[str]:
    """A directory in memory where the machine has one to lend, for stores of many small files."""
    return scratch("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


def _sweep(folder: str) -> None:
    for name in os.listdir(folder):
        if name.startswith(_PREFIX):
            pid = name.removeprefix(_PREFIX).partition(".")[0]
            if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                with suppress(OSError):  # another user's, or another run removes it as well
                    remove_tree(os.path.join(folder, name))


@contextmanager
def tmpfs(size: str = "2g") -> Iterator[str]:
    """A file system on memory."""
    enter()
    with scratch() as path:
        linux.mount("obuilder-test", path, "tmpfs", 0, f"size={size},mode=755")
        try:
            yield path
        finally:
            linux.unmount(path, linux.MNT_DETACH)


@contextmanager
def loop(kind: str, size: int = 1 << 30) -> Iterator[str]:
    """A new file system of that kind in a sparse file on a loop device."""
    enter()
    with scratch() as path:
        image, mounted = os.path.join(path, "image"), os.path.join(path, "mounted")
        with open(image, "wb") as file:
            file.truncate(size)
        os.mkdir(mounted)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
        try:
            yield mounted
        finally:
            linux.unmount(mounted, linux.MNT_DETACH)


@contextmanager
def without_overlays() -> Iterator[str]:
    """A directory that is itself an overlay's, where no other overlay can be written to."""
    enter()
    with memory() as path:
        names = ("lower", "upper", "work", "mounted")
        lower, upper, work, mounted = (os.path.join(path, name) for name in names)
        for folder in (lower, upper, work, mounted):
            os.mkdir(folder)
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        linux.mount("obuilder-test", mounted, "overlay", 0, options)
        try:
            yield mounted
        finally:
            linux.unmount(mounted, linux.MNT_DETACH)


@contextmanager
def zfs(size: int = 1 << 30) -> Iterator[str]:
    """A new pool in a sparse file, of this process's own zfs-fuse."""
    with scratch() as path, zfs_pool(path, size) as mounted:
        yield mounted


class Place(NamedTuple):
    """A kind of store, and how to make a directory that it can work in.

    `slow`: how much longer than others a step there takes; tests that do things often do them less
    often there, unless OBUILDER_TEST_WHOLE is set. `engine`: the one that it is in, of those in `engines`.
    """

    kind: str
    directory: Callable[[], AbstractContextManager[str]]
    needs: tuple[str, ...]
    slow: int = 1
    engine: Literal["", "docker", "podman"] = ""


PLACES = {
    "overlayfs": Place("overlayfs", scratch, ("overlay",)),
    "overlayfs-on-tmpfs": Place("overlayfs", tmpfs, ("overlay", "tmpfs")),
    "btrfs": Place("btrfs", lambda: loop("btrfs"), ("btrfs",)),
    "docker": Place("docker", scratch, ("docker",), slow=16, engine="docker"),
    "podman": Place("docker", scratch, ("podman",), slow=30, engine="podman"),
    "xfs": Place("xfs", lambda: loop("xfs"), ("xfs", "overlay")),
    "rsync+hardlink": Place("rsync+hardlink", without_overlays, ("overlay",)),
    "copy": Place("copy", memory, ("namespaces",)),
    "zfs": Place("zfs", zfs, ("zfs",), slow=4),
}


def each(*names: str) -> pytest.MarkDecorator:
    """Runs a test once for each of these places; its fixture `place` is an `Opened`."""
    marked = [pytest.param(name, marks=pytest.mark.needs(*PLACES[name].needs)) for name in names]
    return pytest.mark.parametrize("place", marked, indirect=True)


each_place = each(*(name for name in PLACES if name != "podman"))
"""Runs a test once for each place there is, but for podman, a step in which takes a second."""

each_kind = each(*{place.kind: name for name, place in reversed(PLACES.items())}.values())
"""Runs a test once for each kind of store, in the first place there is for it."""


each_shifted = each("overlayfs", "overlayfs-on-tmpfs", "btrfs", "xfs", "copy")
"""Runs a test once for each place whose file system can show files as somebody else's."""


class Opened(NamedTuple):
    """A place that is ready: what to call its store, and its directory."""

    name: str
    kind: str
    directory: str
    slow: int

    @property
    def store(self) -> str:
        """What --store says."""
        return f"{self.kind}:{self.directory}/store"


@contextmanager
def opened(name: str) -> Iterator[Opened]:
    """The place of that name, for as long as the context lasts."""
    with PLACES[name].directory() as directory:
        slow = 1 if os.environ.get("OBUILDER_TEST_WHOLE") else PLACES[name].slow
        yield Opened(name, PLACES[name].kind, directory, slow)
