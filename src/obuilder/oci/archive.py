"""Writing a root, or what changed from one to another, as a tar archive: same files, same bytes.

A change set is a layer as the OCI image specification has it: what is new or other than before,
and an empty `.wh.NAME` for each NAME that is gone. It is a function of the two roots alone: how a
store keeps them, and whether it can say where to look, changes how long it takes and nothing else.
"""

import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import BinaryIO, NamedTuple

from msgspec import Struct

from obuilder.errors import CopyError
from obuilder.oci.members import Manner, Members, pax_xattrs
from obuilder.system.files import too_deep
from obuilder.system.tree import signature

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK = 1 << 20
_GONE = ".wh."
_TICK_NS = 20_000_000
_DEEPEST = 400
"""Directories in directories: each holds three descriptors while it is walked, of some 1024."""


class Upper(Struct, frozen=True):
    """A directory with at least every name, and what leads to it, that changed from root to root.

    A directory in it whose attribute `opaque` is "y" may have changed in names that it lacks.
    """

    path: str
    opaque: str


def write_tar(root: str, file: BinaryIO, manner: Manner) -> None:
    """Write all below `root` to `file` (which need not seek) in the order of names' bytes.

    Owners are the ids inside; with a map of one id, everything is root's. Hard links stay links;
    sockets are left out. Extended attributes go along as pax records.
    """
    with ExitStack() as stack:
        fd = _opened(stack, root)
        members = Members(file, manner)
        for found in _walk(fd, None, None, root):
            if found.kind == "dir":
                members.directory(found.path, found.status, found.fd)
            elif found.kind == "file":
                members.file(found.at, found.name, found.path, found.status)
        members.finish()


def write_changes(
    base: str | None, root: str, file: BinaryIO, manner: Manner, *, upper: Upper | None = None
) -> None:
    """Write what makes `root` of `base` (None: of nothing) as a layer; else as `write_tar`.

    Files of the same inode and change time are taken for the same, others are compared. Names of
    one file that were not all of one before are written all. With exact times, so are those that
    were of one file and are not any more. CopyError for a name that a layer can't hold.
    """
    with ExitStack() as stack:
        new = _opened(stack, root)
        old = None if base is None else _opened(stack, base)
        hint = None if upper is None or old is None else upper

        def walk() -> Iterator[Found]:
            return _walk(new, old, hint, root)

        strict = manner.exact
        linked = set() if old is None else _newly_linked(walk(), strict=strict)

        def same(found: Found) -> bool:
            if found.kind == "dir":
                return _same_directory(found)
            again = found.status.st_nlink > 1 and _mark(found.status) in linked
            return not again and _same_file(found, strict=strict)

        top = old is None or _same_status(os.fstat(old), os.fstat(new))
        _write_layer(Members(file, manner), None if top else new, walk(), same)


Seen = Mapping[str, bytes]
"""Every path of a root ("" is its top), with what changes of its status when it changes."""


def look(root: str) -> Seen:
    """What there is in `root` now: whatever changes after this call, `write_since` sees."""
    seen, newest = {"": signature(os.stat(root))}, 0
    for folder, folders, files, fd in os.fwalk(root):
        prefix = folder[len(root) :].lstrip("/")
        for name in (*folders, *files):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            seen[f"{prefix}/{name}" if prefix else name] = signature(status)
            newest = max(newest, status.st_ctime_ns)
    # Another change within one tick of the file system's clock would look like none.
    while time.time_ns() - newest < _TICK_NS:
        time.sleep(_TICK_NS / 1e9)
    return seen


