"""The namespaces this process works in, so that its mounts die with it.

As root: a mount namespace of its own. As an ordinary user: a user namespace, in which it is root,
and a mount namespace. Which ids a store's files have on disk follows from that.
"""

import contextlib
import errno
import functools
import os
import pwd
import shutil
from typing import TYPE_CHECKING

from obuilder.errors import BackendUnavailable
from obuilder.system import linux
from obuilder.values import IdMap

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

ROOT_IDMAP = IdMap(first=1_700_000_000, count=65536)
"""Where root's stores keep the ids of steps: a range that no distribution hands out."""

_CGROUP = "/sys/fs/cgroup"
_ORIGINAL_CGROUP = "/run/obuilder/cgroup"
_SPARE = ("/boot", "/media", "/mnt")
"""Directories that a build has no use for, the most useless first."""


@functools.cache
def enter() -> IdMap:
    """Enter this process's own namespaces, once; the id map that goes with them.

    Call it before threads are started: those that run already would stay outside.
    BackendUnavailable where the kernel, or who set it up, does not allow it.
    """
    if by_root():
        idmap = _map_of_root()
        try:
            linux.unshare(linux.CLONE_NEWNS)
        except OSError as error:
            raise _forbidden(error) from error
    else:
        idmap = _enter_user_namespace()
    try:
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
        if os.path.isdir(f"{_CGROUP}/unified"):
            _unify_cgroups()
    except OSError as error:
        raise _forbidden(error) from error
    return idmap


@functools.cache
def by_root() -> bool:
    """Whether root runs this program: asked by `enter`, in whose namespaces anybody is root."""
    return os.geteuid() == 0


def passable(directory: str, idmap: IdMap) -> str:
    """The same directory by a path that steps may pass, who are nobody to this machine.

    Below a home that others may not enter, it is shown at another place of this process's own
    mount namespace. BackendUnavailable if there is none.
    """
    closed = _closed(directory)
    if closed is None or idmap.single:
        return directory
    place = next((place for place in _SPARE if os.path.isdir(place)), None)
    used = [f"{os.path.realpath(path)}/" for path in (directory, os.curdir)]
    if place is None or any(path.startswith(f"{place}/") for path in used):
        raise BackendUnavailable(
            f"steps can't reach {directory}: others may not pass through {closed}",
            hint=f"chmod o+x {closed}, or put the store somewhere else",
        )
    _cover(place)
    status = os.stat(directory)
    shown = os.path.join(place, f"{status.st_dev:x}-{status.st_ino:x}")
    if not os.path.isdir(shown):
        os.mkdir(shown)
        linux.mount(directory, shown, None, linux.MS_BIND | linux.MS_REC)
    return shown


@functools.cache
def _cover(place: str) -> None:
    """Something empty over `place`, once: there directories can be made."""
    linux.mount("obuilder", place, "tmpfs", linux.MS_NODEV | linux.MS_NOSUID, "mode=0755")


def _closed(directory: str) -> str | None:
    """The first directory above `directory` that others can't pass."""
    place = ""
    for part in os.path.realpath(os.path.dirname(directory)).split("/")[1:]:
        place = f"{place}/{part}"
        if not os.stat(place).st_mode & 1:
            return place
    return None


def _forbidden(error: OSError) -> BackendUnavailable:
    if os.geteuid() == 0:
        hint = "root needs CAP_SYS_ADMIN: in a container, start it with --privileged"
    elif error.errno == errno.EINVAL:
        hint = "the process has threads already; enter the namespaces before starting any"
    elif error.errno in (errno.ENOSPC, errno.EUSERS):
        hint = "sysctl user.max_user_namespaces (or user.max_mnt_namespaces) is too small"
    else:
        hint = (
            "run as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1, "
            "and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0"
        )
    return BackendUnavailable(
        f"this process may not have namespaces of its own: {error.strerror}", hint=hint
    )


