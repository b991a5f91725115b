"""Places in a root where a runtime can mount, made before a step and taken away after it.

All walks stay inside the root: openat2 with RESOLVE_IN_ROOT, whatever symlinks an image holds.
"""

import os
from typing import Self

from obuilder.errors import SandboxError
from obuilder.system import linux

_INSIDE = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS


class MountPoints:
    """The mount points of one step in `root`, made for `owner`. Use as a context manager."""

    def __init__(self, root: str, owner: tuple[int, int]) -> None:
        self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._top = os.readlink(f"/proc/self/fd/{self._root}")
        self._owner = owner
        self._made: list[tuple[int, str, bool]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._clean()
        finally:
            os.close(self._root)

    def fixed(self, target: str) -> None:
        """A directory that has to be a real one. SandboxError if the image has a symlink there."""
        try:
            fd = linux.openat2(
                target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, at=self._root,
                resolve=_INSIDE | linux.RESOLVE_NO_SYMLINKS,
            )  # fmt: skip
        except FileNotFoundError:
            self.directory(target)
        except OSError as error:
            raise SandboxError(f"{target} in the image is not a directory") from error
        else:
            os.close(fd)

    def directory(self, target: str, *, keep: bool = False) -> str:
        """A directory at `target`; the same place without symlinks. `keep`: it stays."""
        fd = self._walk(target, keep=keep)
        try:
            return self._place(fd)
        finally:
            os.close(fd)

    def like(self, source: str, target: str) -> str:
        """What `source` is, a file or a directory, at `target`; the same place without symlinks."""
        place = self.directory(target) if os.path.isdir(source) else self.file(target)
        if place == "/" or place.split("/")[1] in {"proc", "sys", "dev"}:
            raise SandboxError(f"nothing can be mounted on {target}")
        return place

    def file(self, target: str) -> str:
        """A file at `target`; the same place without symlinks."""
        parent, _, name = target.rstrip("/").rpartition("/")
        try:
            fd = linux.openat2(target, os.O_PATH, at=self._root, resolve=_INSIDE)
        except FileNotFoundError:
            folder = self._walk(parent or "/", keep=False)
            try:
                new = os.open(
                    name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644,
                    dir_fd=folder,
                )  # fmt: skip
            except OSError as error:
                os.close(folder)
                raise SandboxError(f"can't show a file at {target}: {error.strerror}") from error
            os.fchown(new, *self._owner)
            os.close(new)
            self._made.append((folder, name, False))
            return os.path.join(self._place(folder), name)
        except OSError as error:
            raise SandboxError(f"can't show a file at {target}: {error.strerror}") from error
        try:
            return self._place(fd)
        finally:
            os.close(fd)

    def _walk(self, target: str, *, keep: bool) -> int:
        done = ""
        here = os.dup(self._root)
        for part in [part for part in target.split("/") if part not in {"", "."}]:
            done = f"{done}/{part}"
            try:
                deeper = self._open(done)
            except FileNotFoundError:
                try:
                    os.mkdir(part, 0o755, dir_fd=here)
                    deeper = os.open(
                        part, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here
                    )
                except OSError as error:
                    os.close(here)
                    raise SandboxError(f"can't make {target}: {error.strerror}") from error
                os.fchown(deeper, *self._owner)
                if not keep:
                    self._made.append((os.dup(here), part, True))
            except OSError as error:
                os.close(here)
                raise SandboxError(f"can't make {target}: {error.strerror}") from error
            os.close(here)
            here = deeper
        return here

    def _open(self, path: str) -> int:
        return linux.openat2(path, os.O_PATH | os.O_DIRECTORY, at=self._root, resolve=_INSIDE)

    def _place(self, fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}").removeprefix(self._top) or "/"

    def _clean(self) -> None:
        for folder, name, is_directory in reversed(self._made):
            try:
                if is_directory:
                    os.rmdir(name, dir_fd=folder)
                elif os.stat(name, dir_fd=folder, follow_symlinks=False).st_size == 0:
                    os.unlink(name, dir_fd=folder)
            except OSError:
                pass  # the step put something there or took it away: that is its result
            finally:
                os.close(folder)
        self._made.clear()
