"""Where base images come from: the form of an image's name says which fetcher has it."""

from obuilder.errors import NotFound, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:  # the cached path resolves names, and meets no root
    from obuilder.backends.protocols import Fetcher, Root
    from obuilder.system.tree import StatCache


def fetcher_for(name: str, stats: "StatCache | None" = None) -> "Fetcher":
    """The fetcher of images named like `name`; `stats` remembers digests of local files.

    NotFound, with all the forms there are, if no fetcher knows that form.
    """
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
    elif kind == "oci":
        from obuilder.backends.fetchers.layout import LayoutFetcher

        return LayoutFetcher()
    raise NotFound(
        f"there is no image called {name!r} here",
        hint="images can be: scratch, micro, rootfs:DIR, tar:FILE, oci:DIR[:TAG]; any of them goes "
        "by a name of your own after `obuilder image import NAME SOURCE`",
    )


def directory_of(root: "Root") -> str:
    """The path of a root that files can be put into. Unsupported for other kinds."""
    from obuilder.backends.protocols import HostDir

    if isinstance(root, HostDir):
        return root.path
    raise Unsupported(f"can't unpack an image into a {type(root).__name__}")
