"""Putting a selection into a root as a Dockerfile's COPY does: no program of the root is needed."""

import errno
import os
import stat

from obuilder.errors import CopyError
from obuilder.spec.modes import changed
from obuilder.system.copying import changed_entry, open_entry, transfer
from obuilder.system.files import InRoot, remove_at
from obuilder.system.picking import Selection, Source
from obuilder.system.tree import Entry
from obuilder.values import IdMap

_LINKS = 255


def add_in(
    root: str,
    selection: Selection,
    source_root: str,
    *,
    to: str,
    into: bool,
    owner: tuple[int, int] | None,
    permissions: str,
    link: bool,
    idmap: IdMap,
) -> None:
    """Copy a selection from `source_root` to `to` (absolute, normalised) in `root`. CopyError.

    A directory's content goes into `to`; a file becomes `to`, or goes into it under its name if a
    directory is there or it has to be one (`into`). Symlinks on the way to `to`, and at it, are
    followed inside the root; below it a symlink in a file's place is replaced, and one in a
    directory's place is an error. With `link`, what is there counts for nothing: whatever is in
    the way, but for directories, is replaced. What is made belongs to `owner` (ids inside), or to
    the entry's own, and has the source's permissions and times, changed by `permissions`. `to`
    itself stays as it is if it is there; directories below it take the source's permissions.
    """
    _Adding(root, owner, permissions, idmap, link=link).run(selection, source_root, to, into=into)


