"""What there is on the machine of a store that nobody works in: it should be nothing."""

import functools
import json
import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence

from obuilder.backends.sandboxes.accounts import Account, listed, processes_of
from obuilder.system import linux

_EMPTY = ("run", "drafts", "locks", "sessions", "mnt", "downloads")
_KNOWN = {
    *_EMPTY, "results", "layers", "layers.lock", "empty", "logs", "volumes", "store.json",
    "sandbox-id", "runtime.json", "index.sqlite", "reserve", "heads", "heads.lock", "roots",
}  # fmt: skip


def leftovers(store: str, temporary: str) -> list[str]:
    """Everything that should not be there, a line for each; [] when all is well."""
    return [
        *(f"process {pid}: {what}" for pid, what in processes(store).items()),
        *(f"cgroup {path}" for path in cgroups(store)),
        *(f"user {name}" for name in _users(store)),
        *_mounts(store),
        *_loop_devices(store),
        *(f"temporary {name}" for name in os.listdir(temporary)),
        *_files(store),
    ]


def leftovers_of(users: Sequence[Account]) -> list[str]:
    """Everything on the machine that users of steps left, themselves too; [] when all is well."""
    names, numbers = {user.name for user in users}, {user.uid for user in users}
    found = [f"process {pid}" for number in numbers for pid in processes_of(number)]
    for table in ("passwd", "group", "subuid", "subgid"):
        rows = _read(f"/etc/{table}").decode(errors="replace").splitlines()
        found += [f"in {table}: {row}" for row in rows if row.partition(":")[0] in names]
    for spool, _, _ in os.walk("/var/spool"):
        found += [f"in {spool}: {name}" for name in _names(spool) & names]
    for place in ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/home"):
        paths = [os.path.join(place, name) for name in _names(place)]
        found += [path for path in paths if _owner(path) in numbers]
    for kind in ("shm", "msg", "sem"):
        head, *rows = [line.split() for line in _read(f"/proc/sysvipc/{kind}").splitlines()]
        owners = [dict(zip(head, row, strict=False)) for row in rows]
        found += [
            f"{kind} {row}" for row in owners if {int(row[b"uid"]), int(row[b"cuid"])} & numbers
        ]
    return found


def processes(store: str) -> dict[int, str]:
    """The processes that work on a store, steps too."""
    words = (os.fsencode(store), _identity(store))
    found = {}
    for pid in _pids():
        told = b"\n".join(_read(f"/proc/{pid}/{name}") for name in ("cmdline", "environ", "cgroup"))
        if any(word in told for word in words if word):
            found[pid] = _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")
    return found


def cgroups(store: str) -> list[str]:
    """The control groups of a store's steps, in every hierarchy."""
    mark = _identity(store).decode()
    if not mark:
        return []
    return [
        f"{kind}: {name}"
        for kind, fd in _hierarchies().items()
        for _, names, _ in os.walk(f"/proc/self/fd/{fd}")
        for name in names
        if mark in name
    ]


@functools.cache
def _hierarchies() -> dict[str, int]:
    """Descriptors of all that the kernel has, wherever they are mounted or not."""
    with open("/proc/cgroups") as table:
        rows = [line.split() for line in table if not line.startswith("#")]
    together = defaultdict[str, list[str]](list)
    for name, hierarchy, *_ in rows:
        together[hierarchy].append(name)
    together.pop("0", None)  # those of version 2, or of none
    found = {}
    for kind, names in [("cgroup2", []), *(("cgroup", names) for names in together.values())]:
        context = linux.fsopen(kind)
        for name in names:
            linux.fsconfig_flag(context, name)
        linux.fsconfig_create(context)
        found[",".join(names) or kind] = linux.fsmount(context)
        os.close(context)
    return found


def _identity(store: str) -> bytes:
    # The random name that the groups of a store bear.
    return _read(os.path.join(store, "sandbox-id"))


def _users(store: str) -> list[str]:
    mark = _identity(store).decode()
    return [account.name for account in listed() if mark and mark in account.note]


def _mounts(store: str) -> Iterator[str]:
    """Mounts in the store, or of something in it, in any mount namespace."""
    seen = set[str]()
    for pid in _pids():
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            continue
        if namespace in seen:
            continue
        seen.add(namespace)
        for line in _read(f"/proc/{pid}/mountinfo").splitlines():
            # zfs-fuse has all mounted that there is, where there is nobody who works in it.
            if os.fsencode(store) in line and b" - fuse.zfs " not in line:
                yield f"mount of process {pid}: {line.decode(errors='replace')}"


def _loop_devices(store: str) -> Iterator[str]:
    for name in os.listdir("/sys/block"):
        if os.fsencode(store) in _read(f"/sys/block/{name}/loop/backing_file"):
            yield f"loop device {name}"


def _files(store: str) -> Iterator[str]:
    for name in set(os.listdir(store)) - _KNOWN:
        if not re.fullmatch(r"seccomp-[0-9a-f]{64}\.bpf", name):
            yield f"in the store: {name}"
    for folder in _EMPTY:
        yield from (f"in {folder}: {name}" for name in _names(store, folder))
    index = sqlite3.connect(f"file:{store}/index.sqlite?mode=ro", uri=True)
    kinds = dict(index.execute("SELECT key, kind FROM results"))
    newest = {row[0] for row in index.execute("SELECT generation FROM volumes")}
    leases = index.execute("SELECT count(*) FROM leases").fetchone()[0]
    index.close()
    results = _names(store, "results")
    if leases:
        yield f"{leases} leases"
    yield from (f"a result nobody knows: {key}" for key in results - set(kinds))
    kept = {key for key, kind in kinds.items() if kind != "failed"}
    yield from (f"a result that is not there: {key}" for key in kept - results)
    volumes = {key for key, kind in kinds.items() if kind == "volume"}
    yield from (f"an old generation: {key}" for key in volumes - newest)
    for name in _names(store, "logs"):
        key, _, suffix = name.partition(".")
        if suffix != "log" or key not in kinds:
            yield f"a log of nothing: {name}"
    chains = [_read(os.path.join(store, "results", key, "chain")) for key in results]
    used = {layer for chain in chains if chain for layer, _ in json.loads(chain)}
    yield from (f"a layer nobody uses: {name}" for name in _names(store, "layers") - used)
    snapshots = {_read(os.path.join(store, "results", key, "snapshot")).decode() for key in results}
    datasets = {snapshot.partition("@")[0] for snapshot in snapshots}
    yield from (f"a dataset nobody uses: {name}" for name in _names(store, "roots") - datasets)
    yield from (f"a head of no result: {name}" for name in _names(store, "heads") - snapshots)


def _names(*place: str) -> set[str]:
    try:
        return set(os.listdir(os.path.join(*place)))
    except FileNotFoundError:
        return set()


def _owner(path: str) -> int | None:
    try:
        return os.lstat(path).st_uid
    except OSError:
        return None


def _pids() -> list[int]:
    return [
        int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()
    ]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
