"""The files of a build on their way to a worker: listed and sent by the client, laid out by the worker.

A listing is a blob of its own, and names every other file by its digest, so only what the cluster
does not have yet is sent, and only what the worker does not have yet is fetched. Times and permissions
go along: a build on a worker has the keys that it has here.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Literal

import anyio
from msgspec import Struct

from obuilder.cluster.blobs import PIECE, Blobs
from obuilder.cluster.messages import Message, decode, encode
from obuilder.cluster.tasks import together
from obuilder.engine.inputs import Context, Contexts, IndexStats, contexts, read_ignore_file
from obuilder.errors import ClusterError, of_disk
from obuilder.plan.lower import wanted
from obuilder.spec.model import Spec
from obuilder.system.copying import changed_entry, open_entry
from obuilder.system.files import copy_data, remove_tree, write_all
from obuilder.system.tree import Entry, Ignored, scan

Kind = Literal["file", "dir", "symlink", "hardlink"]
_AT_ONCE = 64
"""Files on the way at one time."""
IN_USE = 3600.0
"""Seconds for which what a worker keeps from one job to the next may be in use."""


class Listed(Struct, frozen=True, array_like=True):
    """A file of a context. Paths are bytes, relative, and normal."""

    path: bytes
    kind: Kind
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    digest: str = ""
    target: bytes = b""
    """A symlink's text, or the path of the file that a hard link shares its content with."""


class Tree(Struct, frozen=True, array_like=True):
    """A directory to copy from: the context itself (`name` empty), or one of that name."""

    name: str
    files: tuple[Listed, ...]


class Listing(Message, frozen=True, kw_only=True):
    """All that a build may copy."""

    trees: tuple[Tree, ...] = ()


class Sent(Struct, frozen=True):
    """What became of sending a context."""

    manifest: str
    """The digest of its listing."""
    files: int
    """Of all, how many were sent, and their bytes."""
    sent: int
    sent_bytes: int


# --- the client's side ---------------------------------------------------------------------------


class Collected(Struct, frozen=True):
    """A listing, with the directories that its trees were made of."""

    listing: Listing
    roots: tuple[str, ...]


def collect(spec: Spec | None, where: str | Contexts, stats: IndexStats | None = None) -> Collected:
    """List the files that `spec` copies; all that are not ignored, if it is not known or has patterns.

    CopyError, UsageError.
    """
    where = contexts(where)
    context = Context(where, stats)
    needs = wanted(spec) if spec is not None else None
    names = where.ignore or (os.path.join(context.directory, ".obuilderignore"),)
    if needs is None or any(add.context is None for add in needs.adds):
        entries = [_everything(context.directory, names, stats)]
    else:
        entries = [context.manifest(copy).entries for copy in needs.copies]
    trees, roots = [Tree("", _joined(context.directory, entries))], [context.directory]
    asked = None if needs is None else {add.context for add in needs.adds}
    for name, directory in context.named.items():
        if asked is None or name in asked:
            ignore = (os.path.join(directory, ".dockerignore"),)
            found = _everything(directory, ignore, None)
            trees.append(Tree(name, _joined(directory, [found])))
            roots.append(directory)
    return Collected(Listing(trees=tuple(trees)), tuple(roots))


class _Sendable:
    """What is not ignored, and can be sent at all."""

    def __init__(self, root: str, ignored: Ignored | None) -> None:
        self._root, self._ignored = root, ignored
        self.takes_back = ignored is not None and ignored.takes_back

    def matches(self, path: str) -> bool:
        if self._ignored is not None and self._ignored.matches(path):
            return True
        mode = os.lstat(f"{self._root}/{path}").st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def _everything(root: str, ignore: tuple[str, ...], stats: IndexStats | None) -> tuple[Entry, ...]:
    ignored = _Sendable(root, read_ignore_file(ignore))
    return scan(
        root, (".",), into=True, dst="/", exclude=(), ignored=ignored, stats=stats
    ).entries  # fmt: skip


