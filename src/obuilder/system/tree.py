"""What a copy would copy: a manifest of files, and the scan that makes it."""

import hashlib
import os
import stat
import time
from typing import Literal, Protocol

from msgspec import Struct

from obuilder.errors import CopyError

Kind = Literal["file", "dir", "symlink", "hardlink"]


class Entry(Struct, frozen=True):
    """One name of a copy.

    `path` is relative to the destination ("" is the destination itself), `source` relative to the
    root it comes from; both in Python's file-system text. `executable` for files only. `digest`
    is the SHA-256 of a file's content in hexadecimal; `target` a symlink's text, or the `path` of
    the entry that a hard link shares its content with.
    """

    path: str
    source: str
    kind: Kind
    executable: bool = False
    size: int = 0
    digest: str = ""
    target: str = ""
    mode: int = 0
    """Permissions, for a `Selection` alone."""
    owner: tuple[int, int] | None = None
    """Ids inside, where a selection keeps owners."""


class Manifest(Struct, frozen=True):
    """All entries, parents before children, in the order of their paths' bytes.

    `digest` is the SHA-256 of what is copied (path, kind, executable bit, content, link target);
    where the files come from is not in it.
    """

    entries: tuple[Entry, ...]
    digest: str


class StatCache(Protocol):
    """Digests of files by absolute path (of archives: what they hold), each with the signature it
    was found under.
    """

    def get(self, path: str, signature: bytes) -> str | None:
        """The digest remembered for `path` with this very signature."""

    def put(self, path: str, signature: bytes, digest: str) -> None:
        """Remember a digest."""


class Ignored(Protocol):
    """What is left out of a copy, by paths relative to the root that is copied from."""

    takes_back: bool
    """Whether something below a path that matches may not match."""

    def matches(self, path: str) -> bool:
        """Whether the path is left out."""


_RACY_NS = 2_000_000_000
"""A file changed this shortly before it was hashed may change again within one tick of its
file system's clock: its digest is not remembered."""

_Found = dict[str, tuple[str, os.stat_result]]
"""By destination path: the source path and what lstat said."""