def write_since(before: Seen, root: str, file: BinaryIO, manner: Manner) -> None:
    """Write what changed in `root` since it was looked at as a layer; else as `write_changes`."""
    children = defaultdict[str, list[str]](list)
    for path in filter(None, before):
        parent, slash, name = path.rpartition("/")
        children[parent + slash].append(name)

    def gone(fd: int, prefix: str) -> Iterator[Found]:
        missing = set(children[prefix]).difference(os.listdir(fd))
        for name in sorted(missing, key=os.fsencode):
            yield Found("gone", name, prefix + name, os.fstat(fd))

    def walk(top: int) -> Iterator[Found]:
        yield from gone(top, "")
        for found in _walk(top, None, None, root):
            yield found
            if found.kind == "dir":
                yield from gone(found.fd, found.path + "/")

    def same(found: Found) -> bool:
        return before.get(found.path) == signature(found.status)

    with ExitStack() as stack:
        fd = _opened(stack, root)
        top = before[""] == signature(os.fstat(fd))
        _write_layer(Members(file, manner), None if top else fd, walk(fd), same)


def _write_layer(
    members: Members, top: int | None, walk: Iterator["Found"], same: Callable[["Found"], bool]
) -> None:
    """Write a layer of what is not the `same` as before; `top` is the root, if that is another."""
    parents: list[Found] = []  # directories not written yet, the outermost first
    if top is not None:
        members.directory("./", os.fstat(top), top)
    for found in walk:
        if found.kind == "left":
            if parents:
                parents.pop()
            continue
        if found.name.startswith(_GONE):
            raise CopyError(
                f"a layer can't hold {found.path!r}: that means a removed file",
                hint="a directory or a tar archive can hold it",
            )
        if found.kind == "dir":
            # One that did not change goes along with what changed in it: its time has to stay.
            parents.append(found)
        if found.kind != "gone" and same(found):
            continue
        for parent in parents:
            members.directory(parent.path, parent.status, parent.fd)
        parents.clear()
        if found.kind == "file":
            members.file(found.at, found.name, found.path, found.status)
        elif found.kind == "gone":
            members.gone(f"{found.path[: -len(found.name)]}{_GONE}{found.name}")
    members.finish()


class Found(NamedTuple):
    """A name on a walk through two roots. Descriptors are good until the next one.

    `kind`: dir, file (anything else), gone (only `was` is there), left (the end of a directory).
    `at` and `old_at` are the directories it is in; `fd` and `old_fd` a directory itself.
    """

    kind: str
    name: str
    path: str
    status: os.stat_result
    was: os.stat_result | None = None
    at: int = -1
    old_at: int = -1
    fd: int = -1
    old_fd: int = -1


class _Level(NamedTuple):
    stack: ExitStack
    fd: int
    old: int | None
    upper: int | None
    prefix: str
    names: Iterator[str]
    found: Found | None


def _walk(new: int, old: int | None, upper: Upper | None, root: str) -> Iterator[Found]:
    """All that is in `new`, and what is only in `old`, in the order of names' bytes.

    With `upper`, where it says that something may have changed.
    """
    with ExitStack() as outer:
        hint = None if upper is None else _opened(outer, upper.path)
        opaque = "" if upper is None else upper.opaque
        levels = [_level(ExitStack(), new, old, hint, "", None)]
        try:
            while levels:
                level = levels[-1]
                name = next(level.names, None)
                if name is None:
                    if level.found is not None:
                        yield level.found._replace(kind="left")
                    levels.pop().stack.close()
                    continue
                found = _look(level, name)
                if found is None:
                    continue
                if found.kind != "dir":
                    yield found
                    continue
                if len(levels) >= _DEEPEST:
                    raise too_deep(root)
                levels.append(_enter(level, found, opaque))
                found = levels[-1].found
                assert found is not None
                yield found
        finally:
            for level in levels:
                level.stack.close()


def _level(
    stack: ExitStack, fd: int, old: int | None, upper: int | None, prefix: str, found: Found | None
) -> _Level:
    names = set(os.listdir(fd if upper is None else upper))
    if upper is None and old is not None:
        names.update(os.listdir(old))
    return _Level(stack, fd, old, upper, prefix, iter(sorted(names, key=os.fsencode)), found)


