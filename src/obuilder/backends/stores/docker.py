"""Snapshots as images of a Docker engine; what steps mount, as its volumes.

    results/<key>/root          the image by its id, or the volume by its name
    volumes/<name>              for each volume that is a result's
    files/<session>.<n>/        the files of a root, for who looks at them or changes them

In the engine an image is called after its key, and after a draft while it is one.

Nothing of an engine can be held against it: views and what is published are copies of its own.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import ClassVar, final

import anyio
import anyio.to_thread
import msgspec

from obuilder.backends.docker import images
from obuilder.backends.docker.api import DockerEngine, Refused
from obuilder.backends.docker.engine import Engine, dropping, told
from obuilder.backends.docker.files import Copy, Files, sweep_files
from obuilder.backends.docker.model import Image, Info
from obuilder.backends.docker.names import Names
from obuilder.backends.docker.sweep import sweep_containers, take_away
from obuilder.backends.docker.volumes import Held, OpenVolumes, Volumes
from obuilder.backends.protocols import EngineImage, EngineVolume, Root, Usage
from obuilder.backends.stores.directory import (
    DirectoryStore,
    missing,
    translated,
    write_file,
)
from obuilder.errors import BackendUnavailable, StoreError
from obuilder.oci.platforms import platform_of
from obuilder.system.files import remove_tree
from obuilder.system.sessions import alive
from obuilder.values import IdMap, Key, User

_EMPTY = "empty"


class _Kept(msgspec.Struct, frozen=True):
    """Where a result is, and how many bytes only it has. `name` is the image's own."""

    root: EngineImage | EngineVolume
    name: str = ""
    size: int = 0


@final
class DockerDraft:
    """See `Draft`. `below` are the bytes that it shares with what it was made from."""

    def __init__(self, store: "DockerStore", name: str, key: Key, root: Root) -> None:
        self._store, self._key = store, key
        self.name, self.root = name, root
        self.below = 0
        self.done = False

    async def commit(self, meta: bytes, *, key: Key | None = None) -> None:
        """See `Draft`."""
        await self._store.commit(self, meta, key or self._key)


