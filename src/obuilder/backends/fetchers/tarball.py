"""`tar:FILE`: a root file system in one archive, plain or compressed by gzip or zstd."""

import hashlib
import os
from collections.abc import Callable

from obuilder.backends.fetchers import directory_of
from obuilder.backends.protocols import Root
from obuilder.errors import BadImage, NotFound
from obuilder.plan.model import Base, Layer
from obuilder.system.tree import StatCache, settled, signature
from obuilder.values import IdMap, Platform


class TarFetcher:
    """One layer: what is in the archive."""

    def __init__(self, stats: StatCache | None) -> None:
        self._stats = stats

    async def resolve(self, name: str, platform: Platform) -> Base:
        """The archive as it is now, by the digest of its bytes. NotFound, BadImage."""
        path, digest = self._digest(name)
        return Base(name, digest, platform, (Layer(digest, path),))

    def _digest(self, name: str) -> tuple[str, str]:
        path = os.path.abspath(name.partition(":")[2])
        try:
            if not os.path.isfile(path):
                raise NotFound(f"there is no archive {path}")
            with open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                mark = signature(status)
                known = self._stats.get(path, mark) if self._stats is not None else None
                if known is None:
                    known = hashlib.file_digest(file, "sha256").hexdigest()
                    if self._stats is not None and settled(status):
                        self._stats.put(path, mark, known)
        except OSError as error:
            raise BadImage(f"can't read {path}: {error.strerror}") from error
        return path, f"sha256:{known}"

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: Root,
        idmap: IdMap,
        output: Callable[[bytes], None],
    ) -> None:
        """Unpack the archive. BadImage; DigestMismatch if it is another one by now."""
        from anyio import to_thread

        notes: list[str] = []
        layer, root = base.layers[index], directory_of(into)
        await to_thread.run_sync(_unpack, layer, root, idmap, notes.append)
        output(os.fsencode("".join(notes)))


def _unpack(layer: Layer, root: str, idmap: IdMap, note: Callable[[str], None]) -> None:
    from obuilder.oci.layers import DAMAGED, Part, decompressed, unpack

    try:
        file = open(layer.source, "rb")  # noqa: SIM115 # closed below
    except OSError as error:
        raise BadImage(f"can't read {layer.source}: {error.strerror}") from error
    with file:
        part = Part(file)
        try:
            unpack(decompressed(part), root, idmap, note, whiteouts=False)
            part.finish(layer.digest, layer.source)
        except DAMAGED as error:
            raise BadImage(f"can't read {layer.source}: {error}") from error
