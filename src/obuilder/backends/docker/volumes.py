"""Volumes of an engine, looked into and filled by containers that never run.

An engine's volumes can't be renamed: each is called after the draft that it was once. That it has become
a result's is noted in a directory, in a file of its name, which has the result's key.
"""

import os
import tarfile
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import BinaryIO

import anyio
import anyio.to_thread

from obuilder.backends.docker.api import Answer
from obuilder.backends.docker.archives import parked, receive
from obuilder.backends.docker.engine import Engine
from obuilder.backends.docker.names import STORE, Names
from obuilder.backends.protocols import EngineVolume
from obuilder.errors import StoreBusy
from obuilder.oci.archive import write_tar
from obuilder.values import IdMap, UnixUser, User

_TOP = "volume"
"""Where a container that is there for a volume's sake has it."""
_SHARED = "shared-"
_PIECE = 1 << 20


class Volumes:
    """A store's volumes. `empty` gives the image of nothing; `notes` is the directory of notes.

    `name` is one that nothing else of the session has.
    """

    def __init__(
        self, engine: Engine, names: Names, idmap: IdMap, notes: str,
        empty: Callable[[], Awaitable[str]],
    ) -> None:  # fmt: skip
        self._engine, self._names, self._idmap = engine, names, idmap
        self._notes, self._empty = notes, empty

    @asynccontextmanager
    async def held(self, name: str, volume: EngineVolume) -> AsyncIterator[str]:
        """A container that has the volume, which can't be removed for as long."""
        mount = {"Type": "volume", "Source": volume.name, "Target": f"/{_TOP}"}
        async with parked(self._engine, self._names, name, await self._empty(), mount) as found:
            yield found

    async def exists(self, volume: EngineVolume) -> bool:
        """Whether nobody else removed it."""
        return await self._engine.has_volume(volume.name)

    def called(self, name: str) -> EngineVolume:
        """The volume of a draft."""
        return EngineVolume(self._names.thing(name))

    async def make(self, name: str, owner: User, base: str | None) -> None:
        """Make a draft's volume, a copy of the one that a container `base` has.

        Its top is `owner`'s.
        """
        volume = self.called(name)
        await self._engine.make_volume(volume.name, **self._names.labels)
        async with self.held(f"{name}.to", volume) as target:
            if base is None:
                await self._give(target, owner)
            else:
                answer = self._engine.reading(base, f"/{_TOP}")
                await self._engine.put(target, "/", _copied(answer, owner), answer)

    async def shared(self, name: str, place: str, owner: User) -> EngineVolume:
        """The volume of that place, which is no session's. Made if missing."""
        volume = self.called(f"{_SHARED}{place}")
        await self._engine.make_volume(volume.name, **{STORE: self._names.store})
        async with self.held(name, volume) as container:
            await self._give(container, owner)
        return volume

    async def remove_shared(self, place: str) -> None:
        """Remove it. StoreBusy while a step has it."""
        await self._remove(self.called(f"{_SHARED}{place}"))

    async def _remove(self, volume: EngineVolume) -> None:
        if not await self._engine.remove_volume(volume.name):
            raise StoreBusy("a volume can't be removed or replaced while a step has it")

    async def _give(self, container: str, owner: User) -> None:
        if isinstance(owner, UnixUser):
            found = await self._engine.at(container, f"/{_TOP}")
            mode = found.permissions if found is not None else 0o755
            await self._set_top(container, (owner.uid, owner.gid), mode)

    async def _set_top(self, container: str, owner: tuple[int, int], mode: int) -> None:
        top = tarfile.TarInfo(_TOP)
        top.type, top.mode = tarfile.DIRTYPE, mode
        top.uid, top.gid = owner
        await self._engine.put(container, "/", [top.tobuf(tarfile.PAX_FORMAT), bytes(1024)])

    # --- files ---------------------------------------------------------------------------------

    async def export(self, name: str, volume: EngineVolume, directory: str) -> None:
        """Put the files of a volume into an empty directory, which becomes like its top."""
        async with self.held(name, volume) as container:
            await receive(self._engine, container, f"/{_TOP}/.", directory, self._idmap)

    async def replace(
        self, name: str, volume: EngineVolume, directory: str, *, folder: str
    ) -> None:
        """Make a volume anew, of the files in a directory. `folder`: for a file without a name."""
        await self._remove(volume)  # an engine takes nothing out of a volume
        await self._engine.make_volume(volume.name, **self._names.labels)
        status, idmap, owner = os.stat(directory), self._idmap, (0, 0)
        if not idmap.single:
            owner = idmap.to_inside(status.st_uid), idmap.to_inside(status.st_gid)
        async with self.held(name, volume) as container:
            await self._set_top(container, owner, status.st_mode & 0o7777)
            with tempfile.TemporaryFile(dir=folder) as file:
                await anyio.to_thread.run_sync(
                    lambda: write_tar(directory, file, idmap, exact=True)
                )
                file.seek(0)
                await self._engine.put(container, f"/{_TOP}", _read(file))

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
