"""Files seen with other ids than they have on disk, so that a user who is not their owner is.

Most file systems let any mount of theirs be shifted (`linux.mount_setattr`); an overlay does not,
but may stand on layers that are. So an overlay is mounted anew, in its place, on shifted layers.
"""

import errno
import os
import re
import time

from obuilder.system import linux, process

_PATIENCE = 5.0
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def shift(on_disk: int, seen: tuple[int, int]) -> int:
    """A user namespace by which `on_disk` is seen as user `seen[0]` and group `seen[1]`. OSError.

    Root stays root: what the kernel makes for itself in a file system belongs to it.
    """
    started = process.start(["unshare", "--user", "cat"], held=True)
    try:
        place, end = f"/proc/{started.pid}", time.monotonic() + _PATIENCE
        while os.readlink(f"{place}/ns/user") == os.readlink("/proc/self/ns/user"):
            if time.monotonic() > end:
                raise OSError(errno.ETIMEDOUT, "no user namespace could be made")
            time.sleep(0.001)
        for name, number in zip(("uid_map", "gid_map"), seen, strict=True):
            with open(f"{place}/{name}", "w", encoding="ascii") as file:
                file.write(f"0 0 1\n{on_disk} {number} 1\n")
        return os.open(f"{place}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        started.discard()


def is_overlay(path: str) -> bool:
    """Whether an overlay is mounted at `path`."""
    return _overlay(path) is not None


def restack(path: str, ids: int, scratch: str) -> None:
    """Mount the overlay at `path` anew, its layers shifted by `ids`. OSError: EBUSY if in use.

    Its layers must be on one file system. `scratch` is an empty directory that is used meanwhile.
    """
    options = _overlay(path)
    if options is None:
        raise OSError(errno.EINVAL, "not an overlay", path)
    lowers = [os.path.realpath(value) for name, value in options if name == "lowerdir+"]
    for name, value in options:
        if name == "lowerdir":
            lowers += [os.path.realpath(part) for part in value.split(":")]
    upper = {name: os.path.realpath(value) for name, value in options if name in _WRITABLE}
    if upper:
        # The kernel left a mark in the old one, that it may not be used again.
        upper["workdir"] += ".shifted"
        os.mkdir(upper["workdir"], 0o700)
    common = os.path.commonpath([*lowers, *upper.values()])
    shown = linux.open_tree(common, linux.OPEN_TREE_CLONE)
    try:
        linux.mount_setattr(shown, ids=ids)
        linux.move_mount(shown, scratch)
    finally:
        os.close(shown)
    try:
        for place in (*lowers, *upper.values()):
            if os.stat(place).st_ino != os.stat(_below(scratch, place, common)).st_ino:
                raise OSError(errno.EXDEV, "the overlay's layers are not on one file system", path)
        linux.unmount(path)
        mounted = _stack(options, lowers, upper, scratch, common)
        try:
            linux.move_mount(mounted, path)
        finally:
            os.close(mounted)
    finally:
        linux.unmount(scratch, linux.MNT_DETACH)


_WRITABLE = ("upperdir", "workdir")


def _stack(
    options: list[tuple[str, str]],
    lowers: list[str],
    upper: dict[str, str],
    scratch: str,
    common: str,
) -> int:
    context = linux.fsopen("overlay")
    try:
        linux.fsconfig_string(context, "source", "overlay")
        for lower in lowers:
            linux.fsconfig_string(context, "lowerdir+", _below(scratch, lower, common))
        for name, value in upper.items():
            linux.fsconfig_string(context, name, _below(scratch, value, common))
        for name, value in options:
            if name in ("lowerdir+", "lowerdir", *_WRITABLE, "ro", "rw"):
                continue
            if (name, value) == ("fsync", "volatile"):
                linux.fsconfig_flag(context, "volatile")
            elif value:
                linux.fsconfig_string(context, name, value)
            else:
                linux.fsconfig_flag(context, name)
        linux.fsconfig_create(context)
        readonly = 0 if upper else linux.MOUNT_ATTR_RDONLY
        return linux.fsmount(context, linux.MOUNT_ATTR_NODEV | readonly)
    finally:
        os.close(context)


def _below(scratch: str, place: str, common: str) -> str:
    return os.path.join(scratch, os.path.relpath(place, common))


def _overlay(path: str) -> list[tuple[str, str]] | None:
    """The options of the overlay at `path` as the kernel tells them; None if none is there."""
    wanted, found = os.path.realpath(path), None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            words = line.split()
            if _plain(words[4]) == wanted:
                kind, _, shown = words[words.index("-") + 1 :]
                found = shown if kind == "overlay" else None
    if found is None:
        return None
    pairs = [word.partition("=") for word in found.split(",")]
    return [(name, _plain(value)) for name, _, value in pairs]


def _plain(text: str) -> str:
    """Text without the kernel's octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
