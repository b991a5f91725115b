"""Results from one store to another, of any kind, on this machine or through a pipe.

A result travels as a parcel: its record, its log, and a layer of what it changed in its base (or of
all that it is, where the base is not there any more). Parents go first, and what the other store has
is left out, so whatever interrupts a transfer, the next one goes on from there.
"""

import io
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import BinaryIO

import anyio
import anyio.to_thread
import msgspec

from obuilder.backends.protocols import Store
from obuilder.engine.index import Index, Record
from obuilder.engine.locks import held
from obuilder.engine.logs import put_log, read_log
from obuilder.engine.meta import written
from obuilder.engine.volumes import release_lock, volume_place
from obuilder.errors import SnapshotMissing, UsageError
from obuilder.oci.archive import write_changes, write_tar
from obuilder.oci.layers import unpack
from obuilder.oci.members import Manner
from obuilder.values import ROOT, IdMap, Key

_MAGIC = b"obuilder results 1\n"
_PIECE = 1 << 20


class Parcel(msgspec.Struct, frozen=True, tag="parcel"):
    """A result on its way, but for its files.

    `whole`: the files are all there are, not a change to `record.base`. `aliases` are the other
    keys it is found under; `volume` names the cache volume whose newest content it is.
    """

    record: Record
    whole: bool
    aliases: tuple[Key, ...] = ()
    log: bytes | None = None
    volume: bytes | None = None


class Names(msgspec.Struct, frozen=True, tag="names"):
    """The end of a transfer: the images that have names, as the index keeps them, and what images of
    results say of themselves.
    """

    images: list[tuple[bytes, bytes]]
    finals: list[tuple[Key, bytes]] = []


Take = Callable[[Parcel, BinaryIO], Awaitable[None]]
"""Takes a parcel and its layer, a stream that is to be read to its end in a thread."""


async def send(store: Store, index: Index, take: Take, *, known: Callable[[Key], bool]) -> Names:
    """Hand every result that is not `known` over there to `take`, each after its base."""
    aliases: dict[Key, list[Key]] = {}
    for key, target in index.aliases():
        aliases.setdefault(target, []).append(key)
    sent = set[Key]()
    volumes = {generation: name for _, name, generation, _ in index.volumes()}
    for record in _in_order(index.records()):
        if known(record.key):
            sent.add(record.key)
            continue
        name = volumes.get(record.key)
        try:
            async with AsyncExitStack() as stack:
                root = await _opened(stack, store, record.key)
                base = None
                if (
                    record.base is not None
                    and record.kind != "volume"
                    and await store.contains(record.base)
                ):
                    base = await _opened(stack, store, record.base)
                parcel = Parcel(
                    record, whole=base is None, aliases=tuple(aliases.get(record.key, ())),
                    log=read_log(store.directory, record.key),
                    volume=None if name is None else os.fsencode(name),
                )  # fmt: skip
                await _piped(lambda file: _write(base, root, file, store.idmap), parcel, take)  # noqa: B023 # run at once
        except SnapshotMissing:
            continue  # pruned meanwhile
        if name is None:
            sent.add(record.key)
    return Names(index.image_rows(), index.final_rows())


async def _opened(stack: AsyncExitStack, store: Store, key: Key) -> str:
    """The files of a result."""
    root = await stack.enter_async_context(store.view(key))
    return await stack.enter_async_context(store.files(root))


def _in_order(records: list[Record]) -> Iterator[Record]:
    """Results that can be taken along, bases before what was made from them."""
    waiting = {record.key: record for record in records if record.kind != "failed"}
    while waiting:
        chain = [next(iter(waiting))]
        while (base := waiting[chain[-1]].base) in waiting and base not in chain:
            chain.append(Key(str(base)))
        for key in reversed(chain):
            yield waiting.pop(key)


async def send_to(
    receiver: "Receiver", store: Store, index: Index, tell: Callable[[Record], None]
) -> None:
    """Hand over every result that a receiver's store does not have; `tell` of each."""

    async def take(parcel: Parcel, layer: BinaryIO) -> None:
        await receiver.take(parcel, layer)
        tell(parcel.record)

    receiver.names(await send(store, index, take, known=receiver.known))


def _write(base: str | None, root: str, file: BinaryIO, idmap: IdMap) -> None:
    if base is None:
        write_tar(root, file, Manner(idmap, exact=True))
    else:
        write_changes(base, root, file, Manner(idmap, exact=True))


