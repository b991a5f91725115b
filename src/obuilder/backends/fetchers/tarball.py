"""`tar:FILE`: a root file system in one archive, plain or compressed by gzip or zstd."""

import hashlib
import os
from collections.abc import Callable

from obuilder.backends.fetchers import LocalFetcher, directory_of, in_thread
from obuilder.backends.protocols import Progress, Root
from obuilder.errors import BadImage, NotFound
from obuilder.plan.model import Base, Layer
from obuilder.values import IdMap, Platform


class TarFetcher(LocalFetcher):
    """One layer: what is in the archive."""

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
                digest = self._remembered(
                    path, os.fstat(file.fileno()),
                    lambda: hashlib.file_digest(file, "sha256").hexdigest(),
                )  # fmt: skip
        except OSError as error:
            raise BadImage(f"can't read {path}: {error.strerror}") from error
        return path, f"sha256:{digest}"

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: Root,
        idmap: IdMap,
        output: Callable[[bytes], None],
        progress: Progress | None = None,
    ) -> None:
        """Unpack the archive. BadImage; DigestMismatch if it is another one by now."""
        layer, root = base.layers[index], directory_of(into)
        await in_thread(lambda note: _unpack(layer, root, idmap, note), output)


def _unpack(layer: Layer, root: str, idmap: IdMap, note: Callable[[str], None]) -> None:
    from obuilder.oci.layers import unpack
    from obuilder.oci.streams import UNREADABLE, Counted, Hashed, decompressed

    try:
        file = open(layer.source, "rb")  # noqa: SIM115 # closed below
    except OSError as error:
        raise BadImage(f"can't read {layer.source}: {error.strerror}") from error
    with file:
        hashed = Hashed(file)
        try:
            with decompressed(hashed) as content:
                unpack(Counted(content, hashed), root, idmap, note, whiteouts=False)  # type: ignore[arg-type] # reads like one
            hashed.finish(layer.digest, layer.source)
        except UNREADABLE as error:
            raise BadImage(f"can't read {layer.source}: {error}") from error