def signature(status: os.stat_result) -> bytes:
    """All of a file's status that changes when its content does."""
    return b"%d %d %d %d %d" % (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def settled(status: os.stat_result) -> bool:
    """Whether a file's last change is long enough ago for its signature to be trusted."""
    return max(status.st_mtime_ns, status.st_ctime_ns) + _RACY_NS < time.time_ns()


def scan(
    root: str,
    src: tuple[str, ...],
    *,
    into: bool,
    dst: str,
    exclude: tuple[str, ...],
    ignored: "Ignored | None",
    stats: StatCache | None,
) -> Manifest:
    """What copying `src` (relative to `root`) would copy. CopyError.

    `into`: sources go under the destination by their base names, the children of a source of `.`
    directly; else the single source becomes the destination. No symlink is ever followed; one
    named as a source is copied as a symlink. `exclude` has exact base names of children at any
    depth, never of a named source; `ignored` is asked for every path below `root`. What is under an
    ignored directory is looked at only where `ignored` may take some of it back.
    """
    if not src:
        raise CopyError("no source items for copy")
    if len(src) > 1 and not into:
        raise CopyError(
            f"several sources can't all become {dst!r}",
            hint="end the destination with '/' to put them under it",
        )
    walk = _Walk(root, frozenset(exclude), ignored)
    try:
        for source in src:
            walk.source(source, into=into)
        return walk.manifest(stats)
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else ""
        raise CopyError(f"can't read {name!r}: {error.strerror}") from error
    finally:
        os.close(walk.fd)


class _Walk:
    def __init__(self, root: str, exclude: frozenset[str], ignored: "Ignored | None") -> None:
        self.root = root
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._exclude = exclude
        self._ignored = ignored
        self._found: _Found = {}
        self._passed: _Found = {}  # ignored directories with something below that is not

    def source(self, text: str, *, into: bool) -> None:
        """Find what one source names, with all below it."""
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise CopyError(f"can't use .. in source paths ({text!r})")
        path = ""
        status = os.fstat(self.fd)
        for part in parts:
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(path, dir_fd=self.fd)
                raise CopyError(
                    f"source path {text!r} goes through a symlink, {path!r}",
                    hint=f"name the files by their real place: it points to {target!r}",
                )
            if not stat.S_ISDIR(status.st_mode):
                raise CopyError(f"source path {text!r}: {path!r} is not a directory")
            path = f"{path}/{part}" if path else part
            try:
                status = os.stat(path, dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                raise CopyError(f"source path {text!r} not found") from None
        to = parts[-1] if into and parts else ""
        if parts and self._ignored is not None and self._ignored.matches(path):
            if self._ignored.takes_back and stat.S_ISDIR(status.st_mode):
                self._passed[to] = (path, status)
                self._below(to, path, status)
            if to not in self._found:
                raise CopyError(
                    f"source path {text!r} is left out by .obuilderignore",
                    hint="take it back there, with ! before its name in a later line",
                )
            return
        if parts or not into:
            self._add(to, path, status)
        if stat.S_ISDIR(status.st_mode):
            self._below(to, path, status)

    def _add(self, to: str, path: str, status: os.stat_result) -> None:
        mode = status.st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            kinds = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
            kind = kinds.get(stat.S_IFMT(mode), "device")
            raise CopyError(
                f"can't copy {path!r}: it is a {kind}", hint="leave it out with (exclude …)"
            )
        earlier = self._found.get(to)
        if earlier is not None and stat.S_ISDIR(earlier[1].st_mode) != stat.S_ISDIR(mode):
            raise CopyError(f"{earlier[0]!r} and {path!r} would both become {to!r}")
        self._found[to] = (path, status)

    def _below(self, to: str, path: str, status: os.stat_result) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        pending = [(to, path, status)]
        found, exclude, ignored = self._found, self._exclude, self._ignored
        passed = self._passed
        while pending:
            to, path, status = pending.pop()
            fd = os.open(path or ".", flags, dir_fd=self.fd)
            try:
                now = os.fstat(fd)
                if (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino):
                    raise CopyError(f"{path!r} changed while it was looked at")
                to_prefix = to + "/" if to else ""
                prefix = path + "/" if path else ""
                with os.scandir(fd) as items:
                    for item in items:
                        name = item.name
                        if name in exclude:
                            continue
                        child = prefix + name
                        child_to = to_prefix + name
                        if ignored is not None and ignored.matches(child):
                            if ignored.takes_back and item.is_dir(follow_symlinks=False):
                                child_status = item.stat(follow_symlinks=False)
                                passed[child_to] = (child, child_status)
                                pending.append((child_to, child, child_status))
                            continue
                        if to in passed:
                            self._lead_to(to)
                        child_status = item.stat(follow_symlinks=False)
                        mode = child_status.st_mode
                        if stat.S_ISREG(mode) and child_to not in found:
                            found[child_to] = (child, child_status)
                            continue
                        self._add(child_to, child, child_status)
                        if stat.S_ISDIR(mode):
                            pending.append((child_to, child, child_status))
            finally:
                os.close(fd)

    def _lead_to(self, to: str) -> None:
        """Take in an ignored directory, and those above it, for what is below."""
        while to in self._passed:
            self._found[to] = self._passed.pop(to)
            to = to.rpartition("/")[0]

    def manifest(self, stats: StatCache | None) -> Manifest:
        """Hash what was found."""
        entries: list[Entry] = []
        linked: dict[tuple[int, int], str] = {}
        digest = hashlib.sha256()
        for path in sorted(self._found, key=os.fsencode):
            source, status = self._found[path]
            mode = status.st_mode
            if stat.S_ISDIR(mode):
                entry = Entry(path, source, "dir")
                line = f"dir\0{path}\0\0\0"
            elif stat.S_ISLNK(mode):
                target = os.readlink(source, dir_fd=self.fd)
                entry = Entry(path, source, "symlink", target=target)
                line = f"symlink\0{path}\0{target}\0\0"
            else:
                if status.st_nlink > 1:
                    first = linked.setdefault((status.st_dev, status.st_ino), path)
                    if first != path:
                        entries.append(Entry(path, source, "hardlink", target=first))
                        line = f"hardlink\0{path}\0{first}\0\0"
                        digest.update(line.encode("utf-8", "surrogateescape"))
                        continue
                content = content_digest(self.root, self.fd, source, status, stats)
                executable = bool(mode & 0o111)
                entry = Entry(path, source, "file", executable, status.st_size, content)
                line = f"file\0{path}\0{content}\0{'x' if executable else ''}\0"
            entries.append(entry)
            digest.update(line.encode("utf-8", "surrogateescape"))
        return Manifest(entries=tuple(entries), digest=digest.hexdigest())


def content_digest(
    root: str, fd: int, path: str, status: os.stat_result, stats: StatCache | None
) -> str:
    """The digest of a file below `root`, whose descriptor is `fd`; remembered in `stats`.

    CopyError if it is no longer what `status` says, or changes meanwhile.
    """
    if stats is not None:
        known = stats.get(f"{root}/{path}", signature(status))
        if known is not None:
            return known
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    opened = os.open(path, flags, dir_fd=fd)
    try:
        trusted = settled(status)
        if signature(os.fstat(opened)) != signature(status):
            raise CopyError(f"{path!r} changed while it was looked at")
        with open(opened, "rb", buffering=0, closefd=False) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if signature(os.fstat(opened)) != signature(status):
            raise CopyError(f"{path!r} changed while it was looked at")
    finally:
        os.close(opened)
    if stats is not None and trusted:
        stats.put(f"{root}/{path}", signature(status), digest)
    return digest
