"""Single files and directories out of results, whatever symlinks are in them."""

import os
import posixpath
import stat

import anyio.to_thread

from obuilder.engine.builder import Builder
from obuilder.errors import UsageError
from obuilder.system.files import copy_named, remove_at
from obuilder.system.linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from obuilder.system.namespaces import by_root
from obuilder.values import IdMap

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


async def take_out(builder: Builder, prefix: str, path: str, target: str) -> None:
    """Copy what is at `path` in a result to `target`, or by its name into that directory.

    Symlinks on the way are followed within the result; one that `path` itself names is copied as
    one, unless a slash follows. A file that is there already is replaced, a directory is not. As
    root, owners are the ids inside; an ordinary user owns everything. UsageError, OSError.
    """
    owners = None if by_root() else IdMap(first=0, count=1)
    idmap = builder.store.idmap
    async with builder.files(prefix) as root:
        await anyio.to_thread.run_sync(lambda: _take(root, path, target, idmap, owners))


def _take(root: str, path: str, target: str, idmap: IdMap, owners: IdMap | None) -> None:
    folder, new = _place(target, posixpath.basename(path.rstrip("/")), path)
    at, name = _found(root, path)
    scratch, place = f".obuilder-{os.urandom(8).hex()}", os.open(folder, _DIRECTORY)
    try:
        kind = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
        if stat.S_ISSOCK(kind) or stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            raise UsageError(f"{path} is a device or a socket, which can't be copied")
        os.mkdir(scratch, 0o700, dir_fd=place)
        inner = os.open(scratch, _DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
        try:
            copy_named(at, name, inner, new, idmap=idmap, onto=owners)
            os.rename(new, new, src_dir_fd=inner, dst_dir_fd=place)
        finally:
            os.close(inner)
            remove_at(scratch, at=place)
    except FileNotFoundError:
        raise _missing(path) from None
    finally:
        os.close(place)
        os.close(at)


def _place(target: str, name: str, path: str) -> tuple[str, str]:
    """The directory that a copy goes to, and its name there. UsageError."""
    if os.path.isdir(target):
        if name in ("", ".", ".."):
            raise UsageError(f"{path} has no name of its own", hint="name what it is to become")
        folder, new = target, name
    else:
        folder, new = os.path.split(target)
        folder = folder or "."
        if not new or not os.path.isdir(folder):
            raise UsageError(f"there is no directory {folder} to copy to", hint="make it first")
    whole = os.path.join(folder, new)
    if os.path.isdir(whole) and not os.path.islink(whole):
        raise UsageError(f"{whole} is a directory already", hint="remove it, or name another place")
    return folder, new


def _found(root: str, path: str) -> tuple[int, str]:
    """The directory in a root that has what `path` names, and its name there; `.` is itself."""
    parent, _, name = path.rpartition("/")
    if name in ("", ".", ".."):
        parent, name = path, "."
    top = os.open(root, _DIRECTORY)
    try:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        return openat2(parent or "/", os.O_RDONLY | os.O_DIRECTORY, at=top, resolve=resolve), name
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    finally:
        os.close(top)


def _missing(path: str) -> UsageError:
    return UsageError(f"the result has no {path}", hint="`obuilder shell` looks around in it")
