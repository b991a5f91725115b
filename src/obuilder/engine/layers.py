"""The layers of a result, by keys: what they are is known before any is made, and each is made alone.

A layer is what one step changed, or the layer of a base image that a step unpacked. What a packed
layer came to is remembered by its step's key, so whoever finds it elsewhere (in a registry, say)
need not make it again. That is all that exports, and caches in other places, know of a store.
"""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import BinaryIO

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from obuilder.backends.fetchers import is_remote
from obuilder.backends.protocols import Store
from obuilder.engine.index import Final, Index, Record
from obuilder.errors import ObuilderError, SnapshotMissing, UsageError
from obuilder.oci.archive import write_changes
from obuilder.oci.manifest import Form, blob_of
from obuilder.oci.members import Manner
from obuilder.oci.pack import Blob, inspected, packed, repacked, scratch
from obuilder.oci.reference import Reference
from obuilder.oci.streams import UNREADABLE
from obuilder.plan.keys import layer_keys
from obuilder.plan.model import Base
from obuilder.values import Key

Fetch = Callable[[Base, int, BinaryIO], Awaitable[bool]]
"""Writes the blob of a base image's layer, as it came, to a file; False if there is none."""


class Layer(Struct, frozen=True):
    """What `key` is to `base` (None: to nothing). `heading` is its step's.

    `image` and `index` say which layer of which base image it is.
    """

    key: Key
    base: Key | None
    heading: str
    image: Base | None = None
    index: int = 0

    @property
    def origin(self) -> Reference | None:
        """The image in a registry that has it."""
        if self.image is None or not is_remote(self.image.name):
            return None
        return Reference.parse(self.image.name)


class Packing(Struct, frozen=True):
    """How layers are packed. With `plain`, those of base images are not packed either."""

    form: Form
    latest: int | None = None
    """No time of a file is later than this, in seconds since 1970."""
    exact: bool = False
    """All is as it is, down to the nanosecond: what is made of the layer is the result again."""

    @property
    def plain(self) -> bool:
        """Whether nothing is packed, not even what came packed."""
        return self.form == "tar"

    def __str__(self) -> str:
        """What remembered layers are told apart by."""
        form = f"exact {self.form}" if self.exact else self.form
        return form if self.latest is None else f"{form}@{self.latest}"


