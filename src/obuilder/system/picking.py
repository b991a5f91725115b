"""What a Dockerfile's COPY would copy: sources by pattern, each with all that is below it."""

import hashlib
import os
import stat

from msgspec import Struct

from obuilder.errors import CopyError
from obuilder.spec.ignore import IgnoreFile, name_pattern
from obuilder.system.linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from obuilder.system.tree import Entry, Ignored, StatCache, content_digest
from obuilder.values import IdMap

_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


class Source(Struct, frozen=True):
    """One thing to copy: its `name`, and its entries, the first (of the path "") for itself.

    Paths are relative to it; the others' parents stand before them.
    """

    name: str
    entries: tuple[Entry, ...]


class Selection(Struct, frozen=True):
    """All sources in order. `digest` covers names, kinds, permissions and content."""

    sources: tuple[Source, ...]
    digest: str


NOTHING = Selection((), "")


def pick(
    root: str,
    src: tuple[str, ...],
    *,
    exclude: tuple[str, ...],
    ignored: Ignored | None,
    parents: bool,
    stats: StatCache | None,
    idmap: IdMap | None = None,
) -> Selection:
    """What the patterns `src` (relative to `root`, whatever they begin with) stand for. CopyError.

    A symlink that is named, or on the way, is followed inside the root; those further down are
    copied as such. `exclude` are patterns of .dockerignore for what is below a source, never for
    the source itself, as BuildKit has it; what is `ignored` is as if it were not there. With
    `parents`, a source is the root, or what stands before `/./`, with what matches the rest and
    the directories on the way to that. With `idmap`, entries have owners. A pattern with wildcards
    may match nothing; a plain name must be there.
    """
    picker = _Picker(root, exclude, ignored, stats, idmap)
    try:
        sources: list[Source] = []
        for pattern in src:
            sources.extend(picker.parents(pattern) if parents else picker.matching(pattern))
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else ""
        raise CopyError(f"can't read {name!r}: {error.strerror}") from error
    finally:
        os.close(picker.fd)
    return Selection(tuple(sources), picker.digest(sources))


def everything(directory: str) -> Selection:
    """Each thing in a directory, by its own name."""
    picker = _Picker(directory, (), None, None, None)
    try:
        sources = [picker.source(name, name) for name in sorted(picker.names(""), key=os.fsencode)]
    finally:
        os.close(picker.fd)
    return Selection(tuple(sources), picker.digest(sources))


