"""Volumes of an engine, looked into and filled by containers that never run.

An engine's volumes can't be renamed: each is called after the draft that it was once. That it has become
a result's is noted in a directory, in a file of its name, which has the result's key.
"""

import os
import tarfile
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import BinaryIO, NamedTuple

import anyio
import anyio.to_thread

from obuilder.backends.docker.api import Answer
from obuilder.backends.docker.archives import parked, receive
from obuilder.backends.docker.engine import Engine
from obuilder.backends.docker.names import STORE, Names
from obuilder.backends.protocols import EngineVolume
from obuilder.errors import StoreBusy, StoreError
from obuilder.oci.archive import write_tar
from obuilder.oci.members import Manner
from obuilder.system.files import copy_tree
from obuilder.values import IdMap, UnixUser, User

_TOP = "volume"
"""Where a container that is there for a volume's sake has it."""
_SHARED = "shared-"
_PIECE = 1 << 20


class Held(NamedTuple):
    """A volume, and a container that has it, so that it can't be removed."""

    volume: EngineVolume
    container: str


class Volumes:
    """A store's volumes. `empty` gives the image of nothing; `notes` is the directory of notes.

    What is in them goes in and out as archives. A `name` is one that nothing else of the session has.
    """

    def __init__(
        self, engine: Engine, names: Names, idmap: IdMap, notes: str,
        empty: Callable[[], Awaitable[str]],
    ) -> None:  # fmt: skip
        self._engine, self._names, self._idmap = engine, names, idmap
        self._notes, self._empty = notes, empty

    @asynccontextmanager
    async def held(self, name: str, volume: EngineVolume) -> AsyncIterator[Held]:
        """Keep a volume for as long as the context lasts."""
        mount = {"Type": "volume", "Source": volume.name, "Target": f"/{_TOP}"}
        async with parked(self._engine, self._names, name, await self._empty(), mount) as found:
            yield Held(volume, found)

    async def exists(self, volume: EngineVolume) -> bool:
        """Whether nobody else removed it."""
        return await self._engine.volume(volume.name) is not None

    def called(self, name: str) -> EngineVolume:
        """The volume of a draft."""
        return EngineVolume(self._names.thing(name))

    async def make(self, name: str, owner: User, base: Held | None) -> None:
        """Make a draft's volume, a copy of another. Its top is `owner`'s."""
        volume = self.called(name)
        await self._engine.make_volume(volume.name, **self._names.labels)
        async with self.held(f"{name}.to", volume) as held:
            if base is None:
                await self._give(held, owner)
            else:
                await self._copy(base, held, owner)

    async def shared(self, name: str, place: str, owner: User) -> EngineVolume:
        """The volume of that place, which is no session's. Made if missing."""
        volume = self.called(f"{_SHARED}{place}")
        await self._engine.make_volume(volume.name, **{STORE: self._names.store})
        async with self.held(name, volume) as held:
            await self._give(held, owner)
        return volume

    async def remove_shared(self, place: str) -> None:
        """Remove it. StoreBusy while a step has it."""
        await self._remove(self.called(f"{_SHARED}{place}"))

    async def replace(
        self, name: str, volume: EngineVolume, directory: str, *, folder: str
    ) -> None:
        """Make a volume anew, of the files in a directory. `folder`: for a file without a name."""
        await self._remove(volume)  # an engine takes nothing out of a volume
        await self._engine.make_volume(volume.name, **self._names.labels)
        async with self.held(name, volume) as held:
            await self._fill(held, directory, folder)

    async def _remove(self, volume: EngineVolume) -> None:
        if not await self._engine.remove_volume(volume.name):
            raise StoreBusy("a volume can't be removed or replaced while a step has it")

    # --- what is in them -----------------------------------------------------------------------

    async def export(self, name: str, volume: EngineVolume, directory: str) -> None:
        """Put the files of a volume into an empty directory, which becomes like its top."""
        async with self.held(name, volume) as held:
            await receive(self._engine, held.container, f"/{_TOP}/.", directory, self._idmap)

    async def _copy(self, source: Held, target: Held, owner: User) -> None:
        answer = self._engine.reading(source.container, f"/{_TOP}")
        await self._engine.put(target.container, "/", _copied(answer, owner), answer)

    async def _give(self, held: Held, owner: User) -> None:
        """Give the top to its owner; its mode stays."""
        if isinstance(owner, UnixUser):
            found = await self._engine.at(held.container, f"/{_TOP}")
            mode = found.permissions if found is not None else 0o755
            await self._set_top(held, (owner.uid, owner.gid), mode)

    async def _set_top(self, held: Held, owner: tuple[int, int], mode: int) -> None:
        top = tarfile.TarInfo(_TOP)
        top.type, top.mode = tarfile.DIRTYPE, mode
        top.uid, top.gid = owner
        archive = [top.tobuf(tarfile.PAX_FORMAT), bytes(1024)]
        await self._engine.put(held.container, "/", archive)

    async def _fill(self, held: Held, directory: str, folder: str) -> None:
        status, idmap, owner = os.stat(directory), self._idmap, (0, 0)
        if not idmap.single:
            owner = idmap.to_inside(status.st_uid), idmap.to_inside(status.st_gid)
        await self._set_top(held, owner, status.st_mode & 0o7777)
        with tempfile.TemporaryFile(dir=folder) as file:
            await anyio.to_thread.run_sync(
                lambda: write_tar(directory, file, Manner(idmap, exact=True))
            )
            file.seek(0)
            await self._engine.put(held.container, f"/{_TOP}", _read(file))

    # --- results -------------------------------------------------------------------------------

    def note(self, volume: EngineVolume, key: str) -> None:
        """It is about to be a result's. OSError."""
        with open(os.path.join(self._notes, volume.name), "x", encoding="ascii") as file:
            file.write(key)

    async def forget(self, volume: EngineVolume) -> None:
        """It is no result's any more. Who has it still takes it away after."""
        if await self._engine.remove_volume(volume.name):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._notes, volume.name))

    async def sweep(self, alive: Callable[[str], bool], published: Callable[[str], bool]) -> None:
        """Remove what is no live session's, shared by none, and no published key's."""
        start = self._names.thing("")
        for name in await self._engine.volumes(**{STORE: self._names.store}):
            own = name.removeprefix(start)
            if own.startswith(_SHARED) or alive(own.partition(".")[0]):
                continue
            with suppress(FileNotFoundError), open(os.path.join(self._notes, name)) as file:
                if published(file.read()):
                    continue
            await self.forget(EngineVolume(name))