def _joined(root: str, manifests: Iterable[tuple[Entry, ...]]) -> tuple[Listed, ...]:
    """What several copies take from one directory, each file once."""
    found: dict[str, Entry] = {}
    linked: dict[str, str] = {}

    def first(path: str) -> str:
        while linked.get(path, path) != path:
            path = linked[path]
        return path

    for entries in manifests:
        places = {entry.path: entry.source for entry in entries}
        for entry in entries:
            if entry.kind != "hardlink":
                found[entry.source] = entry
                continue
            one, other = sorted((first(entry.source), first(places[entry.target])))
            linked[entry.source] = linked[other] = one
            found.setdefault(entry.source, entry)
    contents = {first(path): entry for path, entry in found.items() if entry.kind == "file"}
    listed = []
    for path in sorted(found, key=os.fsencode):
        entry, main = found[path], first(path)
        if not path:
            continue
        status = os.lstat(f"{root}/{path}")
        name, mode, mtime = os.fsencode(path), stat.S_IMODE(status.st_mode), status.st_mtime_ns
        if entry.kind in ("dir", "symlink"):
            target = os.fsencode(entry.target)
            listed.append(Listed(name, entry.kind, mode, mtime, target=target))
        elif main != path and main in found:
            listed.append(Listed(name, "hardlink", target=os.fsencode(main)))
        else:
            content = contents[main]
            listed.append(Listed(name, "file", mode, mtime, content.size, content.digest))
    return tuple(listed)


async def send(blobs: Blobs, collected: Collected) -> Sent:
    """Send what the cluster has not of a context. CopyError if a file changed since it was listed."""
    listing = collected.listing
    places = {
        file.digest: (root, file)
        for root, tree in zip(collected.roots, listing.trees, strict=True)
        for file in tree.files
        if file.size
    }
    # Most files are small, and each message waits for the server's disk.
    small = {digest for digest, (_, file) in places.items() if file.size <= PIECE}
    lacking = await blobs.missing(places.keys() - small)
    lacking |= await blobs.missing(small, small=True)
    slots = anyio.CapacityLimiter(_AT_ONCE)

    async def one(root: str, file: Listed) -> None:
        async with slots:
            path = os.fsdecode(file.path)
            entry = Entry(path, path, "file", size=file.size, digest=file.digest)
            with _opened(entry, root) as fd:
                send = blobs.send_small if file.digest in small else blobs.send
                if not await send(fd, file.digest):
                    raise changed_entry(entry)

    async with together() as tasks:
        for digest in sorted(lacking):
            tasks.start_soon(one, *places[digest])
    manifest = await blobs.put(encode(listing))
    return Sent(
        manifest=manifest,
        files=sum(file.kind != "dir" for tree in listing.trees for file in tree.files),
        sent=len(lacking),
        sent_bytes=sum(places[digest][1].size for digest in lacking),
    )


@contextlib.contextmanager
def _opened(entry: Entry, root: str) -> Iterator[int]:
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_entry(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, at)
    finally:
        os.close(at)
    try:
        yield fd
    finally:
        os.close(fd)


# --- the worker's side ---------------------------------------------------------------------------