class _Filled(io.RawIOBase):
    """The end of a pipe that another thread fills. Its failure is met here, in place of the end.

    A layer that was cut off looks like one that ended: it must not come to be published.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = os.readv(self._fd, [buffer])
        if not size and self.failure is not None:
            raise self.failure
        return size

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


async def _piped(write: Callable[[BinaryIO], None], parcel: Parcel, take: Take) -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pipe = _Filled(reader)

    def fill() -> None:
        with open(writer, "wb") as file:
            try:
                write(file)
                file.flush()
            except BrokenPipeError:
                return  # who takes it has failed, and says why
            except Exception as error:  # noqa: BLE001 # met by who reads
                pipe.failure = error

    async def taking() -> None:
        with io.BufferedReader(pipe, _PIECE) as layer:
            await take(parcel, layer)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, fill)
            tasks.start_soon(taking)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


class Receiver:
    """Takes parcels into a store."""

    def __init__(self, store: Store, index: Index) -> None:
        self._store, self._index = store, index
        self.taken = 0

    def known(self, key: Key) -> bool:
        """Whether the store has that result."""
        known = any(record.kind != "remote" for record in self._index.record(key))
        return known or bool(self._index.find([key]))

    async def take(self, parcel: Parcel, layer: BinaryIO) -> None:
        """Publish a result. StoreError; BadImage if the layer is damaged."""
        record, store, index = parcel.record, self._store, self._index
        async with held(store.directory, record.key):
            if self.known(record.key):
                await anyio.to_thread.run_sync(_drain, layer)
                return
            name = None if parcel.volume is None else os.fsdecode(parcel.volume)
            base = None if parcel.whole else record.base
            begun = (
                store.begin(record.key, base=base)
                if name is None
                else store.volume(record.key, base=base, owner=ROOT)
            )
            async with begun as draft:
                async with store.files(draft.root, write=True) as root:
                    await anyio.to_thread.run_sync(self._unpack, parcel, layer, root)
                if parcel.log is not None:
                    put_log(store.directory, record.key, parcel.log)
                await draft.commit(written(record, volume=name))
            index.add(record)
            for key in parcel.aliases:
                index.alias(key, record.key)
            if name is not None:
                await self._volume(name, record.key)
            self.taken += 1

    def _unpack(self, parcel: Parcel, layer: BinaryIO, root: str) -> None:
        idmap = self._store.idmap
        unpack(layer, root, idmap, lambda _: None, whiteouts=not parcel.whole)
        _drain(layer)  # what failed on the other side shows at the end

    async def _volume(self, name: str, key: Key) -> None:
        place = volume_place(name)
        async with held(self._store.directory, release_lock(place)):
            if not self._index.swap_generation(place, name, None, key):
                self._index.forget([key])  # there is one of that name: it stays
                await self._store.delete(key)

    def names(self, names: Names) -> None:
        """Give images their names, and results what images of them say; what is here stays as it is."""
        known = dict(self._index.image_rows())
        for name, base in names.images:
            if name not in known:
                self._index.put_image_row(name, base)
        self._index.put_final_rows(names.finals)


# --- through a pipe ----------------------------------------------------------------------------


async def pack(store: Store, index: Index, file: BinaryIO) -> int:
    """Write all results to `file`. How many."""
    count = 0

    async def take(parcel: Parcel, layer: BinaryIO) -> None:
        nonlocal count
        await anyio.to_thread.run_sync(lambda: _put(file, parcel, layer))
        count += 1

    file.write(_MAGIC)
    names = await send(store, index, take, known=lambda _: False)
    file.write(msgspec.json.encode(names) + b"\n")
    file.flush()
    return count


def _put(file: BinaryIO, parcel: Parcel, layer: BinaryIO) -> None:
    file.write(msgspec.json.encode(parcel) + b"\n")
    while data := layer.read(_PIECE):
        file.write(len(data).to_bytes(4))
        file.write(data)
    file.write(bytes(4))


async def unpack_into(receiver: Receiver, file: BinaryIO) -> None:
    """Take what `pack` wrote. UsageError if `file` holds something else or ends too early."""
    if await anyio.to_thread.run_sync(file.readline, 100) != _MAGIC:
        raise UsageError(
            "that is no stream of results", hint="`obuilder store copy STORE -` writes it"
        )
    while True:
        line = await anyio.to_thread.run_sync(file.readline)
        try:
            found = msgspec.json.decode(line, type=Parcel | Names)
        except msgspec.MsgspecError as error:
            raise UsageError("the stream of results is damaged, or ended too early") from error
        if isinstance(found, Names):
            receiver.names(found)
            return
        await _piped(lambda out: _copy(file, out), found, receiver.take)


def _copy(file: BinaryIO, out: BinaryIO) -> None:
    while size := int.from_bytes(file.read(4)):
        if size > _PIECE:
            raise UsageError("the stream of results is damaged")
        data = file.read(size)
        if len(data) != size:
            raise UsageError("the stream of results ended too early")
        out.write(data)


def _drain(layer: BinaryIO) -> None:
    while layer.read(_PIECE):
        pass