@final
class DockerStore(DirectoryStore):
    """See `Store`. Made by `open`."""

    produces: ClassVar[type] = EngineImage
    guarded: ClassVar[bool] = False
    kind: ClassVar[str] = "docker"
    folders: ClassVar[tuple[str, ...]] = ("results", "drafts", "files", "volumes")
    deepest = 100
    """Layers of an image that another layer is put on; engines take 125. More become one."""

    def __init__(self, directory: str, idmap: IdMap, session: str, engine: Engine) -> None:
        super().__init__(directory, idmap, session)
        self._engine = engine
        self._names: Names
        self._info: Info
        self._volumes: Volumes
        self._files: Files

    @classmethod
    async def open(cls, directory: str, idmap: IdMap, *, session: str) -> "DockerStore":
        """Open, or make, the store. BackendUnavailable, StoreError."""
        with told(BackendUnavailable, "results can't be kept in a Docker engine"):
            store = cls(directory, idmap, session, Engine(DockerEngine.found()))
            store._info = await store._engine.info()
        store._prepare()
        store._names = names = Names.of_store(store.directory, session)
        volumes = OpenVolumes if store._info.podman else Volumes
        store._volumes = volumes(
            store._engine, names, idmap, store.path("volumes"), store._empty_id
        )
        store._files = Files(
            store._engine, names, store._volumes, idmap, store.path("files"),
            parts=not store._info.podman,
        )  # fmt: skip
        return store

    @classmethod
    async def discard(cls, directory: str) -> None:
        """See `StoreClass`."""
        what = f"can't remove the store {directory}"
        with translated(what), told(StoreError, what):
            if os.path.exists(os.path.join(directory, "store.json")):  # it came to an engine
                names = Names.of_store(directory, session="")
                await take_away(Engine(DockerEngine.found()), names)
            remove_tree(directory)

    def _let_go(self) -> None:
        self._files.close()

    def _swept(self) -> None:
        """The engine's own things are looked for by name."""

    def _remove(self, path: str) -> None:
        remove_tree(path)

    @contextmanager
    def _trouble(self, what: str) -> Iterator[None]:
        with translated(what), told(StoreError, what):
            yield

    # --- drafts ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def begin(self, key: Key, *, base: Key | None) -> AsyncIterator[DockerDraft]:
        """See `Store`."""
        name = self._draft_name()
        image = self._names.image(name)
        draft = DockerDraft(self, name, key, EngineImage(image))
        try:
            with self._trouble("can't start a draft"):
                os.mkdir(self.path("drafts", name), 0o700)
                found = await self._empty() if base is None else await self._image(base)
                draft.below = found.size
                await self._engine.tag(found.id, image)
                if len(found.layers) >= self.deepest:
                    await self._files.flatten(name, found, image)
                    draft.below = 0
            yield draft
        finally:
            if not draft.done:
                await self._discard(draft)

    async def _discard(self, draft: DockerDraft) -> None:
        async with dropping():
            if isinstance(draft.root, EngineVolume):
                await self._volumes.forget(draft.root)
            else:
                await self._engine.untag(self._names.image(draft.name))
        await self._drop(self.path("drafts", draft.name))

    async def _empty(self) -> Image:
        """The image with nothing in it. Made when it is first asked for."""
        name = self._names.image(_EMPTY)
        try:
            return await self._engine.image(name)
        except Refused as error:
            if error.status != 404:
                raise
        platform = platform_of(self._info.os_type, self._info.architecture)
        wanted = Image.of([], platform)
        await self._engine.load(images.archive(name, wanted))
        return await self._engine.image(name)

    async def _empty_id(self) -> str:
        return (await self._empty()).id

    async def _image(self, key: Key) -> Image:
        """The image of a result. SnapshotMissing, also if somebody else removed it."""
        root = self._kept(key).root
        if not isinstance(root, EngineImage):
            raise StoreError(f"the result {key[:12]} is a volume: nothing runs in it")
        try:
            return await self._engine.image(root.ref)
        except Refused as error:
            if error.status == 404:
                raise missing(key) from error
            raise

    def _kept(self, key: Key, folder: str | None = None) -> _Kept:
        path = os.path.join(folder or self.path("results", key), "root")
        try:
            with open(path, "rb") as file:
                return msgspec.json.decode(file.read(), type=_Kept)
        except FileNotFoundError:
            raise missing(key) from None

    # --- views and files -------------------------------------------------------------------------

    @asynccontextmanager
    async def view(self, key: Key) -> AsyncIterator[Root]:
        """See `Store`."""
        with translated("can't show a result"):
            root = self._kept(key).root
        name = self._draft_name()
        if isinstance(root, EngineVolume):
            async with self._held_volume(key, name):
                yield root
        else:
            async with self._held_image(key, name) as image:
                yield image

    @asynccontextmanager
    async def _held_image(self, key: Key, name: str) -> AsyncIterator[Root]:
        """The image of a result, which is not lost while it has a name of ours."""
        image = self._names.image(name)
        try:
            with self._trouble("can't show a result"):
                await self._engine.tag((await self._image(key)).id, image)
            yield EngineImage(image)
        finally:
            async with dropping():
                await self._engine.untag(image)

    @asynccontextmanager
    async def _held_volume(self, key: Key, name: str) -> AsyncIterator[Held]:
        """The volume of a result, which is not lost while it is held."""
        root = self._kept(key).root
        if not isinstance(root, EngineVolume):
            raise StoreError(f"the result {key[:12]} is no volume: nothing can mount it")
        try:
            async with AsyncExitStack() as stack:
                with self._trouble("can't show a volume"):
                    if not await self._volumes.exists(root):
                        raise missing(key)
                    held = await stack.enter_async_context(self._volumes.held(name, root))
                yield held
        finally:
            if not self._published(key):
                async with dropping():
                    await self._volumes.forget(root)

    def _published(self, key: str) -> bool:
        return os.path.isdir(self.path("results", key))

    @asynccontextmanager
    async def files(
        self, root: Root, *, only: tuple[str, ...] | None = None, write: bool = False
    ) -> AsyncIterator[str]:
        """See `Store`. A copy, which goes back into the engine if it is for writing."""
        copy = Copy(self._draft_name(), root, only=None if write else only)
        try:
            with self._trouble("can't show the files of a root"):
                path = await self._files.take_out(copy, write=write)
            yield path
            if write:
                with self._trouble("can't keep the files of a root"):
                    await self._files.bring_back(copy)
        finally:
            with anyio.CancelScope(shield=True):
                await self._files.drop(copy)

    # --- volumes -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def volume(
        self, key: Key, *, base: Key | None, owner: User
    ) -> AsyncIterator[DockerDraft]:
        """See `Store`."""
        name = self._draft_name()
        draft = DockerDraft(self, name, key, self._volumes.called(name))
        try:
            with self._trouble("can't make a volume"):
                os.mkdir(self.path("drafts", name), 0o700)
                if base is None:
                    await self._volumes.make(name, owner, None)
                else:
                    async with self._held_volume(base, f"{name}.from") as held:
                        await self._volumes.make(name, owner, held)
            yield draft
        finally:
            if not draft.done:
                await self._discard(draft)

    async def shared(self, place: str, owner: User) -> Root:
        """See `Store`."""
        with self._trouble("can't make a volume"):
            return await self._volumes.shared(self._draft_name(), place, owner)

    async def remove_shared(self, place: str) -> None:
        """See `Store`."""
        with self._trouble("can't delete a volume"):
            await self._volumes.remove_shared(place)

    # --- publishing and removing -------------------------------------------------------------------

    async def commit(self, draft: DockerDraft, meta: bytes, key: Key) -> None:
        """Publish a draft of this store; the draft's own `commit` calls it."""
        if draft.done:
            raise StoreError("the draft is published already")
        place = self.path("drafts", draft.name)
        with anyio.CancelScope(shield=True), self._trouble("can't publish a result"):
            kept = await self._settled(draft, key)
            finished = os.path.join(place, "result")
            os.mkdir(finished)
            write_file(os.path.join(finished, "meta"), meta)
            write_file(os.path.join(finished, "root"), msgspec.json.encode(kept))
            if isinstance(kept.root, EngineVolume):
                self._volumes.note(kept.root, key)
            if not self._publish(finished, key):
                return  # the draft goes as one that was not published
            draft.done = True
            if isinstance(kept.root, EngineImage):
                await self._engine.tag(kept.root.ref, kept.name)
                await self._engine.untag(self._names.image(draft.name))
            await self._drop(place)

    async def _settled(self, draft: DockerDraft, key: Key) -> _Kept:
        if not isinstance(draft.root, EngineImage):
            assert isinstance(draft.root, EngineVolume), draft.root
            return _Kept(draft.root)
        image = await self._engine.image(draft.root.ref)
        size = max(0, image.size - draft.below)
        return _Kept(EngineImage(image.id), self._names.image(key), size)

    async def contains(self, key: Key) -> bool:
        """See `Store`. Not if somebody else removed what the engine had of it."""
        try:
            root = self._kept(key).root
        except StoreError:
            return False
        with self._trouble("can't look for a result"):
            if isinstance(root, EngineVolume):
                return await self._volumes.exists(root)
            with suppress(Refused):
                await self._engine.image(root.ref)
                return True
        return False

    async def delete(self, key: Key) -> None:
        """See `Store`."""
        place = self.path("drafts", self._draft_name())
        with anyio.CancelScope(shield=True), self._trouble("can't delete a result"):
            os.mkdir(place, 0o700)
            deleted = os.path.join(place, "deleted")
            with suppress(FileNotFoundError):
                os.rename(self.path("results", key), deleted)
                kept = self._kept(key, deleted)
                if isinstance(kept.root, EngineVolume):
                    await self._volumes.forget(kept.root)
                else:
                    await self._engine.untag(kept.name)
            await self._drop(place)

    async def recover(self) -> None:
        """See `Store`."""
        await super().recover()
        with self._trouble("can't remove what a dead session left"):
            await anyio.to_thread.run_sync(sweep_files, self.path("files"), self._lives)
            await sweep_containers(self._engine, self._names, self._lives)
            await self._sweep_images()
            await self._volumes.sweep(self._lives, self._published)

    def _lives(self, session: str) -> bool:
        return alive(self.directory, session)

    async def _sweep_images(self) -> None:
        tags = set(await self._engine.tags(self._names.repository)) - {_EMPTY}
        keys = {tag for tag in tags if len(tag) == 64}
        dead = [tag for tag in tags - keys if not self._lives(tag.partition(".")[0])]
        if dead:
            await self._name_results(keys)
        for tag in (*dead, *(key for key in keys if not self._published(key))):
            await self._engine.untag(self._names.image(tag))

    async def _name_results(self, named: set[str]) -> None:
        """Give results their names which died on the way from a draft's to their own."""
        for key in await self.keys():
            if key not in named:
                with suppress(StoreError, Refused):
                    kept = self._kept(key)
                    if isinstance(kept.root, EngineImage):
                        await self._engine.tag(kept.root.ref, kept.name)

    # --- space -------------------------------------------------------------------------------------

    async def usage(self) -> Usage:
        """See `Store`. Of the engine's disk, if it is one of this machine."""
        place = self._info.docker_root_dir
        found = os.statvfs(place if os.path.isdir(place) else self.directory)
        return Usage(
            used=None, free=found.f_bavail * found.f_frsize, total=found.f_blocks * found.f_frsize
        )

    async def size(self, key: Key) -> int:
        """See `Store`."""
        with self._trouble("can't measure a result"):
            kept = self._kept(key)
            if isinstance(kept.root, EngineVolume):
                return await self._engine.volume_size(kept.root.name)
        return kept.size
