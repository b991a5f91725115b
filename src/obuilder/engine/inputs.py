"""What the outside world adds to a spec: base images by digest, copies by manifest digest.

Fetchers of local kinds never really wait, nor does what a registry said before: then no event loop is
needed, and `drive` gets the answer of a coroutine by hand.
"""

import os
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from obuilder.backends.fetchers import Sources, fetcher_for, is_remote
from obuilder.engine.index import Index
from obuilder.engine.origin import Source
from obuilder.engine.settings import Images
from obuilder.errors import CopyError, NotFound, ObuilderError, UsageError
from obuilder.oci.platforms import accepted, host_platform, normalised
from obuilder.plan.lower import ContextAdd, ContextCopy, Wanted
from obuilder.plan.model import Base, Inputs
from obuilder.system.tree import Manifest, scan
from obuilder.values import OpPath, RegistrySettings

TYPE_CHECKING = False
if TYPE_CHECKING:  # most contexts have no such file
    from obuilder.spec.ignore import IgnoreFile
    from obuilder.system.picking import Selection

T = TypeVar("T")

_COMPARED = 20_000
"""Copies of more files are not remembered name by name: that would take longer than the look."""


class MustWait(Exception):  # no error: the answer needs an event loop
    """A coroutine driven by hand came to a point where it really has to wait."""


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits to its end, without an event loop. MustWait if it does."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise MustWait


class IndexStats:
    """Digests of unchanged files, remembered in the index: one read at first use, one write.

    The signature says all that changes when a file's content does; whoever hashes decides when
    it can be trusted.
    """

    def __init__(self, index: Index, prefix: str) -> None:
        self._index = index
        self._prefix = prefix
        self._known: dict[bytes, tuple[bytes, str]] | None = None
        self._new: dict[bytes, tuple[bytes, str]] = {}

    def get(self, path: str, signature: bytes) -> str | None:
        """The digest of `path`, if it was remembered with this very signature."""
        if self._known is None:
            self._known = self._index.stats(self._prefix)
        row = self._known.get(os.fsencode(path))
        return row[1] if row is not None and row[0] == signature else None

    def put(self, path: str, signature: bytes, digest: str) -> None:
        """Remember a digest."""
        self._new[os.fsencode(path)] = (signature, digest)

    def flush(self) -> None:
        """Write what is new."""
        if self._new:
            self._index.put_stats((p, s, d) for p, (s, d) in self._new.items())
            self._new = {}


def read_ignore_file(names: tuple[str, ...]) -> "IgnoreFile | None":
    """The first of these files that is there, parsed. UsageError if it can't be read."""
    for name in names:
        try:
            with open(name, "rb") as file:
                text = os.fsdecode(file.read())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"can't read {name}: {error.strerror}") from error
        from obuilder.spec.ignore import IgnoreFile

        try:
            return IgnoreFile.parse(text)
        except ValueError as error:
            raise UsageError(f"{name}, {error}") from None
    return None


class Contexts(Struct, frozen=True):
    """Where a build's files come from: a directory, and others by `named`.

    `ignore` are ignore files, of which the first that is there counts: `.obuilderignore` in the
    directory, if none are said. Named directories have `.dockerignore` files of their own.
    """

    directory: str
    ignore: tuple[str, ...] = ()
    named: tuple[tuple[str, str], ...] = ()
    places: Mapping[OpPath | str, str] = {}
    """Where ops, and names of images, stand in a Dockerfile, for what is said of them."""
    source: Source | None = None
    """What the spec was read from, for the provenance of what is built."""


def contexts(context: "str | Contexts") -> Contexts:
    """A directory alone as what it stands for."""
    return context if isinstance(context, Contexts) else Contexts(context)


