"""`rootfs:DIR`: a directory of this machine that is a root file system."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator

from obuilder.backends.fetchers import LocalFetcher, directory_of
from obuilder.backends.protocols import Progress, Root
from obuilder.errors import BadImage, DigestMismatch, NotFound
from obuilder.plan.model import Base, Layer
from obuilder.system.files import copy_tree
from obuilder.system.tree import settled, signature
from obuilder.values import IdMap, Platform


class RootfsFetcher(LocalFetcher):
    """One layer: all of a directory, with owners taken for the ids inside."""

    async def resolve(self, name: str, platform: Platform) -> Base:
        """The image of the directory as it is now. NotFound, BadImage.

        The digest is over names, types, modes, owners, link targets and content; content is
        read again only when some file's status changed since.
        """
        path = _directory(name)
        try:
            digest = self._digest(path)
        except OSError as error:
            raise BadImage(f"can't read {error.filename!r}: {error.strerror}") from error
        return Base(name, digest, platform, (Layer(digest, path),))

    def _digest(self, root: str) -> str:
        found = sorted(_walk(root), key=lambda item: os.fsencode(item[0]))
        marks = hashlib.sha256()
        quiet = True
        for path, status in found:
            # access times alone don't make it another image, all else shows in ctime
            marks.update(os.fsencode(path) + b"\0" + signature(status))
            quiet = quiet and settled(status)
        mark, key = marks.digest(), f"rootfs:{root}"
        known = self._stats.get(key, mark) if self._stats is not None else None
        if known is not None:
            return known
        digest = _content(root, found)
        if self._stats is not None and quiet:
            self._stats.put(key, mark, digest)
        return digest

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: Root,
        idmap: IdMap,
        output: Callable[[bytes], None],  # the protocol's
        progress: Progress | None = None,
    ) -> None:
        """Copy the directory. DigestMismatch if it changed since it was resolved."""
        from anyio import to_thread

        layer = base.layers[index]
        await to_thread.run_sync(self._copy, layer, directory_of(into), idmap)

    def _copy(self, layer: Layer, target: str, idmap: IdMap) -> None:
        try:
            copy_tree(layer.source, target, onto=idmap, existing="keep")
            digest = self._digest(layer.source)
        except (OSError, ValueError) as error:
            raise BadImage(f"can't copy {layer.source}: {error}") from error
        if digest != layer.digest:
            raise DigestMismatch(
                f"{layer.source} changed while the build ran", hint="run the build again"
            )


def _directory(name: str) -> str:
    path = os.path.abspath(name.partition(":")[2])
    if not os.path.isdir(path):
        raise NotFound(f"there is no directory {path} to take as a root file system")
    return path


def _walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    yield "", os.stat(root)
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(f"{root}/{prefix}") as items:
            for item in items:
                path = prefix + item.name
                status = item.stat(follow_symlinks=False)
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path + "/")


def _content(root: str, found: list[tuple[str, os.stat_result]]) -> str:
    digest = hashlib.sha256()
    links: dict[tuple[int, int], str] = {}
    for path, status in found:
        mode = status.st_mode
        what = b""
        if stat.S_ISSOCK(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            continue
        first = path
        if status.st_nlink > 1 and not stat.S_ISDIR(mode):
            first = links.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            what = b"=" + os.fsencode(first)
        elif stat.S_ISLNK(mode):
            what = os.fsencode(os.readlink(f"{root}/{path}"))
        elif stat.S_ISREG(mode):
            fd = os.open(f"{root}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(fd, "rb", buffering=0) as file:
                what = hashlib.file_digest(file, "sha256").digest()
        line = b"%o %d %d %d " % (mode, status.st_uid, status.st_gid, len(what))
        digest.update(os.fsencode(path) + b"\0" + line + what)
    return "sha256:" + digest.hexdigest()
