"""A control group for each step, on version 1 hierarchies and on version 2 alike.

Version 1 hierarchies are reached through mounts that have no place in the tree, so they can be
used where /sys/fs/cgroup shows something else, and nothing is left mounted.
"""

import os
import time
from collections.abc import Callable

from obuilder.system import linux

_V1 = ("pids", "memory", "cpu", "devices")
_PERIOD = 100_000
_PATIENCE = 3.0
_DEVICES = (
    "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm",
    "c 136:* rwm",
)  # fmt: skip


class Hierarchies:
    """What this process may make groups in; `limits` are the fields of Limits that bite.

    `devices`: groups keep their processes from all devices but the usual few, where they can.
    """

    def __init__(self, *, devices: bool = True) -> None:
        self._places: dict[str, int] = {}
        self._v2: int | None = None
        try:
            with open("/proc/cgroups", encoding="ascii") as table:
                rows = [line.split() for line in table if not line.startswith("#")]
        except OSError:
            rows = []
        for name, hierarchy, *_ in rows:
            if (
                name in _V1
                and (devices or name != "devices")
                and hierarchy != "0"
                and (place := _attach(name)) is not None
            ):
                self._places[name] = place
        if not self._places:
            self._v2 = _unified()
        names = {"memory": "memory", "cpu": "cpus", "pids": "pids"}
        if self._v2 is not None:
            controllers = _read(self._v2, "cgroup.subtree_control").split()
            self.limits = frozenset(names[c] for c in controllers if c in names)
        else:
            self.limits = frozenset(names[c] for c in self._places if c in names)

    def close(self) -> None:
        """Let go of the hierarchies."""
        for fd in (*self._places.values(), *(() if self._v2 is None else (self._v2,))):
            os.close(fd)
        self._places.clear()
        self._v2 = None

    def folder(self) -> int:
        """A descriptor of a directory that has all groups, of one hierarchy if there are several.

        It stays this object's own.
        """
        return next(iter(self._places.values())) if self._v2 is None else self._v2

    def leaf(self, name: str) -> "Leaf":
        """A new, empty group without limits. OSError."""
        roots = dict(self._places) if self._v2 is None else {"": self._v2}
        leaf = Leaf(name, roots, unified=self._v2 is not None)
        try:
            leaf.make()
        except BaseException:
            leaf.remove()
            raise
        return leaf

    def sweep(self, wanted: Callable[[str], bool]) -> None:
        """End and remove the groups whose name `wanted(name)` is true of."""
        roots = dict(self._places) if self._v2 is None else {"": self._v2}
        names = {name for fd in roots.values() for name in os.listdir(fd) if wanted(name)}
        for name in names:
            leaf = Leaf(name, roots, unified=self._v2 is not None)
            leaf.open()
            leaf.remove()


class Leaf:
    """One step's group, in every hierarchy there is."""

    def __init__(self, name: str, roots: dict[str, int], *, unified: bool) -> None:
        self._name, self._roots, self._unified = name, roots, unified
        self._fds: dict[str, int] = {}

    def open(self) -> None:
        """Take hold of what exists under the name."""
        for kind, root in self._roots.items():
            try:
                self._fds[kind] = os.open(self._name, os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
            except FileNotFoundError:
                continue

    def make(self) -> None:
        """Make the directories."""
        for root in self._roots.values():
            os.mkdir(self._name, 0o755, dir_fd=root)
        self.open()
        if "devices" in self._fds:
            self._set("devices", "devices.deny", "a")
            for device in _DEVICES:
                self._set("devices", "devices.allow", device)

    def limit(self, *, memory: int | None, cpus: float | None, pids: int | None) -> None:
        """Set limits: bytes, cores' worth of time, processes. OSError."""
        quota = None if cpus is None else max(1000, int(cpus * _PERIOD))
        if self._unified:
            self._set("", "memory.max", memory)
            if memory is not None:
                self._try("", "memory.swap.max", 0)
            self._set("", "pids.max", pids)
            self._set("", "cpu.max", None if quota is None else f"{quota} {_PERIOD}")
            return
        self._set("memory", "memory.limit_in_bytes", memory)
        if memory is not None:
            self._try("memory", "memory.memsw.limit_in_bytes", memory)
        self._set("pids", "pids.max", pids)
        self._set("cpu", "cpu.cfs_period_us", None if quota is None else _PERIOD)
        self._set("cpu", "cpu.cfs_quota_us", quota)

    def joiners(self) -> list[int]:
        """Descriptors to which a process writes 0 to join. The caller closes them."""
        return [
            os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd)
            for fd in self._fds.values()
        ]

    def out_of_memory(self) -> bool:
        """Whether the kernel ended something in here for lack of memory."""
        kind, file = ("", "memory.events") if self._unified else ("memory", "memory.oom_control")
        if kind not in self._fds:
            return False
        for line in _read(self._fds[kind], file).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return value != "0"
        return False

    def kill(self) -> None:
        """End everything inside."""
        for fd in self._fds.values():
            try:
                _write(fd, "cgroup.kill", "1")
            except OSError:
                for pid in _read(fd, "cgroup.procs").split():
                    try:
                        os.kill(int(pid), 9)
                    except ProcessLookupError:
                        continue

    def remove(self) -> None:
        """End everything inside, wait for it, and remove the group."""
        end = time.monotonic() + _PATIENCE
        while any(_read(fd, "cgroup.procs") for fd in self._fds.values()):
            self.kill()
            if time.monotonic() > end:
                break
            time.sleep(0.005)
        for kind, fd in self._fds.items():
            os.close(fd)
            while True:
                try:
                    os.rmdir(self._name, dir_fd=self._roots[kind])
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > end:
                        break
                    time.sleep(0.005)
                    continue
                break
        self._fds.clear()

    def _set(self, kind: str, file: str, value: object) -> None:
        if value is not None and kind in self._fds:
            _write(self._fds[kind], file, str(value))

    def _try(self, kind: str, file: str, value: object) -> None:
        try:
            self._set(kind, file, value)
        except OSError:
            return  # kernels without swap accounting lack the file


def _attach(name: str) -> int | None:
    try:
        context = linux.fsopen("cgroup")
        try:
            linux.fsconfig_flag(context, name)
            linux.fsconfig_create(context)
            mounted = linux.fsmount(context)
        finally:
            os.close(context)
    except OSError:
        return None
    try:
        fd = os.open(".", os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
    finally:
        os.close(mounted)
    if os.access(f"/proc/self/fd/{fd}", os.W_OK):
        return fd
    os.close(fd)
    return None


def _unified() -> int | None:
    """A directory for our groups just below the root of version 2."""
    try:
        context = linux.fsopen("cgroup2")
        try:
            linux.fsconfig_create(context)
            mounted = linux.fsmount(context)
        finally:
            os.close(context)
    except OSError:
        return None
    try:
        wanted = "+memory +cpu +pids"
        _write(mounted, "cgroup.subtree_control", wanted)
        if "obuilder" not in os.listdir(mounted):
            os.mkdir("obuilder", 0o755, dir_fd=mounted)
        fd = os.open("obuilder", os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
        _write(fd, "cgroup.subtree_control", wanted)
        return fd
    except OSError:
        return None
    finally:
        os.close(mounted)


def _read(fd: int, name: str) -> str:
    try:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return ""
    with os.fdopen(file, encoding="ascii") as stream:
        try:
            return stream.read()
        except OSError:  # the group was removed in between
            return ""


def _write(fd: int, name: str, text: str) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
