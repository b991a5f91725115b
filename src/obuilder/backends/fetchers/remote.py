"""Plain names (`debian:12`, `host:5000/app@sha256:…`): images in registries.

What a name stands for is asked once and remembered, so that a build that needs nothing new touches
no network and does not even load the HTTP library.
"""

from collections.abc import Callable, Generator
from typing import BinaryIO

import msgspec

from obuilder.backends.fetchers import Sources, directory_of, in_thread
from obuilder.errors import FetchError, NotFound
from obuilder.oci.reference import Reference
from obuilder.plan.model import Base, Layer
from obuilder.spec.image import ImageConfig
from obuilder.values import IdMap, Platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.backends.protocols import Progress, Root
    from obuilder.oci.downloads import Blob, Downloads

_AT_ONCE = 3
"""Blobs of one image that are fetched at the same time."""


class _EventLoop:
    """Waiting for it tells who drives a coroutine by hand that this one needs an event loop."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class RemoteFetcher:
    """The layers of images in registries, each fetched into a file and unpacked while it comes."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._pulls: dict[tuple[str, tuple[Layer, ...]], _Pull] = {}
        self._unpacked: list[str] = []

    async def resolve(self, name: str, platform: Platform) -> Base:
        """What the name stands for: as it was found before, or as the registry says now.

        A name with a digest never changes. NotFound, Denied, Unreachable, DigestMismatch, BadImage.
        """
        reference = Reference.parse(name)
        stats, pull = self._sources.stats, self._sources.pull
        key = _key(reference, platform)
        noted = stats.get(key, b"") if stats is not None else None
        known = None if noted is None else _recalled(noted, name)
        if known is not None and (pull != "always" or reference.digest):
            return known
        if pull == "never":
            raise NotFound(
                f"it was never asked what {name} stands for",
                hint="without --pull=never it would be; or give the name to an image here: "
                "`obuilder image import`",
            )
        await _EventLoop()
        from obuilder.oci.registry import Repository, resolve

        async with Repository(reference, self._sources.registries) as repository:
            if known is not None and known.digest == await repository.digest(reference.tag):
                return known
            base = await resolve(name, repository, reference, platform)
        if stats is not None:
            pinned = msgspec.structs.replace(reference, digest=base.digest)
            for each in {key, _key(pinned, platform)}:
                stats.put(each, b"", _noted(base))
        return base

    def takes(self, root: "Root") -> bool:
        """Directories of this machine only."""
        from obuilder.backends.protocols import HostDir

        return isinstance(root, HostDir)

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: "Root",
        idmap: IdMap,
        output: Callable[[bytes], None],
        progress: "Progress | None" = None,
    ) -> None:
        """Unpack a layer; the ones after it are fetched meanwhile. As `resolve`, and StoreFull."""
        root = directory_of(into)
        pull = self._pull(base)
        self._forget_unpacked()
        try:
            blob = await pull.unpacked(index, root, idmap, output, progress)
        except BaseException as error:
            self._pulls.pop(pull.key, None)
            await pull.close()
            if isinstance(error, FetchError):
                pull.forget(index)
            raise
        self._unpacked.append(blob)
        if index + 1 == len(base.layers):
            self._pulls.pop(pull.key, None)
            await pull.close()

    async def blob(self, base: Base, index: int, file: BinaryIO) -> bool:
        """A layer as the registry has it."""
        from anyio import to_thread

        from obuilder.oci.manifest import blob_of
        from obuilder.oci.registry import Repository

        digest, size, _ = blob_of(base.layers[index].source)
        if self._sources.pull == "never":
            raise NotFound("with --pull=never no registry is asked")

        async def take(data: bytes) -> None:
            await to_thread.run_sync(file.write, data)

        async with Repository(Reference.parse(base.name), self._sources.registries) as repository:
            await repository.blob(digest, size, take)
        return True

    def _pull(self, base: Base) -> "_Pull":
        from obuilder.oci.downloads import Downloads

        key = (base.name, base.layers)
        if key not in self._pulls:
            directory = self._sources.directory
            assert directory is not None
            self._pulls[key] = _Pull(key, base, self._sources, Downloads(directory))
        return self._pulls[key]

    def _forget_unpacked(self) -> None:
        """Drop blobs whose layers are in the store by now."""
        from obuilder.oci.downloads import Downloads

        if self._unpacked and self._sources.directory is not None:
            downloads = Downloads(self._sources.directory)
            for digest in self._unpacked:
                downloads.remove(digest)
            self._unpacked.clear()

    async def close(self) -> None:
        """End what is being fetched for layers that nobody asked for; what came of it is kept."""
        for pull in list(self._pulls.values()):
            await pull.close()
        self._pulls.clear()
        self._forget_unpacked()


