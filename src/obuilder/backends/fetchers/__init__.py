"""Where base images come from: the form of an image's name says which fetcher has it."""

import os
from collections.abc import Callable, Mapping
from typing import BinaryIO

from msgspec import Struct

from obuilder.errors import NotFound, Unsupported
from obuilder.oci.reference import Reference
from obuilder.system.tree import StatCache, settled, signature
from obuilder.values import Pull, RegistrySettings

TYPE_CHECKING = False
if TYPE_CHECKING:  # the cached path resolves names, and meets no root
    from anyio.abc import TaskGroup

    from obuilder.backends.protocols import Fetcher, Root
    from obuilder.plan.model import Base

FORMS = (
    "scratch", "micro", "rootfs:DIR", "tar:FILE", "oci:DIR[:TAG]", "oci-archive:FILE[:TAG]",
    "docker-archive:FILE[:TAG]", "docker-daemon:NAME", "http://FILE[@sha256:DIGEST]",
    "git:URL[#REF[:DIRECTORY]][@COMMIT]", "NAME of an image in a registry",
)  # fmt: skip
"""How an image can be named, for messages."""
_KINDS = (
    "rootfs", "tar", "oci", "oci-archive", "docker-archive", "docker-daemon", "http", "https", "git",
)  # fmt: skip


class Sources(Struct, frozen=True):
    """What fetchers are told of where they work."""

    stats: StatCache | None = None
    """Remembers digests of local files, and what registries said."""
    pull: Pull = "missing"
    registries: Mapping[str, RegistrySettings] = {}
    directory: str | None = None
    """The store's, where blobs are kept until they are unpacked; needed to fetch from registries."""
    tasks: "TaskGroup | None" = None
    """Where what is fetched ahead has its tasks; needed to fetch from registries."""


def fetcher_for(name: str, sources: Sources = Sources()) -> "Fetcher":  # noqa: B008 - frozen
    """The fetcher of images named like `name`.

    NotFound, with all the forms there are, if no fetcher knows that form.
    """
    stats = sources.stats
    kind, colon, _ = name.partition(":")
    if not colon:
        if kind == "scratch":
            from obuilder.backends.fetchers.scratch import ScratchFetcher

            return ScratchFetcher()
        if kind == "micro":
            from obuilder.backends.fetchers.micro import MicroFetcher

            return MicroFetcher(stats)
    elif kind == "rootfs":
        from obuilder.backends.fetchers.rootfs import RootfsFetcher

        return RootfsFetcher(stats)
    elif kind == "tar":
        from obuilder.backends.fetchers.tarball import TarFetcher

        return TarFetcher(stats)
    elif kind in ("oci", "oci-archive", "docker-archive"):
        from obuilder.backends.fetchers.images import ImageFetcher

        return ImageFetcher(stats)
    elif kind in ("http", "https"):
        from obuilder.backends.fetchers.url import UrlFetcher

        return UrlFetcher(stats)
    elif kind == "git":
        from obuilder.backends.fetchers.git import GitFetcher

        return GitFetcher(stats)
    elif kind == "docker-daemon":
        from obuilder.backends.fetchers.docker import DockerFetcher

        return DockerFetcher()
    check_remote(name)
    from obuilder.backends.fetchers.remote import RemoteFetcher

    return RemoteFetcher(sources)


def is_remote(name: str) -> bool:
    """Whether a name is of the form that images in registries have."""
    return name not in ("scratch", "micro") and name.partition(":")[0] not in _KINDS


def check_remote(name: str) -> None:
    """NotFound, with all the forms there are: no image can have that name."""
    try:
        Reference.parse(name)
    except NotFound as error:
        raise NotFound(
            f"there is no image called {name!r}: {error.message}",
            hint=f"images can be: {', '.join(FORMS)}; any of them goes by a name of your own after "
            "`obuilder image import NAME SOURCE`",
        ) from error


class LocalFetcher:
    """What fetchers of local files share: they remember digests, and keep nothing open."""

    def __init__(self, stats: StatCache | None = None) -> None:
        self._stats = stats

    def takes(self, root: "Root") -> bool:
        """Directories of this machine only."""
        from obuilder.backends.protocols import HostDir

        return isinstance(root, HostDir)

    async def blob(self, base: "Base", index: int, file: BinaryIO) -> bool:
        """No blob: it was no image's layer."""
        return False

    async def close(self) -> None:
        """Nothing was kept."""

    def _remembered(self, path: str, status: os.stat_result, find: Callable[[], str]) -> str:
        """What `find` says of a file, asked only if its status changed since it was last asked."""
        mark = signature(status)
        known = self._stats.get(path, mark) if self._stats is not None else None
        if known is None:
            known = find()
            if self._stats is not None and settled(status):
                self._stats.put(path, mark, known)
        return known


def directory_of(root: "Root") -> str:
    """The path of a root that files can be put into. Unsupported for other kinds."""
    from obuilder.backends.protocols import HostDir

    if isinstance(root, HostDir):
        return root.path
    raise Unsupported(f"can't unpack an image into a {type(root).__name__}")


async def in_thread(
    work: Callable[[Callable[[str], None]], None], output: Callable[[bytes], None]
) -> None:
    """Run what takes long beside the event loop; `output` gets, at its end, what it noted."""
    from anyio import to_thread

    notes: list[str] = []
    await to_thread.run_sync(work, notes.append)
    output(os.fsencode("".join(notes)))
