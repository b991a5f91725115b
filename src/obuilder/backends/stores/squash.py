"""One tree made of several overlay layers: what they show together.

Whiteouts (character device 0:0) and opaque directories keep hiding what is below, unless nothing
is below any more. Works on descriptors only, so no symlink of a layer is ever followed.
"""

import errno
import os
import stat
from contextlib import ExitStack, suppress

from obuilder.backends.stores.placing import Item, Place, copy_attributes, link

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def squash(
    layers: list[str], target: str, *, opaque: str, below: list[str], place: Place = link
) -> None:
    """Make `target`, a new directory, of `layers`, the newest first; `place` puts files there.

    `opaque` is the name of the attribute that marks a directory as opaque here; `below` are
    the layers under the last one, the newest first.
    """
    with ExitStack() as stack:
        folders = [_open(layer, None, stack) for layer in layers]
        os.mkdir(target, 0o700)
        into = _open(target, None, stack)
        under = [_open(layer, None, stack) for layer in below]
        # With one layer alone there is nothing that a whiteout could hide: it is a step's device.
        merge = _Merge(opaque, place, into, devices=len(folders) + len(under) == 1)
        merge.fill(folders, into, under, "")


def _open(name: str, at: int | None, stack: ExitStack) -> int:
    fd = os.open(name, _FOLDER, dir_fd=at)
    stack.callback(os.close, fd)
    return fd


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


class _Merge:
    def __init__(self, opaque: str, place: Place, top: int, *, devices: bool) -> None:
        self._opaque, self._place, self._top, self._devices = opaque, place, top, devices

    def fill(self, folders: list[int], into: int, below: list[int], path: str) -> None:
        """Fill `into`, which is at `path`, with what `folders`, the newest first, show together."""
        seen = set[str]()
        for position, folder in enumerate(folders):
            for name in os.listdir(folder):
                if name in seen:
                    continue
                seen.add(name)
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    inner = f"{path}/{name}" if path else name
                    self._folder(name, folders[position:], into, below, inner)
                elif not _is_whiteout(found) or self._devices:
                    self._place(Item(name, found, folder, into, path, self._top))
                elif below:
                    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=into)
        copy_attributes(folders[0], into)
        if not below:
            with suppress(OSError):
                os.removexattr(into, self._opaque)

    def _folder(
        self, name: str, folders: list[int], into: int, below: list[int], path: str
    ) -> None:
        with ExitStack() as stack:
            parts, cut = self._shown(name, folders, stack)
            # A whiteout with no directory below it would show: the kernel looks for them in
            # directories of several layers only.
            lower = [] if cut else self._shown(name, below, stack)[0]
            os.mkdir(name, 0o700, dir_fd=into)
            made = _open(name, into, stack)
            self.fill(parts, made, lower, path)
            if cut and below:
                os.setxattr(made, self._opaque, b"y")

    def _shown(self, name: str, folders: list[int], stack: ExitStack) -> tuple[list[int], bool]:
        """The directories called `name` that show through, and whether they hide all others."""
        parts = list[int]()
        for folder in folders:
            try:
                parts.append(_open(name, folder, stack))
            except FileNotFoundError:
                continue
            except OSError as error:  # a file, a symlink or a whiteout: it hides what is below
                if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                    raise
                return parts, True
            if self._is_opaque(parts[-1]):
                return parts, True
        return parts, False

    def _is_opaque(self, folder: int) -> bool:
        try:
            return os.getxattr(folder, self._opaque) == b"y"
        except OSError:
            return False
