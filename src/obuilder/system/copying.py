"""Putting files into a root from outside: no program of the root is needed, none is trusted."""

import errno
import hashlib
import os
import stat

from obuilder.errors import CopyError, of_disk
from obuilder.system.files import InRoot, write_all
from obuilder.system.linux import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from obuilder.system.tree import Entry, Manifest
from obuilder.values import IdMap

_BLOCK = 1 << 20


def copy_in(
    root: str,
    manifest: Manifest,
    source_root: str,
    *,
    to: str,
    owner: tuple[int, int],
    idmap: IdMap,
) -> None:
    """Copy what `manifest` lists from `source_root` to `to` (absolute, normalised) in `root`.

    Symlinks on the way to a file are followed inside the root and never replaced; a symlink at a
    file's own place is replaced. Missing parents of `to` are made for root, 0755; existing
    directories keep owner, mode and time. New files belong to `owner` (ids inside) with mode 0644,
    or 0755 if executable; times of files and symlinks are kept. A file over a directory, or a
    directory over a file, is a CopyError; so is content that is not what the manifest says.
    """
    _Copy(manifest, to, owner, idmap).run(root, source_root)


class _Copy:
    def __init__(self, manifest: Manifest, to: str, owner: tuple[int, int], idmap: IdMap) -> None:
        self._manifest = manifest
        self._base = "/".join(part for part in to.split("/") if part not in ("", "."))
        if ".." in self._base.split("/"):
            raise CopyError(f"the destination {to!r} is not normalised")
        try:
            self._owner = (-1, -1)
            self._parents = (-1, -1)
            if not idmap.single:
                self._owner = (idmap.to_disk(owner[0]), idmap.to_disk(owner[1]))
                self._parents = (idmap.to_disk(0), idmap.to_disk(0))
        except ValueError as error:
            raise CopyError(str(error)) from error

    def run(self, root: str, source_root: str) -> None:
        source = os.open(source_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        path = ""
        try:
            with InRoot(root) as inside:
                entries = self._manifest.entries
                if not entries or entries[0].path:
                    self._directory(inside, self._base)
                for entry in entries:
                    path = self._place(entry.path)
                    self._put(inside, entry, path, source)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise of_disk(f"can't copy to /{path}", error) from error
            raise CopyError(f"can't copy to /{path}: {_reason(error)}") from error
        finally:
            os.close(source)

    def _place(self, path: str) -> str:
        return f"{self._base}/{path}" if self._base and path else self._base or path

    def _directory(self, inside: InRoot, path: str) -> None:
        """Make the directory `path` for the owner unless it is there; its parents for root."""
        parent, _, name = path.rpartition("/")
        if not name:
            return
        at = inside.directory(parent, make=self._parents)
        try:
            os.mkdir(name, 0o755, dir_fd=at)
        except FileExistsError:
            inside.directory(path)
            return
        fd = inside.directory(path)
        os.fchmod(fd, 0o755)
        if self._owner != (-1, -1):
            os.fchown(fd, *self._owner)

    def _put(self, inside: InRoot, entry: Entry, path: str, source: int) -> None:
        if entry.kind == "dir":
            self._directory(inside, path)
            return
        parent, _, name = path.rpartition("/")
        if not name:
            raise CopyError("a file can't become the root directory")
        at = inside.directory(parent, make=self._parents)
        try:
            before = os.stat(name, dir_fd=at, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISDIR(before.st_mode):
                raise CopyError(
                    f"can't copy {entry.source!r} over /{path}: a directory is there",
                    hint="end the destination with '/' to put the file into it",
                )
            os.unlink(name, dir_fd=at)
        if entry.kind == "file":
            self._file(entry, name, at, source)
        elif entry.kind == "symlink":
            self._symlink(entry, name, at, source)
        else:
            at = os.dup(at)
            try:
                first, _, first_name = self._place(entry.target).rpartition("/")
                os.link(
                    first_name, name,
                    src_dir_fd=inside.directory(first), dst_dir_fd=at, follow_symlinks=False,
                )  # fmt: skip
            finally:
                os.close(at)

    def _symlink(self, entry: Entry, name: str, at: int, source: int) -> None:
        status = link_status(entry, source)
        os.symlink(entry.target, name, dir_fd=at)
        if self._owner != (-1, -1):
            os.chown(name, *self._owner, dir_fd=at, follow_symlinks=False)
        os.utime(name, ns=(status.st_mtime_ns,) * 2, dir_fd=at, follow_symlinks=False)

    def _file(self, entry: Entry, name: str, at: int, source: int) -> None:
        fd = open_entry(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, source)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
                raise changed_entry(entry)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            made = os.open(name, flags, 0o600, dir_fd=at)
            try:
                try:
                    sparse = status.st_blocks * 512 < status.st_size
                    if transfer(fd, made, entry.size, sparse=sparse) != entry.digest:
                        raise changed_entry(entry)
                except BaseException:
                    os.unlink(name, dir_fd=at)
                    raise
                if self._owner != (-1, -1):
                    os.fchown(made, *self._owner)
                os.fchmod(made, 0o755 if entry.executable else 0o644)
                os.utime(made, ns=(status.st_mtime_ns,) * 2)
            finally:
                os.close(made)
        finally:
            os.close(fd)


def open_entry(entry: Entry, flags: int, source: int) -> int:
    """A descriptor of what an entry names below the directory `source`. CopyError."""
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    try:
        if not flags & os.O_PATH:
            return openat2(entry.source, flags, at=source, resolve=resolve)
        # the last component may be a symlink: its directory may not
        parent, _, name = entry.source.rpartition("/")
        at = openat2(parent or ".", os.O_PATH | os.O_DIRECTORY, at=source, resolve=resolve)
        try:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=at)
        finally:
            os.close(at)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
            raise changed_entry(entry) from error
        raise CopyError(f"can't read {entry.source!r}: {error.strerror}") from error


def link_status(entry: Entry, source: int) -> os.stat_result:
    """The status of a symlink below the directory `source` that is as it was found. CopyError."""
    fd = open_entry(entry, os.O_PATH | os.O_NOFOLLOW, source)
    try:
        status = os.fstat(fd)
        if not stat.S_ISLNK(status.st_mode) or os.readlink("", dir_fd=fd) != entry.target:
            raise changed_entry(entry)
    except OSError as error:  # one that was replaced since can't be read on FUSE
        raise changed_entry(entry) from error
    finally:
        os.close(fd)
    return status


def transfer(source: int, target: int, size: int, *, sparse: bool) -> str:
    """Copy `size` bytes and return the digest of all that was there to read."""
    digest = hashlib.sha256()
    at = 0
    while data := os.read(source, _BLOCK):
        at += len(data)
        if at > size:
            return "longer"
        digest.update(data)
        if sparse and not data.strip(b"\0"):
            os.lseek(target, len(data), os.SEEK_CUR)
        else:
            write_all(target, data)
    if sparse:
        os.ftruncate(target, at)
    return digest.hexdigest()


def changed_entry(entry: Entry) -> CopyError:
    """What to raise for an entry that is not what was found before."""
    return CopyError(f"{entry.source!r} changed while it was copied", hint="run the build again")


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file is in the way of a directory"
    if error.errno == errno.ENOENT:
        return "a dangling symlink is in the way"
    return error.strerror or str(error)