class _Pull:
    """An image whose layers are on their way."""

    def __init__(
        self,
        key: tuple[str, tuple[Layer, ...]],
        base: Base,
        sources: Sources,
        downloads: "Downloads",
    ) -> None:
        from anyio import CapacityLimiter

        from obuilder.oci.registry import Repository

        self.key = key
        self._base, self._sources, self._downloads = base, sources, downloads
        self._repository = Repository(Reference.parse(base.name), sources.registries)
        self._blobs: dict[int, Blob] = {}
        self._width = CapacityLimiter(_AT_ONCE)

    def _blob(self, index: int) -> "Blob":
        """A layer's blob, which is on its way, as all that come after it are."""
        from obuilder.oci.downloads import Blob
        from obuilder.oci.manifest import blob_of

        assert self._sources.tasks is not None
        for number in range(index, len(self._base.layers)):
            if number not in self._blobs:
                blob = self._blobs[number] = Blob(*blob_of(self._base.layers[number].source)[:2])
                self._sources.tasks.start_soon(self._bring, blob)
        return self._blobs[index]

    async def _bring(self, blob: "Blob") -> None:
        await blob.bring(self._downloads, self._repository, self._width)

    async def unpacked(
        self,
        index: int,
        root: str,
        idmap: IdMap,
        output: Callable[[bytes], None],
        progress: "Progress | None",
    ) -> str:
        """Unpack a layer while it comes. The digest of its blob."""
        blob = self._blob(index)
        layer = self._base.layers[index]
        what = f"layer {index + 1} of {self._base.name}"

        def unpack(note: Callable[[str], None]) -> None:
            from obuilder.oci.layers import unpack_blob

            unpack_blob(blob.reader(), layer.digest, what, root, idmap, note)  # type: ignore[arg-type] # reads like one

        await blob.unpacked(lambda: in_thread(unpack, output), progress)
        blob.close()
        return blob.digest

    def forget(self, index: int) -> None:
        """Drop a blob that no layer could be made of."""
        if index in self._blobs:
            self._downloads.remove(self._blobs[index].digest)

    async def close(self) -> None:
        """Break off what is on its way."""
        import anyio

        with anyio.CancelScope(shield=True):
            blobs = list(self._blobs.values())
            for blob in blobs:
                blob.scope.cancel()
            for blob in blobs:
                await blob.ended.wait()
                blob.close()
            await self._repository.close()


def _key(reference: Reference, platform: Platform) -> str:
    """What an answer is remembered by."""
    if reference.digest:
        reference = msgspec.structs.replace(reference, tag="")
    return f"remote 2:{reference} {platform}"


def _noted(base: Base) -> str:
    """All that was found but for the name, whose bytes need not be text."""
    layers = [(layer.digest, layer.source) for layer in base.layers]
    return msgspec.json.encode((base.digest, base.platform, layers, base.config)).decode()


def _recalled(noted: str, name: str) -> Base:
    digest, platform, layers, config = msgspec.json.decode(noted, type=_Noted)
    return Base(name, digest, platform, tuple(Layer(*layer) for layer in layers), config)


_Noted = tuple[str, Platform, list[tuple[str, str]], ImageConfig]