class Layers:
    """Layers of a store's results. `fetch` brings blobs of base images, `tell` gets notes, and `bring`
    brings results here that only a cache in another place has.
    """

    def __init__(
        self,
        store: Store,
        index: Index,
        fetch: Fetch,
        tell: Callable[[str], None],
        bring: Callable[[Key], Awaitable[None]],
    ) -> None:
        self._store, self._index, self._fetch, self._tell = store, index, fetch, tell
        self._bring = bring
        self._told: set[str] = set()
        self._anew: set[Key] = set()

    def final(self, key: Key) -> Final:
        """What an image of a result says. UsageError if no build told."""
        found = self._index.final(key)
        if found is not None:
            return found
        for record in self._chain(key):
            found = self._index.final(record.key)
            if found is not None:
                self._tell(
                    f"no build ended with {key[:12]}: its image has the settings of what it was "
                    f"made from, {record.key[:12]}"
                )
                return msgspec.structs.replace(found, origin=None)
        raise UsageError(
            f"nobody noted what an image of {key[:12]} says of itself",
            hint="build it again, which runs nothing: then it is noted",
        )

    def of(self, key: Key, base: Base, *, squash: bool = False, told: bool = True) -> list[Layer]:
        """The layers of a result that began with `base`, the lowest first.

        `squash`: those of its steps are one. `told`: say if some are gone. An empty
        image's layer is left out if it can be.
        """
        chain = self._chain(key)[::-1]
        images = {each: number for number, each in enumerate(layer_keys(base))}
        found = [
            Layer(
                record.key,
                chain[number - 1].key if number else None,
                record.heading,
                base if record.key in images else None,
                images.get(record.key, 0),
            )
            for number, record in enumerate(chain)
        ]
        if chain[0].base is not None:
            found[0] = msgspec.structs.replace(found[0], image=None)
            if told:
                self._tell(
                    f"what {chain[0].key[:12]} was made from is gone: it is one layer with what is "
                    "left"
                )
        steps = [layer for layer in found if layer.image is None]
        if squash and len(steps) > 1:
            headings = "\n".join(layer.heading for layer in steps)
            one = msgspec.structs.replace(steps[-1], base=steps[0].base, heading=headings)
            found = [*(layer for layer in found if layer.image is not None), one]
        if base.name == "scratch" and len(found) > 1 and found[0].image is not None:
            found = [msgspec.structs.replace(found[1], base=None), *found[2:]]
        return found

    def _chain(self, key: Key) -> list[Record]:
        """A result and what it was made from, as far as that is there."""
        found: list[Record] = []
        wanted: Key | None = key
        while wanted is not None:
            records = self._index.record(wanted)
            if not records:
                break
            found.append(records[0])
            wanted = records[0].base
        if not found:
            raise SnapshotMissing(f"the store has no result {key[:12]}", hint="build again")
        return found

    def known(self, layer: Layer, packing: Packing) -> Blob | None:
        """What a layer is, packed, if that is known without making it."""
        if layer.image is not None and layer.origin is not None and not packing.plain:
            content = layer.image.layers[layer.index]
            digest, size, form = blob_of(content.source)
            if form != "tar":
                return Blob(content.digest, digest, size, form)
        said = self._index.blob(layer.key, _name(layer, packing))
        return None if said is None else msgspec.msgpack.decode(said, type=Blob)

    def remember(self, layer: Layer, packing: Packing, blob: Blob) -> None:
        """Note what a layer is, packed."""
        self._index.put_blob(layer.key, _name(layer, packing), msgspec.msgpack.encode(blob))

    @asynccontextmanager
    async def packed(self, layer: Layer, packing: Packing) -> AsyncIterator[tuple[Blob, BinaryIO]]:
        """A layer, packed, and its bytes in a file that is gone with the context. StoreFull,
        SnapshotMissing, CopyError.
        """
        kept = await self._kept(layer, packing)
        blob, file = kept if kept is not None else await self._made(layer, packing)
        with file:
            yield blob, file

    async def _kept(self, layer: Layer, packing: Packing) -> tuple[Blob, BinaryIO] | None:
        """The layer of a base image as it came. None if it is to be made of what is in the store."""
        base = layer.image
        if base is None:
            return None
        directory = self._store.directory
        content, file = base.layers[layer.index], scratch(directory)
        try:
            if not await self._fetch(base, layer.index, file):
                file.close()
                return None
            blob = await anyio.to_thread.run_sync(inspected, file)
            if blob.diff == content.digest:
                if blob.form == packing.form or (blob.form != "tar" and not packing.plain):
                    return blob, file
                return await _stoppable(lambda _: repacked(file, directory, packing.form))
            reason = "it is another one by now"
        except ObuilderError as error:
            reason = error.message
        except UNREADABLE as error:
            reason = str(error)
        except BaseException:
            file.close()
            raise
        file.close()
        self._anew.add(layer.key)
        self._note(
            f"layers of {base.name} are made anew, so their digests are others than in that image: "
            f"{reason}"
        )
        return None

    async def _made(self, layer: Layer, packing: Packing) -> tuple[Blob, BinaryIO]:
        store = self._store
        manner = Manner(store.idmap, exact=packing.exact, latest=packing.latest)
        await self._bring(layer.key)
        async with AsyncExitStack() as stack:
            root = await _opened(stack, store, layer.key)
            base = upper = None
            if layer.base is not None:
                base = await _opened(stack, store, layer.base)
                upper = store.touched(layer.key, base=layer.base)

            def make(stop: threading.Event) -> tuple[Blob, BinaryIO]:
                def write(file: BinaryIO) -> None:
                    write_changes(base, root, _Until(file, stop), manner, upper=upper)  # type: ignore[arg-type] # writes like one

                return packed(write, store.directory, packing.form)

            blob, file = await _stoppable(make)
        if layer.key not in self._anew:  # else the image's own may be had again the next time
            self.remember(layer, packing, blob)
        return blob, file

    def _note(self, text: str) -> None:
        """Tell once."""
        if text not in self._told:
            self._told.add(text)
            self._tell(text)


def _name(layer: Layer, packing: Packing) -> str:
    """What is remembered of a layer is for what it was made from, too."""
    return f"{packing} on {layer.base or 'nothing'}"


async def _opened(stack: AsyncExitStack, store: Store, key: Key) -> str:
    root = await stack.enter_async_context(store.view(key))
    return await stack.enter_async_context(store.files(root))


class _Stopped(Exception):
    """Nobody wants it any more."""


class _Until:
    """A file to write to until somebody stops that."""

    def __init__(self, file: BinaryIO, stop: threading.Event) -> None:
        self._file, self._stop = file, stop

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise _Stopped
        return self._file.write(data)


async def _stoppable(
    work: Callable[[threading.Event], tuple[Blob, BinaryIO]],
) -> tuple[Blob, BinaryIO]:
    """Run what takes long in a thread; cancelling sets the event, and waits until it heeds it."""
    stop = threading.Event()
    result: list[tuple[Blob, BinaryIO]] = []
    failed: list[Exception] = []

    async def watch() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stop.set()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                result.append(await anyio.to_thread.run_sync(work, stop))
            except Exception as error:  # noqa: BLE001 # raised below, outside of the task group
                failed.append(error)
            tasks.cancel_scope.cancel()
        await anyio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        for _, file in result:
            file.close()
        raise
    if failed:
        raise failed[0]
    return result[0]
