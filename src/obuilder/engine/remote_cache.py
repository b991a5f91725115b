"""Caches in other places: results that are there are known here, and come when they are needed.

What is known to be there is in the index, as results of the kind remote: a link each, which says where
its layer is and what it stands on. `bring` makes real results of them: the blobs come side by side, each
is checked and unpacked over what it stands on, and published as a step's result is.
"""

import os
import time
from collections.abc import Callable, Iterable

import anyio
import anyio.to_thread
from msgspec import Struct

from obuilder.backends.caches import Place, open_place
from obuilder.backends.protocols import Draft, Store
from obuilder.engine.actions import Workshop
from obuilder.engine.cache_entry import Link, Log, Remote
from obuilder.engine.index import Index, Record
from obuilder.engine.locks import held
from obuilder.engine.logs import put_log
from obuilder.engine.meta import written
from obuilder.engine.recover import adopt
from obuilder.engine.settings import Settings
from obuilder.errors import ObuilderError, SnapshotMissing
from obuilder.oci.downloads import Blob, Downloads
from obuilder.oci.layers import unpack_blob
from obuilder.plan.keys import layer_keys
from obuilder.plan.model import LayerAction
from obuilder.values import Key

TYPE_CHECKING = False
if TYPE_CHECKING:  # most caches have no keys
    from obuilder.oci.signing import PrivateKey, PublicKey

_AT_ONCE = 4
"""Blobs that come at the same time."""
_STALLED = 30.0
"""Seconds without a byte after which a place is given up."""
_LOOK = 0.5
_ROOM = 64 << 20
"""Bytes of the disk that no layer may take."""

Tell = Callable[[Key, int, int], None]
"""Takes how many bytes of a result's layer are here, and how many there will be."""


class Fetched(Struct):
    """What came from other places: layers, and bytes of them and of their logs."""

    layers: int = 0
    size: int = 0

    def __str__(self) -> str:
        """For people."""
        count = f"{self.layers} {'layer' if self.layers == 1 else 'layers'}"
        return f"{count} ({self.size / 1e6:.1f} MB)"