class _Picker:
    def __init__(
        self, root: str, exclude: tuple[str, ...], ignored: Ignored | None,
        stats: StatCache | None, idmap: IdMap | None,
    ) -> None:  # fmt: skip
        self.root, self.ignored, self.stats, self.idmap = root, ignored, stats, idmap
        self.exclude = _patterns(exclude) if exclude else None
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.top = os.readlink(f"/proc/self/fd/{self.fd}")

    # --- sources -----------------------------------------------------------------------------

    def matching(self, pattern: str) -> list[Source]:
        """Each thing that a pattern matches."""
        parts = _parts(pattern)
        wild = next((i for i, part in enumerate(parts) if _is_wild(part)), len(parts))
        first, rest = [_unescaped(part) for part in parts[:wild]], parts[wild:]
        if not rest:
            path = self.real("/".join(first), pattern)
            return [self.source(first[-1] if first else "", path)]
        found: list[Source] = []
        try:
            below = self.real("/".join(first), pattern)
        except CopyError:
            return []
        self.expand(below, [], rest, found)
        return found

    def expand(self, place: str, names: list[str], rest: list[str], found: list[Source]) -> None:
        """Find what the names in a directory make of the patterns left, in the names' order."""
        try:
            matches = name_pattern(rest[0]).fullmatch
        except ValueError as error:
            raise CopyError(str(error)) from None
        for name in sorted(filter(matches, self.names(place)), key=os.fsencode):
            path = f"{place}/{name}" if place else name
            status = os.stat(path, dir_fd=self.fd, follow_symlinks=False)
            if len(rest) > 1:
                if stat.S_ISDIR(status.st_mode) and not self.hidden(path, directory=True):
                    self.expand(path, [*names, name], rest[1:], found)
            elif not self.hidden(path, directory=stat.S_ISDIR(status.st_mode)):
                found.append(self.source(name, self.real(path, path)))

    def names(self, place: str) -> list[str]:
        fd = self.opened(place)
        try:
            return os.listdir(fd)
        except NotADirectoryError:
            return []
        finally:
            os.close(fd)

    def opened(self, place: str) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(place or ".", flags, dir_fd=self.fd)

    def real(self, path: str, said: str) -> str:
        """The path without symlinks of what is at `path`. CopyError if nothing is."""
        try:
            fd = openat2(path or ".", os.O_PATH, at=self.fd, resolve=_INSIDE)
        except OSError as error:
            raise _missing(said) from error
        try:
            place = os.readlink(f"/proc/self/fd/{fd}")
            directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        found = place.removeprefix(self.top).strip("/")
        if found and self.hidden(found, directory=directory):
            raise _missing(said)
        return found

    def hidden(self, path: str, *, directory: bool) -> bool:
        """Whether the ignore file leaves out a path, with all that could be below it."""
        if self.ignored is None or not self.ignored.matches(path):
            return False
        return not (directory and self.ignored.takes_back)

    def source(self, name: str, path: str) -> Source:
        status = os.stat(path or ".", dir_fd=self.fd, follow_symlinks=False)
        entries = {"": self.entry("", path, status, {})}
        if stat.S_ISDIR(status.st_mode):
            self.below("", path, entries, {}, None)
        return Source(name, tuple(entries[key] for key in sorted(entries, key=os.fsencode)))

    def parents(self, pattern: str) -> list[Source]:
        """The root, or the part before the pivot, with what matches below it."""
        before, pivot, rest = pattern.partition("/./")
        if not pivot:
            before, rest = "", pattern
        place = self.real("/".join(_parts(before)), pattern)
        parts = _parts(rest)
        status = os.stat(place or ".", dir_fd=self.fd)
        entries = {"": self.entry("", place, status, {})}
        wanted = _patterns(("/".join(parts),)) if parts else None
        self.below("", place, entries, {}, wanted)
        if len(entries) == 1 and parts:
            if any(map(_is_wild, parts)):
                return []
            raise _missing(pattern)
        return [Source("", tuple(entries[key] for key in sorted(entries, key=os.fsencode)))]

    # --- entries -----------------------------------------------------------------------------

    def below(
        self, to: str, path: str, entries: dict[str, Entry],
        links: dict[tuple[int, int], str], wanted: IgnoreFile | None,
    ) -> None:  # fmt: skip
        """Find all that is below a directory: what `wanted` matches, if anything is wanted."""
        fd = self.opened(path)
        try:
            names = sorted(os.listdir(fd), key=os.fsencode)
        finally:
            os.close(fd)
        for name in names:
            child, child_to = f"{path}/{name}" if path else name, f"{to}/{name}" if to else name
            status = os.stat(child, dir_fd=self.fd, follow_symlinks=False)
            directory = stat.S_ISDIR(status.st_mode)
            ignored = self.ignored is not None and self.ignored.matches(child)
            out = self.exclude is not None and self.exclude.matches(child_to)
            if (ignored and self.hidden(child, directory=directory)) or (
                out and not (directory and self.exclude is not None and self.exclude.takes_back)
            ):
                continue
            kept = not ignored and not out and (wanted is None or wanted.matches(child_to))
            if not directory:
                if kept:
                    entries[child_to] = self.entry(child_to, child, status, links)
                continue
            entry = self.entry(child_to, child, status, links)
            if kept:
                entries[child_to] = entry
                self.below(child_to, child, entries, links, wanted)
            else:
                inner: dict[str, Entry] = {}
                self.below(child_to, child, inner, links, wanted)
                if inner:
                    entries[child_to] = entry
                    entries.update(inner)

    def entry(
        self, to: str, path: str, status: os.stat_result, links: dict[tuple[int, int], str]
    ) -> Entry:
        mode = stat.S_IMODE(status.st_mode)
        owner = None
        if self.idmap is not None:
            owner = self.idmap.to_inside(status.st_uid), self.idmap.to_inside(status.st_gid)
        if stat.S_ISDIR(status.st_mode):
            return Entry(to, path, "dir", mode=mode, owner=owner)
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(path, dir_fd=self.fd)
            return Entry(to, path, "symlink", target=target, owner=owner)
        if not stat.S_ISREG(status.st_mode):
            kinds = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
            kind = kinds.get(stat.S_IFMT(status.st_mode), "device")
            raise CopyError(
                f"can't copy {path!r}: it is a {kind}",
                hint="leave it out: --exclude, .dockerignore",
            )
        if status.st_nlink > 1:
            first = links.setdefault((status.st_dev, status.st_ino), to)
            if first != to:
                return Entry(to, path, "hardlink", target=first, mode=mode)
        digest = content_digest(self.root, self.fd, path, status, self.stats)
        return Entry(to, path, "file", bool(mode & 0o111), status.st_size, digest, "", mode, owner)

    def digest(self, sources: list[Source]) -> str:
        digest = hashlib.sha256()
        for source in sources:
            digest.update(f"source\0{source.name}\0".encode("utf-8", "surrogateescape"))
            for e in source.entries:
                owner = "" if e.owner is None else f"{e.owner[0]}:{e.owner[1]}"
                line = f"{e.kind}\0{e.path}\0{e.digest}\0{e.target}\0{e.mode:o}\0{owner}\0"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _patterns(patterns: tuple[str, ...]) -> IgnoreFile:
    try:
        return IgnoreFile.of(patterns)
    except ValueError as error:
        raise CopyError(str(error)) from None


def _parts(pattern: str) -> list[str]:
    parts: list[str] = []
    for part in pattern.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return parts


def _is_wild(part: str) -> bool:
    """Whether a name has a wildcard; a backslash takes the next sign as it is."""
    at = 0
    while at < len(part):
        if part[at] in "*?[":
            return True
        at += 2 if part[at] == "\\" else 1
    return False


def _unescaped(part: str) -> str:
    out, at = "", 0
    while at < len(part):
        if part[at] == "\\" and at + 1 < len(part):
            at += 1
        out += part[at]
        at += 1
    return out


def _missing(said: str) -> CopyError:
    return CopyError(
        f"{said!r} not found", hint="is it there, and not left out by the ignore file?"
    )
