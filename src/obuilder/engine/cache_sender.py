"""Results on their way to caches in other places, while the build goes on.

A result's layer is made when a place lacks it, sent, and then the entry that names it. What is there is
not sent again. A place that fails is given up, which fails the build only where it is `required`.
"""

import hashlib
import io
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from obuilder import events
from obuilder.engine.cache_entry import Entry, Link, Log, capped, opened, sealed
from obuilder.engine.cache_policy import to_send
from obuilder.engine.layers import Layer, Layers, Packing
from obuilder.engine.logs import read_log
from obuilder.engine.remote_cache import Caches
from obuilder.errors import FetchError, ObuilderError, Unreachable
from obuilder.oci.pack import Blob
from obuilder.plan.model import Base, LayerAction, Plan, Step
from obuilder.values import Key

_AT_ONCE = 3
"""Results that are sent at the same time."""


class Sender:
    """Sends what one build offers. `layers` and `size` (bytes) were sent."""

    def __init__(
        self,
        caches: Caches,
        layers: Layers,
        plan: Plan,
        warn: Callable[[str], None],
        sink: events.Sink,
    ) -> None:
        settings = caches.settings
        self._caches, self._layers, self._plan = caches, layers, plan
        self._warn, self._sink = warn, sink
        self._wanted = {name: to_send(plan, settings, name) for name in settings.cache_to}
        for name in self._wanted:
            caches.place(name)
            caches.signer(name)
        self._there: set[tuple[str, str]] = set()
        self._lacking: set[tuple[str, Key]] = set()
        self._links: dict[tuple[str, Key, Key | None], Link] = {}
        self._locks: dict[tuple[str, str], anyio.Lock] = defaultdict(anyio.Lock)
        self._send: MemoryObjectSendStream[tuple[Step, Key]] | None = None
        self._offered = set[Key]()
        self._left = 0
        self._failed: ObuilderError | None = None
        self.layers = self.size = 0

    def has(self, name: str, key: Key) -> None:
        """A place has an entry of that step."""
        if name in self._wanted:
            self._caches.index.put_sent(name, key)

    def lacks(self, name: str, key: Key) -> None:
        """A place has no entry of that step that is any good."""
        self._lacking.add((name, key))
        self._caches.index.put_sent(name, key, there=False)

    def offer(self, step: Step, key: Key) -> None:
        """A step has a result: send it, if it is one to be sent."""
        wanted = any(step.key in keys for keys in self._wanted.values())
        if wanted and self._send is not None and step.key not in self._offered:
            self._offered.add(step.key)
            self._left += 1
            self._send.send_nowait((step, key))

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send in the background. At the end what is left is waited for, also after an error; but
        cancelling ends it at once. Unreachable, if all must be sent and could not.
        """
        if not self._wanted:
            yield
            return
        failure: ObuilderError | None = None
        send, receive = anyio.create_memory_object_stream[tuple[Step, Key]](math.inf)
        with send, receive:
            self._send = send
            async with anyio.create_task_group() as tasks:
                for _ in range(_AT_ONCE):
                    tasks.start_soon(self._work, receive)
                try:
                    yield
                except ObuilderError as error:
                    failure = error
                send.close()
                if self._left:
                    count = f"{self._left} {'result' if self._left == 1 else 'results'}"
                    self._sink(events.Note(f"sending {count} to {', '.join(self._wanted)}"))
        for name in list(self._wanted):
            try:
                await self._caches.place(name).finish()
            except ObuilderError as error:
                self._give_up(name, error)
        if failure is not None:
            raise failure
        if self._failed is not None:
            raise self._failed

    async def _work(self, offered: MemoryObjectReceiveStream[tuple[Step, Key]]) -> None:
        async for step, key in offered:
            for name, wanted in list(self._wanted.items()):
                if step.key in wanted:
                    try:
                        await self._result(name, step, key)
                    except FetchError as error:
                        self._give_up(name, error)
                    except (ObuilderError, OSError) as error:
                        said = error.message if isinstance(error, ObuilderError) else error
                        self._warn(f"{key[:12]} is not sent to {name}: {said}")
            self._left -= 1

    def _give_up(self, name: str, error: ObuilderError) -> None:
        if self._wanted.pop(name, None) is None:
            return
        if self._caches.settings.cache(name).required:
            self._failed = Unreachable(
                f"not all could be sent to {name}, which is required: {error.message}",
                hint=error.hint,
            )
        else:
            self._warn(f"nothing more is sent to {name}: {error.message}")

    async def _result(self, name: str, step: Step, key: Key) -> None:
        index, place = self._caches.index, self._caches.place(name)
        if index.sent(name, [step.key]) or await self._is_there(name, step.key):
            index.put_sent(name, step.key)
            return
        packing = Packing(self._caches.settings.cache(name).compression, exact=True)
        links = [
            await self._link(name, layer, packing)
            for layer in self._layers.of(key, _base(self._plan, step), told=False)
        ]
        for each in dict.fromkeys((step.key, key)):
            entry = Entry(each, tuple(links), self._caches.store.idmap.single)
            await place.put_entry(each, sealed(entry, self._caches.signer(name)), entry.blobs())
        index.put_sent(name, step.key)

    async def _is_there(self, name: str, key: Key) -> bool:
        """Whether a place has an entry of a step that others will take."""
        if (name, key) in self._lacking:
            return False
        data = await self._caches.place(name).entry(key)
        if data is None:
            return False
        signer = self._caches.signer(name)
        keys = self._caches.keys(name) or ([] if signer is None else [signer.public])
        try:
            opened(data, key, keys)
        except FetchError:
            return False
        return True

    async def _link(self, name: str, layer: Layer, packing: Packing) -> Link:
        """A layer as others are told of it, which is there by now."""
        found = (name, layer.key, layer.base)
        async with self._locks[name, layer.key]:
            if found not in self._links:
                self._links[found] = await self._sent(name, layer, packing)
            return self._links[found]

    async def _sent(self, name: str, layer: Layer, packing: Packing) -> Link:
        (record,) = self._caches.index.record(layer.key)
        remote = self._caches.index.remote(layer.key)
        if remote is not None and remote.place == name and remote.link.base == layer.base:
            return remote.link
        blob = log = None
        if layer.image is None:
            blob = await self._layer(name, layer, packing)
            log = await self._log(name, layer.key)
        kind = "layer" if layer.image is not None else "run"
        if record.kind == "copy":
            kind = "copy"
        return Link(
            layer.key, layer.base, kind, record.heading, record.stage, record.created,
            record.seconds, blob, log,
        )  # fmt: skip

    async def _layer(self, name: str, layer: Layer, packing: Packing) -> Blob:
        place = self._caches.place(name)
        known = self._layers.known(layer, packing)
        if known is not None and await self._has(name, known.digest, known.size):
            return known
        async with self._layers.packed(layer, packing) as (blob, file):
            if not await self._has(name, blob.digest, blob.size):

                def tell(done: int) -> None:
                    self._sink(events.Progress(layer.key, done, blob.size))

                await place.put(blob.digest, blob.size, file, tell)
                self.layers += 1
                self.size += blob.size
                self._there.add((name, blob.digest))
            return blob

    async def _log(self, name: str, key: Key) -> Log | None:
        data = capped(read_log(self._caches.store.directory, key) or b"")
        if not data:
            return None
        log = Log(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
        if not await self._has(name, log.digest, log.size):
            place = self._caches.place(name)
            await place.put(log.digest, log.size, io.BytesIO(data), lambda _: None)
            self.size += log.size
            self._there.add((name, log.digest))
        return log

    async def _has(self, name: str, digest: str, size: int) -> bool:
        if (name, digest) not in self._there:
            if not await self._caches.place(name).has(digest, size):
                return False
            self._there.add((name, digest))
        return True


def _base(plan: Plan, step: Step) -> Base:
    """The base image that a step's stage began with."""
    while step.base is not None:
        step = plan.steps[step.base]
    assert isinstance(step.action, LayerAction)
    return step.action.base