class Contents:
    """Files by digest on a worker's disk, kept from one job to the next. Nothing else writes to them."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        os.makedirs(directory, mode=0o700, exist_ok=True)

    def path(self, digest: str) -> str:
        """Where a file is, or would be."""
        return os.path.join(self._directory, digest[:2], digest)

    def has(self, digest: str) -> bool:
        """Whether a file is there; it was used now."""
        try:
            os.utime(self.path(digest))
        except FileNotFoundError:
            return False
        return True

    def put(self, digest: str, data: bytes) -> None:
        """Keep a file whose digest was checked."""
        with self._new(digest) as fd:
            write_all(fd, data)

    async def fetch(self, blobs: Blobs, digest: str) -> None:
        """Get a large file. ClusterError, and then it is not kept."""
        with self._new(digest) as fd:
            async for piece in blobs.pieces(digest):
                write_all(fd, piece)

    @contextlib.contextmanager
    def _new(self, digest: str) -> Iterator[int]:
        path = self.path(digest)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        draft = f"{path}.{os.urandom(6).hex()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            try:
                yield fd
            finally:
                os.close(fd)
            os.rename(draft, path)
        except BaseException:
            os.unlink(draft)
            raise

    def trim(self, most: int) -> int:
        """Remove what was not used for longest, until all takes `most` bytes at most, but for what was
        used in the last hour: jobs that run may be about to. The bytes that went.
        """
        found = []
        with os.scandir(self._directory) as shelves:
            for shelf in shelves:
                with os.scandir(shelf) as files:
                    found += [
                        (file.stat().st_mtime, file.stat().st_size, file.path) for file in files
                    ]
        excess = sum(size for _, size, _ in found) - most
        gone = 0
        for used, size, path in sorted(found):
            if gone >= excess or used > time.time() - IN_USE:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
                gone += size
        return gone


async def materialise(blobs: Blobs, contents: Contents, manifest: str, directory: str) -> Contexts:
    """Lay a context out in `directory`, which is made, for its owner alone. What to build with.

    Nothing outside of it is touched, whatever the listing says. ClusterError, StoreFull; then
    what was made is removed.
    """
    listing = decode(await blobs.get(manifest), Listing)
    for tree in listing.trees:
        _check(tree)
    await _fetch(blobs, contents, listing)
    try:
        os.mkdir(directory, 0o700)
        named = []
        for number, tree in enumerate(listing.trees):
            place = os.path.join(directory, str(number))
            await anyio.to_thread.run_sync(_lay_out, contents, tree, place)
            named.append((tree.name, place))
    except OSError as error:
        remove_tree(directory)
        raise of_disk("the context can't be laid out", error, ClusterError) from error
    except BaseException:
        remove_tree(directory)
        raise
    places = dict(named)
    if "" not in places:
        raise ClusterError("the listing of the context has no context")
    main = places.pop("")
    return Contexts(main, ignore=(os.devnull,), named=tuple(places.items()))


def _check(tree: Tree) -> None:
    """ClusterError for a listing that no client of ours makes."""
    kinds: dict[bytes, Kind] = {}
    for file in tree.files:
        parts = file.path.split(b"/")
        parent = b"/".join(parts[:-1])
        good = (
            file.path not in kinds
            and not any(part in (b"", b".", b"..") or b"\0" in part for part in parts)
            and (not parent or kinds.get(parent, "dir") == "dir")
            and (file.kind != "file" or (len(file.digest) == 64 and file.digest.isalnum()))
            and file.size >= 0
        )
        if not good:
            raise ClusterError(f"the listing of the context has a bad name, {file.path!r}")
        while parent and parent not in kinds:
            kinds[parent] = "dir"
            parent = parent.rpartition(b"/")[0]
        kinds[file.path] = file.kind
    for file in tree.files:
        if file.kind == "hardlink" and kinds.get(file.target) != "file":
            raise ClusterError(f"the listing of the context has a bad link, {file.path!r}")


async def _fetch(blobs: Blobs, contents: Contents, listing: Listing) -> None:
    sizes = {
        file.digest: file.size
        for tree in listing.trees
        for file in tree.files
        if file.size and not contents.has(file.digest)
    }
    slots = anyio.CapacityLimiter(_AT_ONCE)

    async def one(digest: str, size: int) -> None:
        async with slots:
            if size > PIECE:
                await contents.fetch(blobs, digest)
            else:
                contents.put(digest, await blobs.small(digest))

    async with together() as tasks:
        for digest, size in sizes.items():
            tasks.start_soon(one, digest, size)


def _lay_out(contents: Contents, tree: Tree, place: str) -> None:
    """Symlinks come last, so that nothing is ever written through one."""
    os.mkdir(place, 0o700)
    top = os.fsencode(place)
    directories = [file for file in tree.files if file.kind == "dir"]
    for file in directories:
        os.makedirs(os.path.join(top, file.path), mode=0o700, exist_ok=True)
    for kind in ("file", "hardlink", "symlink"):
        for file in tree.files:
            if file.kind != kind:
                continue
            path = os.path.join(top, file.path)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            if kind == "file":
                _copy(contents, file, path)
            elif kind == "hardlink":
                os.link(os.path.join(top, file.target), path, follow_symlinks=False)
            else:
                os.symlink(file.target, path)
                os.utime(path, ns=(file.mtime_ns,) * 2, follow_symlinks=False)
    for file in reversed(directories):
        os.chmod(os.path.join(top, file.path), stat.S_IMODE(file.mode))


def _copy(contents: Contents, file: Listed, path: bytes) -> None:
    made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if file.size:
            source = os.open(contents.path(file.digest), os.O_RDONLY | os.O_CLOEXEC)
            try:
                copy_data(source, made, file.size)
            finally:
                os.close(source)
        os.fchmod(made, stat.S_IMODE(file.mode))
        os.utime(made, ns=(file.mtime_ns,) * 2)
    finally:
        os.close(made)