class Context:
    """A directory to copy from, with what is known of it. Manifests are made once."""

    def __init__(self, where: str | Contexts, stats: IndexStats | None) -> None:
        where = contexts(where)
        self.directory = _directory(where.directory)
        self.named = {name: _directory(directory) for name, directory in where.named}
        self.source, self._places = where.source, where.places
        self._stats = stats
        names = where.ignore or (os.path.join(self.directory, ".obuilderignore"),)
        self._ignore = read_ignore_file(names)
        self._manifests: dict[OpPath, Manifest] = {}
        self._selections: dict[OpPath, tuple[str, Selection]] = {}

    @contextmanager
    def telling(self, what: OpPath | str) -> Iterator[None]:
        """Errors about an op, or the name of an image, say where that stands."""
        try:
            yield
        except ObuilderError as error:
            if what in self._places:
                error.message = f"{self._places[what]}: {error.message}"
            raise

    def selection(self, add: ContextAdd) -> "Selection":
        """What `add` would copy now; the same answer at every later call. CopyError, UsageError."""
        if add.op not in self._selections:
            from obuilder.system.picking import pick

            directory, ignored, stats = self.directory, self._ignore, self._stats
            if add.context is not None:
                if add.context not in self.named:
                    raise UsageError(
                        f"there is no build context called {add.context!r}",
                        hint=f"give it with --build-context {add.context}=DIR",
                    )
                directory, stats = self.named[add.context], None
                ignored = read_ignore_file((os.path.join(directory, ".dockerignore"),))
            found = pick(
                directory, add.src, exclude=add.exclude, ignored=ignored, parents=add.parents,
                stats=stats,
            )  # fmt: skip
            self._selections[add.op] = directory, found
        return self._selections[add.op][1]

    def selected(self, op: OpPath) -> "tuple[str, Selection]":
        """The directory, and the selection made before, of the add at `op`."""
        return self._selections[op]

    def manifest(self, copy: ContextCopy) -> Manifest:
        """What `copy` would copy now; the same answer at every later call. CopyError."""
        known = self._manifests.get(copy.op)
        if known is None:
            try:
                known = scan(
                    self.directory,
                    copy.src,
                    into=copy.into,
                    dst=copy.dst,
                    exclude=copy.exclude,
                    ignored=self._ignore,
                    stats=self._stats,
                )
            except CopyError as error:
                error.add_note(f"files are copied from {self.directory}")
                raise
            self._manifests[copy.op] = known
        return known

    def at(self, op: OpPath) -> Manifest:
        """The manifest made before for the copy at `op`."""
        try:
            return self._manifests[op]
        except KeyError:
            raise CopyError(f"the copy at {op} was not looked at before the build") from None

    def files(self, op: OpPath) -> dict[str, str] | None:
        """What the copy or add at `op` copies, for people to compare; None if that is too much."""
        if op in self._manifests:
            entries = list(self._manifests[op].entries)
        elif op in self._selections:
            entries = [entry for each in self._selections[op][1].sources for entry in each.entries]
        else:
            return None
        if len(entries) > _COMPARED:
            return None
        return {
            entry.source
            or ".": f"{entry.kind}{entry.digest[:16]}{entry.target}{entry.executable}{entry.mode:o}"
            for entry in entries
        }


def _directory(directory: str) -> str:
    if not os.path.isdir(directory):
        raise UsageError(
            f"the build context {directory} is not a directory",
            hint="name the directory to copy files from; it may be empty",
        )
    return os.path.abspath(directory)


class SingleStats:
    """Digests of single files, looked up one by one and written at once: archives, layouts."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get(self, path: str, signature: bytes) -> str | None:
        """The digest of `path`, if it was remembered with this very signature."""
        row = self._index.stats(path).get(os.fsencode(path))
        return row[1] if row is not None and row[0] == signature else None

    def put(self, path: str, signature: bytes, digest: str) -> None:
        """Remember a digest."""
        self._index.put_stats([(os.fsencode(path), signature, digest)])


class Resolver:
    """What the names of base images stand for, in one build."""

    def __init__(
        self, index: Index, images: Images, registries: Mapping[str, RegistrySettings]
    ) -> None:
        self._index, self._images = index, images
        self._sources = Sources(stats=SingleStats(index), pull=images.pull, registries=registries)

    async def base(self, name: str, *, imported: bool = True) -> Base:
        """What `name` stands for: an `imported` image of that name, else its fetcher's answer.

        Where a lock says what it must be, a registry is asked for that. NotFound, DigestMismatch
        and whatever else the fetcher raises.
        """
        lock = self._images.lock
        wanted = None if lock is None else lock.digest(name)
        base = self._index.image(name) if imported else None
        if base is None:
            asked = name
            if wanted is not None and is_remote(name) and "@" not in name:
                asked = f"{name}@{wanted}"
            platform = self._images.platform or host_platform()
            base = await fetcher_for(asked, self._sources).resolve(asked, platform)
            base = msgspec.structs.replace(base, name=name) if asked != name else base
        if lock is not None:
            lock.check(name, base.digest)
        self._check_platform(name, base)
        return base

    def _check_platform(self, name: str, base: Base) -> None:
        """NotFound: another platform was asked for than a local image is made for."""
        platform = self._images.platform
        if (
            platform is not None
            and base.platform.architecture
            and normalised(base.platform) not in accepted(platform)
        ):
            raise NotFound(f"{name} has no image for {platform}", hint=f"it is for {base.platform}")


async def gather(wanted: Wanted, context: Context, resolver: Resolver) -> Inputs:
    """Everything the plan asks of the outside world."""
    bases: dict[str, Base] = {}
    for name in wanted.bases:
        with context.telling(name):
            bases[name] = await resolver.base(name)
    copies = {copy.op: context.manifest(copy).digest for copy in wanted.copies}
    for add in wanted.adds:
        with context.telling(add.op):
            copies[add.op] = context.selection(add).digest
    return Inputs(bases=bases, copies=copies)
