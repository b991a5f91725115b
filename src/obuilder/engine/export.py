"""Taking results out: as files, or as images in every form that others read."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import BinaryIO

import anyio
import anyio.to_thread
import msgspec

from obuilder import events
from obuilder.engine.builder import Builder
from obuilder.engine.index import Final
from obuilder.engine.layers import Layer, Packing
from obuilder.engine.outputs import Output, Wishes, check
from obuilder.engine.papers import Papers, attached, papers
from obuilder.engine.run import first_error
from obuilder.errors import UsageError
from obuilder.oci.archive import write_tar
from obuilder.oci.assemble import Document, Image, assembled, index_of
from obuilder.oci.members import Manner
from obuilder.oci.pack import Blob
from obuilder.oci.platforms import host_platform
from obuilder.oci.reference import Reference
from obuilder.oci.writers import DockerArchive, Finished, Layout, OciArchive, Writer
from obuilder.system.files import copy_tree
from obuilder.system.namespaces import by_root
from obuilder.system.replacing import replacing
from obuilder.values import IdMap, Key

TYPE_CHECKING = False
if TYPE_CHECKING:  # what stays on this machine needs no HTTP library
    from obuilder.oci.push import Target

_AT_ONCE = 2
"""Layers that are made, or sent, at the same time."""


async def export(
    builder: Builder,
    prefixes: Sequence[str],
    output: Output,
    wishes: Wishes = Wishes(),  # noqa: B008 - frozen
    *,
    finals: Mapping[str, Final] = {},
    sink: events.Sink = lambda _: None,
) -> None:
    """Write results to `output`: several are one image, for several platforms.

    `finals` has what images of them say of themselves, by prefix, where that is not what the last
    builds that ended with them had. UsageError, StoreError, FetchError, OSError.
    """
    check([output], wishes, platforms=len(prefixes))
    if not output.is_image:
        await builder.bring(prefixes[0], sink=sink)
    if output.kind == "directory":
        await export_directory(builder, prefixes[0], os.path.abspath(output.path))
    elif output.kind == "tar":
        async with written(output.path) as file:
            await export_tar(builder, prefixes[0], file, latest=wishes.latest)
    else:
        await _Export(builder, output, wishes, finals, sink).run(prefixes)


async def export_tar(
    builder: Builder, prefix: str, file: BinaryIO, *, latest: int | None = None
) -> None:
    """Write a result as a tar archive, the same bytes for the same result."""
    manner = Manner(builder.store.idmap, latest=latest)
    async with builder.files(prefix) as path:
        await anyio.to_thread.run_sync(write_tar, path, file, manner)


async def export_directory(builder: Builder, prefix: str, target: str) -> None:
    """Write a result into `target`, which must be missing or empty.

    As root, owners are the ids inside; an ordinary user owns everything.
    """
    if os.path.exists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UsageError(f"{target} is not an empty directory", hint="name a new directory")
    os.makedirs(target, exist_ok=True)
    owners = None if by_root() else IdMap(first=0, count=1)
    async with builder.files(prefix) as path:
        await anyio.to_thread.run_sync(
            lambda: copy_tree(path, target, idmap=builder.store.idmap, onto=owners, existing="keep")
        )


@asynccontextmanager
async def written(path: str) -> AsyncIterator[BinaryIO]:
    """A file that is `path` once the context ends well; - is standard output."""
    if path == "-":
        if sys.stdout.isatty():
            raise UsageError("an archive is not for a terminal", hint="redirect it, or name a file")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe, say
        with open(path, "wb") as file:
            yield file
        return
    with replacing(path) as file:
        yield file


Turn = Callable[[], Awaitable[None]]
"""Waits until the layers below are delivered."""
Deliver = Callable[[Layer, Turn], Awaitable[Blob]]
"""Brings a layer to where it goes, and says what it is."""


class _Export:
    """Images on their way to one place."""

    def __init__(
        self,
        builder: Builder,
        output: Output,
        wishes: Wishes,
        finals: Mapping[str, Final],
        sink: events.Sink,
    ) -> None:
        self._builder, self._output, self._wishes, self._sink = builder, output, wishes, sink
        self._finals = finals
        self._layers = builder.layers(
            lambda text: self._sink(events.Note(text, warning=True)), sink=sink
        )
        plain = output.kind in ("docker-archive", "docker-daemon")
        self._packing = Packing("tar" if plain else wishes.compression, wishes.latest)
        given = dict.fromkeys((output.name, *wishes.names))
        given.pop("", None)
        self._names = tuple(given) or (() if plain else ("latest",))
        self._papers: list[Papers] = []

    def _tell(self, text: str) -> None:
        self._sink(events.Note(text=text))

    async def run(self, prefixes: Sequence[str]) -> None:
        """Make the images and bring them there."""
        output = self._output
        if output.kind == "registry":
            await self._push(prefixes)
        elif output.kind == "docker-daemon":
            await self._load(prefixes)
        elif output.kind == "oci":
            await self._write(prefixes, Layout(os.path.abspath(output.path)))
        else:
            async with written(output.path) as file:
                writer = OciArchive(file) if output.kind == "oci-archive" else DockerArchive(file)
                await self._write(prefixes, writer)

    async def _images(self, prefixes: Sequence[str], deliver: Deliver) -> Finished:
        """Make images, their layers delivered."""
        images = []
        for prefix in prefixes:
            key = self._builder.record(prefix).key
            with self._builder.held(key):
                final = self._finals.get(prefix) or self._layers.final(key)
                images.append(await self._image(key, final, deliver))
                if self._wishes.papers:
                    self._papers.append(await papers(self._builder, key, final, self._wishes))
        index = index_of(images, dict(self._wishes.annotations)) if len(images) > 1 else None
        return Finished(tuple(images), index, self._names)

    async def _image(self, key: Key, final: Final, deliver: Deliver) -> Image:
        wishes = self._wishes
        layers = self._layers.of(key, final.base, squash=wishes.squash)
        width = anyio.CapacityLimiter(_AT_ONCE)
        done = [anyio.Event() for _ in layers]
        blobs: dict[int, Blob] = {}

        async def one(number: int) -> None:
            async def turn() -> None:
                if number:
                    await done[number - 1].wait()

            async with width:  # who comes first is let in first: none waits for one that waits
                blobs[number] = await deliver(layers[number], turn)
                done[number].set()

        try:
            async with anyio.create_task_group() as tasks:
                for number in range(len(layers)):
                    tasks.start_soon(one, number)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        platform = final.base.platform
        if not platform.architecture:
            platform = host_platform()
        return assembled(
            final.config, platform,
            [(blobs[number], layer.heading) for number, layer in enumerate(layers)],
            wishes.made(self._builder.record(key).created), dict(wishes.annotations),
        )  # fmt: skip

    # --- on this machine -----------------------------------------------------------------------

    async def _write(self, prefixes: Sequence[str], writer: Writer) -> None:
        async def deliver(layer: Layer, turn: Turn) -> Blob:
            known = self._layers.known(layer, self._packing)
            if known is not None and writer.has(known):
                return known
            async with self._layers.packed(layer, self._packing) as (blob, file):
                await turn()
                if not writer.has(blob):
                    await anyio.to_thread.run_sync(writer.put, blob, file)
                return blob

        made = await self._images(prefixes, deliver)
        if self._wishes.papers:
            more = attached(made, self._papers, self._wishes, self._names)
            made = msgspec.structs.replace(made, attached=more)
        await anyio.to_thread.run_sync(writer.finish, made)

    async def _load(self, prefixes: Sequence[str]) -> None:
        from obuilder.backends.docker.api import DockerEngine, Load
        from obuilder.backends.docker.engine import Engine

        async def write(load: Load) -> None:
            await self._write(prefixes, DockerArchive(load))  # type: ignore[arg-type] # writes like one

        for line in await Engine(DockerEngine.found()).load_written(write):
            self._tell(line)

    # --- in registries -------------------------------------------------------------------------

    async def _push(self, prefixes: Sequence[str]) -> None:
        from obuilder.oci.push import Target

        settings = self._builder.settings.registries
        references = [Reference.parse(name) for name in self._names]
        async with AsyncExitStack() as stack:
            targets: dict[tuple[str, str], Target] = {}
            for reference in references:
                place = (reference.registry, reference.repository)
                if place not in targets:
                    targets[place] = await stack.enter_async_context(Target(reference, settings))
            made = await self._images(prefixes, self._sender(list(targets.values())))
            for place, target in targets.items():
                named = [one for one in references if (one.registry, one.repository) == place]
                await self._send(target, made, named)

    async def _send(self, target: "Target", made: Finished, names: Sequence[Reference]) -> None:
        """Send all but the layers: at last the names, so that what goes along is there before."""
        from obuilder.oci.push import attach, put_document

        for image in made.images:
            await put_document(target, image.config)
            if made.index is not None or self._wishes.papers:
                await _put_manifest(target, "", image.manifest)
        if self._wishes.papers:
            if made.index is not None:
                await _put_manifest(target, "", made.index)
            for each in attached(made, self._papers, self._wishes, [str(name) for name in names]):
                await attach(target, each)
        for name in names:
            await _put_manifest(target, name.tag, made.top)
            self._tell(f"pushed {name}@{made.top.descriptor.digest}")

    def _sender(self, targets: "list[Target]") -> Deliver:
        async def deliver(layer: Layer, _: Turn) -> Blob:
            known = self._layers.known(layer, self._packing)
            lack = targets if known is None else await _lacking(targets, known, layer)
            if known is not None and not lack:
                return known
            async with self._layers.packed(layer, self._packing) as (blob, file):
                if blob != known:
                    lack = await _lacking(targets, blob, layer)
                for target in lack:
                    await target.put(blob.digest, blob.size, file, self._progress(layer, blob))
                return blob

        return deliver

    def _progress(self, layer: Layer, blob: Blob) -> Callable[[int], None]:
        return lambda done: self._sink(events.Progress(layer.key, done, blob.size))


async def _lacking(targets: "list[Target]", blob: Blob, layer: Layer) -> "list[Target]":
    """Those that have no such blob, and can't be lent it."""
    return [target for target in targets if not await target.has(blob.digest, layer.origin)]


async def _put_manifest(target: "Target", tag: str, manifest: Document) -> None:
    found = manifest.descriptor
    await target.manifest(tag or found.digest, found, manifest.data)