def _map_of_root() -> IdMap:
    """Root in the first user namespace has all ids; root in another has what was given to it."""
    with open("/proc/self/uid_map", encoding="ascii") as uids:
        ids = _contiguous(uids.read())
    with open("/proc/self/gid_map", encoding="ascii") as gids:
        ids = min(ids, _contiguous(gids.read()))
    if ids > ROOT_IDMAP.first + ROOT_IDMAP.count:
        return ROOT_IDMAP
    if ids > 1:
        return IdMap(first=1, count=min(65536, ids - 1))
    return IdMap(first=0, count=1)


def _contiguous(table: str) -> int:
    """How many ids from 0 on are mapped."""
    ids = 0
    for line in sorted(table.splitlines(), key=lambda line: int(line.split()[0])):
        first, _, count = (int(word) for word in line.split())
        if first == ids:
            ids += count
    return ids


def _unify_cgroups() -> None:
    # crun knows version 1 and version 2, but a mixture only halfway: show it version 2, and keep
    # the rest in sight for our own leaves. The directory stays behind, empty, on the machine.
    try:
        os.makedirs(_ORIGINAL_CGROUP, mode=0o755, exist_ok=True)
        linux.mount(_CGROUP, _ORIGINAL_CGROUP, None, linux.MS_BIND | linux.MS_REC)
    except OSError:
        return  # root in a user namespace, with a /run that is not its own: leave all as it is
    linux.mount(f"{_ORIGINAL_CGROUP}/unified", _CGROUP, None, linux.MS_BIND)


# --- ordinary users ------------------------------------------------------------------------------


def _enter_user_namespace() -> IdMap:
    uid, gid, ours = os.geteuid(), os.getegid(), os.getpid()
    uids, gids = _subordinate("/etc/subuid", uid), _subordinate("/etc/subgid", uid)
    programs = [shutil.which(name) for name in ("newuidmap", "newgidmap")]
    count = min(uids[1], gids[1], 65536)
    if count == 0 or None in programs:
        _unshare_user()
        return _map_single(uid, gid)
    # Only a process outside may write such a map, so it has to be there before we go in.
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(go)
            if os.read(wait, 1):
                status = _run(programs[0], ours, uid, uids[0], count)
                status = status or 2 * _run(programs[1], ours, gid, gids[0], count)
        finally:
            os._exit(status)
    os.close(wait)
    try:
        _unshare_user()
        os.write(go, b"!")
    finally:
        os.close(go)
        _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    if status == 1:
        return _map_single(uid, gid)
    if status != 0:
        raise BackendUnavailable(
            "newgidmap does not accept the range in /etc/subgid",
            hint="give the user the same ranges in /etc/subuid and /etc/subgid",
        )
    return IdMap(first=1, count=count)


def _unshare_user() -> None:
    try:
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    except OSError as error:
        raise _forbidden(error) from error


def _run(program: str | None, pid: int, own: int, first: int, count: int) -> int:
    """0 or 1."""
    assert program is not None
    words = (program, pid, 0, own, 1, 1, first, count)
    argv = [str(word) for word in words]
    _, ended = os.waitpid(os.posix_spawn(program, argv, os.environ), 0)
    return int(ended != 0)


def _map_single(uid: int, gid: int) -> IdMap:
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError as error:
        raise _forbidden(error) from error
    return IdMap(first=0, count=1)


def _subordinate(path: str, uid: int) -> tuple[int, int]:
    """The widest range (first, count) that the file gives to the user; (0, 0) for none."""
    names = {str(uid)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    ranges = [(0, 0)]
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.strip().split(":")
                if len(fields) == 3 and fields[0] in names:
                    ranges.append((int(fields[1]), int(fields[2])))
    except (FileNotFoundError, ValueError):
        pass
    return max(ranges, key=lambda found: found[1])


# --- other processes' namespaces -----------------------------------------------------------------


def threads_beside(pid: int) -> "ThreadPoolExecutor":
    """Threads in the mount namespace of another process; programs that they start are there too.

    What they are given to do may raise BrokenExecutor: the process is no more.
    """
    from concurrent.futures import ThreadPoolExecutor

    def join() -> None:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.unshare(linux.CLONE_FS)
            linux.setns(fd, linux.CLONE_NEWNS)
        finally:
            os.close(fd)

    return ThreadPoolExecutor(thread_name_prefix="beside", initializer=join)