class Caches:
    """The places that a builder's results are in besides its store. To be closed."""

    def __init__(self, workshop: Workshop, index: Index, settings: Settings) -> None:
        self.settings = settings
        self.index = index
        self.store: Store = workshop.store
        self._workshop = workshop
        self._places: dict[str, Place] = {}
        self._keys: dict[str, list[PublicKey]] = {}
        self._signers: dict[str, PrivateKey | None] = {}

    async def close(self) -> None:
        """Let go of all places."""
        with anyio.CancelScope(shield=True):
            for place in self._places.values():
                await place.close()

    def place(self, name: str) -> Place:
        """The place of that name. ConfigError, BackendUnavailable."""
        if name not in self._places:
            settings = self.settings
            self._places[name] = open_place(name, settings.cache(name), settings.registries)
        return self._places[name]

    def keys(self, name: str) -> "list[PublicKey]":
        """The keys that entries of a place must be signed by one of; none if any will do.

        UsageError, BackendUnavailable.
        """
        if name not in self._keys:
            paths = self.settings.cache(name).keys
            if paths:
                from obuilder.oci.signing import load_public

                self._keys[name] = [load_public(path) for path in paths]
            else:
                self._keys[name] = []
        return self._keys[name]

    def signer(self, name: str) -> "PrivateKey | None":
        """The key that signs what is sent to a place. UsageError, BackendUnavailable."""
        if name not in self._signers:
            path = self.settings.cache(name).sign
            if path is not None:
                from obuilder.oci.signing import load_private

                self._signers[name] = load_private(path, _password)
            else:
                self._signers[name] = None
        return self._signers[name]

    # --- results come here -----------------------------------------------------------------------

    async def bring(
        self,
        key: Key,
        *,
        holders: Iterable[str] = (),
        passing: Iterable[Key] = (),
        tell: Tell = lambda *_: None,
    ) -> Fetched:
        """Make a result of what is only known to be in another place; nothing if it is here.

        `passing` are those that are not kept after the build. What can't be had is forgotten, so
        that it can be built: FetchError, StoreError.
        """
        fetched = Fetched()
        while chain := self._missing(key):
            async with held(self.store.directory, f"bring-{chain[0].link.key}"):
                if self._missing(key) != chain:
                    continue  # somebody else has brought some of it
                try:
                    await self._fetch(chain, list(holders), set(passing), tell, fetched)
                except ObuilderError:
                    self.index.forget(remote.link.key for remote in self._missing(key))
                    raise
        return fetched

    def _missing(self, key: Key) -> list[Remote]:
        """What is to be brought for a result, the lowest first."""
        chain: list[Remote] = []
        wanted: Key | None = key
        while wanted is not None and (remote := self.index.remote(wanted)) is not None:
            chain.append(remote)
            wanted = remote.link.base
        return chain[::-1]

    async def _fetch(
        self,
        chain: list[Remote],
        holders: list[str],
        passing: set[Key],
        tell: Tell,
        fetched: Fetched,
    ) -> None:
        downloads, width = Downloads(self.store.directory), anyio.CapacityLimiter(_AT_ONCE)
        blobs: list[Blob] = []
        failure: list[ObuilderError] = []

        async def stalling() -> None:
            got, since = -1, time.monotonic()
            while True:
                await anyio.sleep(_LOOK)
                now = sum(blob.got for blob in blobs)
                if now != got or all(blob.ended.is_set() for blob in blobs):
                    got, since = now, time.monotonic()
                elif time.monotonic() - since > _STALLED:
                    for blob in blobs:
                        blob.scope.cancel()

        def started(remote: Remote) -> tuple[Blob | None, Blob | None]:
            found = _blobs(remote.link)
            for blob in found:
                if blob is not None:
                    place = self.place(remote.place)
                    blobs.append(blob)
                    tasks.start_soon(blob.bring, downloads, place, width)
            return found

        async with anyio.create_task_group() as tasks:
            try:
                parts = [(remote, *started(remote)) for remote in chain]
                tasks.start_soon(stalling)
                for remote, layer, log in parts:
                    record = _recorded(remote.link, unused=remote.link.key in passing)
                    await self._make(record, remote, layer, log, holders, tell)
                    if layer is not None:
                        fetched.layers += 1
                    fetched.size += sum(blob.size for blob in (layer, log) if blob is not None)
            except ObuilderError as error:
                failure.append(error)
            finally:
                with anyio.CancelScope(shield=True):
                    for blob in blobs:
                        blob.scope.cancel()
                    for blob in blobs:
                        await blob.ended.wait()
                        blob.close()
                tasks.cancel_scope.cancel()
        for blob in blobs:
            downloads.remove(blob.digest)
        if failure:
            raise failure[0]

    async def _make(
        self,
        record: Record,
        remote: Remote,
        layer: Blob | None,
        log: Blob | None,
        holders: list[str],
        tell: Tell,
    ) -> None:
        """Publish a result, as `Attempt` does, unless somebody else did."""
        store, index, key = self.store, self.index, record.key
        async with held(store.directory, key):
            if index.find([key], holders=holders):
                return
            if await store.contains(key) and await adopt(store, index, key):
                index.lease(key, holders)
                return
            async with store.begin(key, base=record.base) as draft:
                if layer is None:
                    await self._unpack_base(remote.link, draft, tell)
                else:
                    await self._unpack(remote, layer, draft, tell)
                if log is not None:
                    await self._keep_log(key, log)
                await draft.commit(written(record))
            index.add(record, holders=holders)

    async def _unpack(self, remote: Remote, blob: Blob, draft: Draft, tell: Tell) -> None:
        link, store = remote.link, self.store
        assert link.layer is not None
        digest, what = link.layer.diff, f"the layer of {link.key[:12]} from {remote.place}"
        room = max((await store.usage()).free - _ROOM, 0)
        async with store.files(draft.root, write=True) as root:

            def work() -> None:
                unpack_blob(
                    blob.reader(), digest, what, root, store.idmap, lambda _: None, most=room  # type: ignore[arg-type] # reads like one
                )  # fmt: skip

            async def unpack() -> None:
                await anyio.to_thread.run_sync(work)

            await blob.unpacked(unpack, lambda done, total: tell(link.key, done, total))

    async def _unpack_base(self, link: Link, draft: Draft, tell: Tell) -> None:
        """A layer of a base image: from where the image is."""
        final = self.index.final(link.key)
        keys = [] if final is None else layer_keys(final.base)
        if final is None or link.key not in keys:
            raise SnapshotMissing(
                f"nobody knows which base image {link.key[:12]} is of", hint="build again"
            )
        await self._workshop.layer(
            LayerAction(final.base, keys.index(link.key)), draft, lambda _: None,
            lambda done, total: tell(link.key, done, total),
        )  # fmt: skip

    async def _keep_log(self, key: Key, log: Blob) -> None:
        await log.ended.wait()
        if log.error is not None:
            raise log.error
        data = bytearray()
        while piece := await anyio.to_thread.run_sync(log.read_at, len(data), log.size):
            data += piece
        put_log(self.store.directory, key, bytes(data))


def _blobs(link: Link) -> tuple[Blob | None, Blob | None]:
    """What is to come for a link: its layer and its log."""
    layer = None if link.layer is None else Blob(link.layer.digest, link.layer.size)
    return layer, None if link.log is None else Blob(link.log.digest, link.log.size)


def _recorded(link: Link, *, unused: bool) -> Record:
    return Record(
        key=link.key, kind=link.kind, heading=link.heading, stage=link.stage, base=link.base,
        created=link.created, used=0.0 if unused else time.time(), seconds=link.seconds,
    )  # fmt: skip


def _password() -> bytes:
    return os.environb.get(b"COSIGN_PASSWORD", b"")


async def fetch_log(settings: Settings, index: Index, key: Key) -> None:
    """Bring the log of a result that only another place has, and nothing else. FetchError."""
    remote = index.remote(key)
    if remote is None or remote.link.log is None:
        return
    name, log = remote.place, remote.link.log
    place = open_place(name, settings.cache(name), settings.registries)
    try:
        data = await read_blob(place, log)
    finally:
        await place.close()
    put_log(settings.directory, key, data)


async def read_blob(place: Place, log: Log) -> bytes:
    """A small blob, checked. FetchError."""
    data = bytearray()

    async def take(piece: bytes) -> None:
        data.extend(piece)

    await place.blob(log.digest, log.size, take)
    log.descriptor.check(bytes(data), f"{place.name}@{log.digest}")
    return bytes(data)
