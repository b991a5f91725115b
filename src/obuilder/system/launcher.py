"""The program that becomes a step where no OCI runtime does: namespaces, mounts, an init, a user.

    python -I -S launcher.py BUNDLE [wait]

It reads the step's `Launch` from BUNDLE/launch.json; with `wait`, after a line on its standard
input. It writes BUNDLE/pid, the number of the step's init, when the step has started, and
ends as the step's first process does (128 + signal). Whatever it has to say before is an error.

It dies with whoever started it, its init with it, and with that everything in the step's own
process namespace. Nothing is imported once the step's files are in sight, and it imports no
package but this one's system calls: most of the time it takes is Python's own start.
"""

import contextlib
import errno
import json
import os
import signal
import sys
from typing import Any, NoReturn, TypedDict

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from obuilder.system import linux

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEVICES = ("full", "null", "random", "tty", "urandom", "zero")
_LINKS = (
    ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"),
    ("ptmx", "pts/ptmx"),
)  # fmt: skip
_SAFE = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV


class Piece(TypedDict):
    """One mount of a step.

    `kind`: "tree" shows `source` (a path below `base`, followed only inside of it), with all that
    is mounted there if `whole`, with its ids shifted if `shifted`; "memory" is a file system with
    the directories `made`; "devices" the usual few devices; "processes" the step's own; "kernel"
    what the kernel tells of itself and of the step's network. `target`
    is below the launch's `root`, and no symlink is followed on the way.
    """

    kind: str
    target: str
    base: str
    source: str
    readonly: bool
    shifted: bool
    whole: bool
    made: list[str]
    options: dict[str, str]


class Launch(TypedDict):
    """A step. Paths are as in the namespace of whoever starts the launcher."""

    argv: list[str]
    cwd: str
    env: list[tuple[str, str]]
    uid: int
    gid: int
    groups: list[int]
    """Groups that are the user's besides their own."""
    root: str
    """What the step has as /; "/" is the machine's own."""
    sealed: bool
    """Nothing of the machine can be written to, but for the pieces; no setuid program works."""
    apart: bool
    """Own network (unless `network`), host name, System V objects."""
    network: bool
    hostname: str
    ids: str
    """A file that is the user namespace by which shifted pieces are shifted."""
    user_namespace: str
    """The ids of a user namespace for the step: lines of its map; "" for none."""
    privileges: bool
    """Whether setuid programs have power, where they work."""
    filter: str
    """A file with a BPF program that filters system calls; "" for none."""
    pieces: list[Piece]


def piece(kind: str, target: str, **more: Any) -> Piece:
    """A piece with the usual values where none are given."""
    usual: Piece = {
        "kind": kind, "target": target, "base": "/", "source": "", "readonly": False,
        "shifted": False, "whole": False, "made": [], "options": {},
    }  # fmt: skip
    return usual | more  # type: ignore[return-value] # the names are the class's own


# --- mounts --------------------------------------------------------------------------------------


