"""Roots as directories of this machine: copies, for as long as somebody looks at or changes them."""

import os
from collections.abc import Callable
from typing import BinaryIO

import anyio
import anyio.to_thread

from obuilder.backends.docker import archives, images
from obuilder.backends.docker.engine import Engine
from obuilder.backends.docker.model import Image
from obuilder.backends.docker.names import Names
from obuilder.backends.docker.volumes import Volumes
from obuilder.backends.protocols import EngineImage, EngineVolume, Root
from obuilder.oci.archive import Seen, look, write_since, write_tar
from obuilder.oci.members import Manner
from obuilder.system.files import remove_tree
from obuilder.values import IdMap, Platform


class Copy:
    """A copy of a root's files; `name` is one that nothing else of the session has.

    `only`: of no more than what is at these paths.
    """

    def __init__(self, name: str, root: Root, *, only: tuple[str, ...] | None = None) -> None:
        self.name, self.root, self.only = name, root, only
        self.before: Seen = {}
        self.kept = False


class Files:
    """The copies of a session, in a directory of the store.

    Without `volumes`, of images alone. `parts`: the engine can be asked for a part of an image;
    podman follows symlinks.
    """

    def __init__(
        self, engine: Engine, names: Names, volumes: Volumes | None, idmap: IdMap,
        folder: str, *,
        parts: bool,
    ) -> None:  # fmt: skip
        self._parts = parts
        self._engine, self._names, self._volumes = engine, names, volumes
        self._idmap, self._folder = idmap, folder
        self._left: tuple[str, str] | None = None

    def _place(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name, "root")

    async def take_out(self, copy: Copy, *, write: bool) -> str:
        """Make the copy: its directory. `write`: it is going to be brought back."""
        if not (write and await self._still_there(copy)):
            self._empty(copy.name)
            await self._export(copy)
        path = self._path(copy.name)
        if write:
            copy.before = await anyio.to_thread.run_sync(look, path)
        return path

    def _empty(self, name: str) -> None:
        os.mkdir(self._place(name), 0o700)
        path = self._path(name)
        os.mkdir(path)
        os.chmod(path, 0o755)  # noqa: S103 - as the root of any system is
        if not self._idmap.single:
            os.chown(path, self._idmap.to_disk(0), self._idmap.to_disk(0))

    async def _export(self, copy: Copy) -> None:
        root, path, name = copy.root, self._path(copy.name), copy.name
        if isinstance(root, EngineVolume):
            assert self._volumes is not None
            await self._volumes.export(name, root, path)
            return
        assert isinstance(root, EngineImage), root
        if self._parts and copy.only is not None and archives.told_apart(copy.only):
            async with archives.parked(self._engine, self._names, name, root.ref) as container:
                await archives.export_paths(self._engine, container, copy.only, path, self._idmap)
        else:
            image = await self._engine.image(root.ref)
            await images.export(self._engine, image, path, self._idmap, folder=self._place(name))

    async def bring_back(self, copy: Copy) -> None:
        """Make what changed in the copy a change of the root."""
        root, path, folder = copy.root, self._path(copy.name), self._place(copy.name)
        if isinstance(root, EngineVolume):
            assert self._volumes is not None
            await self._volumes.replace(copy.name, root, path, folder=folder)
            return
        assert isinstance(root, EngineImage), root
        image = await self._engine.image(root.ref)

        def write(file: BinaryIO) -> None:
            write_since(copy.before, path, file, Manner(self._idmap, exact=True))

        await images.stack(self._engine, root.ref, image, write, folder=folder)
        await self._leave_there(copy, root)

    async def drop(self, copy: Copy) -> None:
        """Remove the copy."""
        if not copy.kept:
            await anyio.to_thread.run_sync(remove_tree, self._place(copy.name))

    async def flatten(self, name: str, image: Image, called: str) -> None:
        """Give `called` to an image with the files of `image` in one layer."""
        self._empty(name)
        path, folder = self._path(name), self._place(name)
        try:
            await images.export(self._engine, image, path, self._idmap, folder=folder)
            platform = Platform(image.os, image.architecture, image.variant)
            bare = Image.of([], platform, image.config)

            def write(file: BinaryIO) -> None:
                write_tar(path, file, Manner(self._idmap, exact=True))

            await images.stack(self._engine, called, bare, write, folder=folder)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(remove_tree, folder)

    # --- the last one --------------------------------------------------------------------------

    async def _still_there(self, copy: Copy) -> bool:
        """Take up what the last change left there, if that made this very root.

        Images come layer by layer: each is put over the files of the one before.
        """
        if not isinstance(copy.root, EngineImage) or self._left is None:
            return False
        (image, left), self._left = self._left, None
        if image != (await self._engine.image(copy.root.ref)).id:
            await anyio.to_thread.run_sync(remove_tree, left)
            return False
        os.rename(left, self._place(copy.name))
        return True

    async def _leave_there(self, copy: Copy, root: EngineImage) -> None:
        image = (await self._engine.image(root.ref)).id
        left, self._left = self._left, (image, self._place(copy.name))
        copy.kept = True
        if left is not None:
            await anyio.to_thread.run_sync(remove_tree, left[1])

    def close(self) -> None:
        """Remove what the last change left."""
        left, self._left = self._left, None
        if left is not None:
            remove_tree(left[1])


def sweep_files(folder: str, alive: Callable[[str], bool]) -> None:
    """Remove the copies of dead sessions, and what else they left beside them."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if not alive(name.partition(".")[0]):
            remove_tree(os.path.join(folder, name))