def _look(level: _Level, name: str) -> Found | None:
    status = was = None
    with suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
    if level.old is not None:
        with suppress(FileNotFoundError):
            was = os.stat(name, dir_fd=level.old, follow_symlinks=False)
    path, old_at = level.prefix + name, -1 if level.old is None else level.old
    if status is None:
        return None if was is None else Found("gone", name, path, was, was, level.fd, old_at)
    kind = "dir" if stat.S_ISDIR(status.st_mode) else "file"
    return Found(kind, name, path, status, was, level.fd, old_at)


def _enter(level: _Level, found: Found, opaque: str) -> _Level:
    with ExitStack() as stack:
        fd, old, upper = _opened(stack, found.name, level.fd), None, None
        if found.was is not None and stat.S_ISDIR(found.was.st_mode):
            old = _opened(stack, found.name, level.old)
            if level.upper is not None:
                upper = _opened(stack, found.name, level.upper)
                if _is_opaque(upper, opaque):
                    upper = None
        found = found._replace(fd=fd, old_fd=-1 if old is None else old)
        return _level(stack.pop_all(), fd, old, upper, found.path + "/", found)


def _opened(stack: ExitStack, name: str, at: int | None = None) -> int:
    fd = os.open(name, _DIRECTORY, dir_fd=at)
    stack.callback(os.close, fd)
    return fd


def _is_opaque(fd: int, attribute: str) -> bool:
    try:
        return os.getxattr(fd, attribute) == b"y"
    except OSError:
        return False


# --- what is the same ----------------------------------------------------------------------------


def _newly_linked(walk: Iterator[Found], *, strict: bool) -> set[tuple[int, int]]:
    """Files of several names that were not all names of one file before, or that changed."""
    before: dict[tuple[int, int], tuple[int, int] | None] = {}
    changed: set[tuple[int, int]] = set()
    for found in walk:
        if found.kind != "file" or found.status.st_nlink < 2 or _same_inode(found):
            continue  # a new name of a file changes its time
        mark = _mark(found.status)
        was = None if found.was is None else _mark(found.was)
        if before.setdefault(mark, was) != was or not _same_file(found, strict=strict):
            changed.add(mark)
    return changed


def _mark(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _same_inode(found: Found) -> bool:
    was, status = found.was, found.status
    return was is not None and (was.st_ino, was.st_ctime_ns, was.st_mode) == (
        status.st_ino, status.st_ctime_ns, status.st_mode,
    )  # fmt: skip


def _same_status(was: os.stat_result, status: os.stat_result) -> bool:
    """Type, mode, owner and time, which a layer tells of every member."""
    return (was.st_mode, was.st_uid, was.st_gid, was.st_mtime_ns) == (
        status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns,
    )  # fmt: skip


def _same_directory(found: Found) -> bool:
    was = found.was
    if was is None or found.old_fd < 0 or not _same_status(was, found.status):
        return False
    return pax_xattrs(found.fd) == pax_xattrs(found.old_fd)


def _same_file(found: Found, *, strict: bool) -> bool:
    """Whether the old root has the very same file. `strict`: with as many names."""
    was, status, name = found.was, found.status, found.name
    if was is None or not _same_status(was, status) or was.st_size != status.st_size:
        return False
    if strict and was.st_nlink != status.st_nlink:
        return False
    if _same_inode(found):
        return True
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(name, dir_fd=found.at) == os.readlink(name, dir_fd=found.old_at)
    if stat.S_ISREG(status.st_mode):
        return _same_content(found)
    return was.st_rdev == status.st_rdev


def _same_content(found: Found) -> bool:
    with (
        open(os.open(found.name, _FILE, dir_fd=found.at), "rb", buffering=0) as new,
        open(os.open(found.name, _FILE, dir_fd=found.old_at), "rb", buffering=0) as was,
    ):
        if pax_xattrs(new.fileno()) != pax_xattrs(was.fileno()):
            return False
        while True:
            ours, theirs = new.read(_BLOCK), was.read(_BLOCK)
            if ours != theirs:
                return False
            if not ours:
                return True