def _detached(found: Piece, ids: str) -> int:
    """The mount of a "tree", not yet attached anywhere."""
    flags = linux.OPEN_TREE_CLONE | (linux.AT_RECURSIVE if found["whole"] else 0)
    base = os.open(found["base"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = _inside(found["source"], base)
    finally:
        os.close(base)
    try:
        tree = linux.open_tree("", flags | linux.AT_EMPTY_PATH, at=place)
    finally:
        os.close(place)
    if found["whole"]:
        return tree
    linux.mount_setattr(tree, add=_SAFE | (linux.MOUNT_ATTR_RDONLY if found["readonly"] else 0))
    if found["shifted"]:
        namespace = os.open(ids, os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.mount_setattr(tree, ids=namespace)
        finally:
            os.close(namespace)
    return tree


def _inside(path: str, base: int) -> int:
    name = path.lstrip("/") or "."
    return linux.openat2(
        name, os.O_PATH, at=base, resolve=linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_SYMLINKS
    )


def _made(kind: str, options: dict[str, str], attributes: int) -> int:
    context = linux.fsopen(kind)
    try:
        for name, value in options.items():
            linux.fsconfig_string(context, name, value)
        linux.fsconfig_create(context)
        return linux.fsmount(context, attributes)
    finally:
        os.close(context)


def _attach(mounted: int, target: str, root: str) -> None:
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = _inside(target, base)
        try:
            linux.move_mount_onto(mounted, place)
        finally:
            os.close(place)
    finally:
        os.close(base)
        os.close(mounted)


def _devices() -> int:
    """A detached /dev with what every program may count on."""
    top = _made(
        "tmpfs", {"mode": "0755", "size": "1m"}, linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC
    )
    for name in _DEVICES:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=top))
    for name in ("pts", "shm"):
        os.mkdir(name, 0o755, dir_fd=top)
    for name, target in _LINKS:
        os.symlink(target, name, dir_fd=top)
    return top


def _fill_devices(target: str, root: str, shown: list[int]) -> None:
    place = target.rstrip("/")
    for name, mounted in zip(_DEVICES, shown, strict=True):
        _attach(mounted, f"{place}/{name}", root)
    terminals = _made(
        "devpts",
        {"ptmxmode": "0666", "mode": "0620"},
        linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC,
    )
    _attach(terminals, f"{place}/pts", root)
    _attach(_made("tmpfs", {"mode": "1777"}, _SAFE), f"{place}/shm", root)


def _arrange(launch: Launch) -> None:
    """Enter a mount namespace in which everything is in its place, but for the processes."""
    trees = [
        _detached(found, launch["ids"]) if found["kind"] == "tree" else -1
        for found in launch["pieces"]
    ]
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
    devices = _machine_devices() if any(p["kind"] == "devices" for p in launch["pieces"]) else []
    if launch["sealed"]:
        top = os.open("/", os.O_PATH | os.O_CLOEXEC)
        linux.mount_setattr(
            top, add=linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID, recursive=True
        )
        os.close(top)
    for found, tree in zip(launch["pieces"], trees, strict=True):
        target, root = found["target"], launch["root"]
        try:
            if found["kind"] == "tree":
                _attach(tree, target, root)
            elif found["kind"] == "memory":
                _memory(found, root)
            elif found["kind"] == "devices":
                _attach(_devices(), target, root)
                _fill_devices(target, root, devices)
        except OSError as error:
            what = f"can't mount on {target}: {os.strerror(error.errno or 0)}"
            raise OSError(error.errno, what) from error


def _machine_devices() -> list[int]:
    shown = [_detached(piece("tree", "", source=f"/dev/{name}"), "") for name in _DEVICES]
    for mounted in shown:
        linux.mount_setattr(mounted, remove=linux.MOUNT_ATTR_NODEV)
    return shown


def _memory(found: Piece, root: str) -> None:
    mounted = _made("tmpfs", found["options"], _SAFE)
    for name in found["made"]:
        os.mkdir(name, 0o755, dir_fd=mounted)
    if found["readonly"]:
        linux.mount_setattr(mounted, add=linux.MOUNT_ATTR_RDONLY)
    _attach(mounted, found["target"], root)


# --- processes -----------------------------------------------------------------------------------


def _init(launch: Launch, program: bytes, ready: int) -> NoReturn:
    """The step's PID 1: it shows the processes, starts the first one, and reaps."""
    linux.die_with_parent()
    for found in launch["pieces"]:
        if kind := {"processes": "proc", "kernel": "sysfs"}.get(found["kind"]):
            readonly = linux.MOUNT_ATTR_RDONLY if found["readonly"] else 0
            mounted = _made(kind, found["options"], _SAFE | linux.MOUNT_ATTR_NOEXEC | readonly)
            _attach(mounted, found["target"], launch["root"])
    if launch["apart"]:
        linux.set_hostname(launch["hostname"])
        if not launch["network"]:
            linux.raise_loopback()
    (here, there), (held, go) = os.pipe(), os.pipe()
    first = os.fork()
    if first == 0:
        os.close(here)
        os.close(go)
        _become(launch, program, there, held)
    os.close(there)
    os.close(held)
    if os.read(here, 1) and launch["user_namespace"]:
        processes = os.path.join(launch["root"], "proc", str(first))
        for name in ("uid_map", "gid_map"):
            with open(f"{processes}/{name}", "w", encoding="ascii") as table:
                table.write(launch["user_namespace"])
    os.write(ready, b"!")
    os.write(go, b"!")
    for fd in (ready, go, here, 0, 1, 2):
        os.close(fd)  # the step's output is the step's alone
    while True:
        pid, status = os.wait()
        if pid == first:
            os._exit(_code(status))


def _become(launch: Launch, program: bytes, there: int, held: int) -> NoReturn:
    """Give up every right, and be the step's first process."""
    try:
        _weigh("0")
        if launch["user_namespace"]:
            linux.unshare(linux.CLONE_NEWUSER)
        os.write(there, b"!")
        os.read(held, 1)
        if launch["root"] != "/":
            os.chroot(launch["root"])
        os.chdir("/")
    except OSError as error:
        _complain(error)
        os._exit(125)
    try:
        if launch["sealed"]:
            linux.drop_bounding()
        os.setgroups([launch["gid"], *launch["groups"]])
        os.setresgid(launch["gid"], launch["gid"], launch["gid"])
        os.setresuid(launch["uid"], launch["uid"], launch["uid"])
        os.umask(0o022)
        os.chdir(launch["cwd"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if not launch["privileges"]:
            linux.no_new_privileges()
        if program:
            linux.filter_syscalls(program)
    except OSError as error:
        _complain(error)
        os._exit(126)
    _execute(launch["argv"], dict(launch["env"]))


def _execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    name = argv[0]
    folders = (
        [""] if "/" in name else [f"{folder}/" for folder in env.get("PATH", _PATH).split(":")]
    )
    failed = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for folder in folders:
        try:
            os.execve(folder + name, argv, env)  # noqa: S606 - that is what it is for
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                failed = error
    os.write(2, os.fsencode(f"{name}: {os.strerror(failed.errno or 0)}\n"))
    os._exit(127 if failed.errno == errno.ENOENT else 126)


def _weigh(score: str) -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(score.encode())


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _complain(error: Exception) -> None:
    os.write(2, os.fsencode(f"{error}\n"))


def _launch(bundle: str) -> int:
    with open(os.path.join(bundle, "launch.json"), "rb") as file:
        launch: Launch = json.loads(file.read())
    program = b""
    if launch["filter"]:
        with open(launch["filter"], "rb") as file:
            program = file.read()
    _weigh("-999")  # memory running out is to end the step, not what tells of it
    folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC
    pid_file = os.open("pid.new", flags, 0o600, dir_fd=folder)
    _arrange(launch)
    flags = linux.CLONE_NEWPID
    if launch["apart"]:
        flags |= linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
        flags |= 0 if launch["network"] else linux.CLONE_NEWNET
    linux.unshare(flags)
    started, ready = os.pipe()
    init = os.fork()
    if init == 0:
        try:
            os.close(started)
            _init(launch, program, ready)
        except OSError as error:
            _complain(error)
        os._exit(125)
    os.close(ready)
    if os.read(started, 1):
        os.write(pid_file, b"%d" % init)
        os.rename("pid.new", "pid", src_dir_fd=folder, dst_dir_fd=folder)
    return _code(os.waitpid(init, 0)[1])


if __name__ == "__main__":
    os.closerange(3, 1 << 20)  # whoever started this may have left some open
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # Waits where it is told to for a line; without one nobody wants a step any more.
        _ended = _launch(sys.argv[1]) if sys.argv[2:] != ["wait"] or os.read(0, 1) else 0
    except (OSError, KeyError, ValueError) as _error:
        _complain(_error)
        _ended = 125
    os._exit(_ended)