class _Adding:
    def __init__(
        self,
        root: str,
        owner: tuple[int, int] | None,
        permissions: str,
        idmap: IdMap,
        *,
        link: bool,
    ) -> None:
        self.root, self.permissions, self.link = root, permissions, link
        self.given, self.idmap = owner, idmap

    def owner(self, theirs: tuple[int, int] | None = None) -> tuple[int, int]:
        """Who something is given to, on disk; `theirs`: whose it is where it comes from."""
        if self.idmap.single:
            return (-1, -1)
        uid, gid = self.given or theirs or (0, 0)
        try:
            return self.idmap.to_disk(uid), self.idmap.to_disk(gid)
        except ValueError as error:
            raise CopyError(str(error)) from error

    def run(self, selection: Selection, source_root: str, to: str, *, into: bool) -> None:
        from_fd = os.open(source_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        path = to
        try:
            with InRoot(self.root) as inside:
                place = self.place(inside, to)
                if into:
                    self.make(inside, place)
                for source in selection.sources:
                    path = self.target(inside, source, place, into=into)
                    self.put(inside, source, path, from_fd)
        except OSError as error:
            raise CopyError(f"can't copy to /{path.lstrip('/')}: {_reason(error)}") from error
        finally:
            os.close(from_fd)

    def place(self, inside: InRoot, to: str) -> str:
        """The destination without symlinks, relative to the root; nothing needs to be there."""
        if self.link:
            return to.strip("/")
        left, found, followed = to.strip("/").split("/"), "", 0
        while left:
            part = left.pop(0)
            if part == "..":
                found = found.rpartition("/")[0]
                continue
            if part in ("", "."):
                continue
            path = f"{found}/{part}" if found else part
            try:
                target = os.readlink(part, dir_fd=inside.directory(found))
            except (FileNotFoundError, NotADirectoryError):
                found = path
                continue
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                found = path
                continue
            followed += 1
            if followed > _LINKS:
                raise OSError(errno.ELOOP, "too many symlinks", to)
            if target.startswith("/"):
                found = ""
            left = target.split("/") + left
        return found

    def target(self, inside: InRoot, source: Source, place: str, *, into: bool) -> str:
        """Where a source goes, its parent made."""
        if source.entries[0].kind == "dir":
            return place
        if into or (not self.link and self.is_directory(inside, place)):
            return f"{place}/{source.name}" if place else source.name
        if not place:
            raise CopyError("a file can't become the root directory")
        return place

    def is_directory(self, inside: InRoot, path: str) -> bool:
        try:
            inside.directory(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def make(self, inside: InRoot, path: str) -> None:
        """Make a directory, and those above it, for the owner; what is there stays."""
        done = ""
        for part in path.split("/") if path else ():
            at = inside.directory(done)
            done = f"{done}/{part}" if done else part
            if self.link:
                self.clear(inside, part, at)
            try:
                os.mkdir(part, 0o755, dir_fd=at)
            except FileExistsError:
                continue
            octal = self.permissions.isdecimal()
            mode = self.mode(0o755, directory=True) if octal else 0o755
            self.dress(inside, done, mode, self.owner())

    def clear(self, inside: InRoot, name: str, at: int) -> None:
        """Take away what is in the way of a directory."""
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                return
        except FileNotFoundError:
            return
        os.unlink(name, dir_fd=at)
        inside.forget()

    def dress(self, inside: InRoot, path: str, mode: int, owner: tuple[int, int]) -> None:
        fd = inside.directory(path)
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)

    def mode(self, mode: int, *, directory: bool) -> int:
        if not self.permissions:
            return mode
        return changed(self.permissions, mode, directory=directory)

    def put(self, inside: InRoot, source: Source, target: str, from_fd: int) -> None:
        made: list[tuple[str, int]] = []
        directory = source.entries[0].kind == "dir"
        self.make(inside, target if directory else target.rpartition("/")[0])
        for entry in source.entries:
            path = f"{target}/{entry.path}" if target and entry.path else target or entry.path
            if entry.kind == "dir":
                if self.directory(inside, entry, path):
                    status = os.stat(entry.source or ".", dir_fd=from_fd, follow_symlinks=False)
                    made.append((path, status.st_mtime_ns))
            else:
                self.file(inside, entry, path, target, from_fd)
        for path, time in reversed(made):
            os.utime(inside.directory(path), ns=(time, time))

    def directory(self, inside: InRoot, entry: Entry, path: str) -> bool:
        """Make a directory, or take one that is there. Whether its metadata are the source's now."""
        if not path:
            return False
        parent, _, name = path.rpartition("/")
        at = inside.directory(parent)
        if self.link:
            self.clear(inside, name, at)
            at = inside.directory(parent)
        try:
            os.mkdir(name, 0o700, dir_fd=at)
        except FileExistsError:
            status = os.stat(name, dir_fd=at, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                raise CopyError(
                    f"can't copy the directory {entry.source!r} over /{path}: no directory is there"
                ) from None
            if not entry.path:
                return False
        self.dress(inside, path, self.mode(entry.mode, directory=True), self.owner(entry.owner))
        return True

    def file(self, inside: InRoot, entry: Entry, path: str, target: str, from_fd: int) -> None:
        parent, _, name = path.rpartition("/")
        at = inside.directory(parent)
        try:
            before = os.stat(name, dir_fd=at, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISDIR(before.st_mode) and not self.link:
                raise CopyError(f"can't copy {entry.source!r} over /{path}: a directory is there")
            if stat.S_ISDIR(before.st_mode):
                remove_at(name, at=at)
                inside.forget()
                at = inside.directory(parent)
            else:
                os.unlink(name, dir_fd=at)
        if entry.kind == "hardlink":
            first = f"{target}/{entry.target}" if target else entry.target
            folder, _, first_name = first.rpartition("/")
            at = os.dup(at)
            try:
                os.link(
                    first_name, name,
                    src_dir_fd=inside.directory(folder), dst_dir_fd=at, follow_symlinks=False,
                )  # fmt: skip
            finally:
                os.close(at)
            return
        flags = os.O_PATH if entry.kind == "symlink" else os.O_RDONLY | os.O_NONBLOCK
        fd = open_entry(entry, flags | os.O_NOFOLLOW, from_fd)
        try:
            status = os.fstat(fd)
            if entry.kind == "symlink":
                self.symlink(entry, fd, status, name, at)
            else:
                self.content(entry, fd, status, name, at)
            times = (status.st_mtime_ns,) * 2
            os.utime(name, ns=times, dir_fd=at, follow_symlinks=False)
        finally:
            os.close(fd)

    def symlink(self, entry: Entry, fd: int, status: os.stat_result, name: str, at: int) -> None:
        if not stat.S_ISLNK(status.st_mode) or os.readlink("", dir_fd=fd) != entry.target:
            raise changed_entry(entry)
        os.symlink(entry.target, name, dir_fd=at)
        os.chown(name, *self.owner(entry.owner), dir_fd=at, follow_symlinks=False)

    def content(self, entry: Entry, fd: int, status: os.stat_result, name: str, at: int) -> None:
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            raise changed_entry(entry)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        made = os.open(name, flags, 0o600, dir_fd=at)
        try:
            sparse = status.st_blocks * 512 < status.st_size
            if transfer(fd, made, entry.size, sparse=sparse) != entry.digest:
                os.unlink(name, dir_fd=at)
                raise changed_entry(entry)
            os.fchown(made, *self.owner(entry.owner))
            os.fchmod(made, self.mode(entry.mode, directory=False))
        finally:
            os.close(made)


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file is in the way of a directory"
    return error.strerror or str(error)