class OpenVolumes(Volumes):
    """The volumes of an engine whose archives lose owners (podman's): by the directories they are.

    The engine says where those are; they have to be this machine's, and may be entered.
    """

    async def _directory(self, volume: EngineVolume) -> str:
        found = await self._engine.volume(volume.name)
        place = found.mountpoint if found is not None else ""
        if not place or not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise StoreError(
                f"the volume {volume.name} can't be opened at {place or 'any place'}",
                hint="cache volumes of podman need a service of this machine, of one's own or of root",
            )
        return place

    async def export(self, name: str, volume: EngineVolume, directory: str) -> None:
        """See `Volumes`."""
        async with self.held(name, volume):
            place = await self._directory(volume)
            await anyio.to_thread.run_sync(
                lambda: _copy_all(place, directory, self._idmap.to_disk, onto=self._idmap)
            )

    async def _copy(self, source: Held, target: Held, owner: User) -> None:
        old, new = await self._directory(source.volume), await self._directory(target.volume)
        await anyio.to_thread.run_sync(_copy_all, old, new)
        await self._give(target, owner)

    async def _give(self, held: Held, owner: User) -> None:
        if isinstance(owner, UnixUser):
            os.chown(await self._directory(held.volume), owner.uid, owner.gid)

    async def _fill(self, held: Held, directory: str, folder: str) -> None:
        place = await self._directory(held.volume)
        await anyio.to_thread.run_sync(
            lambda: _copy_all(directory, place, self._idmap.to_inside, idmap=self._idmap)
        )


def _copy_all(
    source: str, target: str, owned: Callable[[int], int] = int, *,
    idmap: IdMap | None = None, onto: IdMap | None = None,
) -> None:  # fmt: skip
    """Copy what is in a directory, and what it is like itself; `owned` says whose its owner's is."""
    copy_tree(source, target, idmap=idmap, onto=onto, existing="keep")
    status = os.stat(source)
    os.chown(target, owned(status.st_uid), owned(status.st_gid))
    os.chmod(target, status.st_mode & 0o7777)


def _copied(answer: Answer, owner: User) -> Iterator[bytes]:
    """An archive of a volume as it comes, but for the owner of its top, which comes first."""
    with answer:
        file = answer.file()
        head, top = _header(file)
        while top.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):  # says more of what comes next
            yield head + file.read(-(-top.size // len(head)) * len(head))
            head, top = _header(file)
        if isinstance(owner, UnixUser):
            top.uid, top.gid = owner.uid, owner.gid
            head = top.tobuf(tarfile.PAX_FORMAT)
        yield head
        yield from _read(file)


def _header(file: BinaryIO) -> tuple[bytes, tarfile.TarInfo]:
    head = file.read(tarfile.BLOCKSIZE)
    return head, tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")


def _read(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece
