"""A store and a sandbox without a kernel's help, for tests of the engine and of what stands on it.

    async with open_fakes(directory) as (store, sandbox), Builder.over(store, sandbox) as builder:
        result = await builder.build(spec, context)

They need no root, no namespace and no program, and pass the shipped suites as real back ends do.
The store copies plain directories. The sandbox interprets a little shell (`fake_shell`) in this
process; a test may teach it words of its own (`FakeSandbox.programs`), to hold a step, say.
"""

import itertools
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar, final

import anyio
import anyio.to_thread
import msgspec

from obuilder.backends.protocols import Command, Exit, Features, HostDir, Mount, Root
from obuilder.backends.stores.directory import (
    DirectoryStore,
    disk_bytes,
    missing,
    translated,
    write_file,
)
from obuilder.errors import SandboxError, StoreError, Unsupported
from obuilder.oci.platforms import host_platform
from obuilder.system.copying import copy_in
from obuilder.system.sessions import alive, open_session
from obuilder.system.tree import Manifest
from obuilder.testing.fake_shell import FakeShell, Files, Program
from obuilder.values import IdMap, Key, Policy, UnixUser, User

__all__ = ["FakeSandbox", "FakeStore", "Program", "fake_idmap", "open_fakes"]


def fake_idmap() -> IdMap:
    """One id, that of whoever runs the test: the fakes know no owners."""
    return IdMap(first=os.geteuid(), count=1)


@asynccontextmanager
async def open_fakes(directory: str) -> AsyncIterator[tuple["FakeStore", "FakeSandbox"]]:
    """Both fakes in `directory`, as a process of its own would open them."""
    os.makedirs(directory, exist_ok=True)
    session = open_session(directory)
    try:
        idmap = fake_idmap()
        store = await FakeStore.open(directory, idmap, session=session.name)
        yield store, await FakeSandbox.open(directory, idmap, session=session.name)
    finally:
        session.close()


# --- the store -----------------------------------------------------------------------------------


@final
class FakeDraft:
    """See `Draft`."""

    def __init__(self, store: "FakeStore", place: str, key: Key) -> None:
        self._store, self._key = store, key
        self.place = place
        self.root: Root = HostDir(os.path.join(place, "root"))
        self.done = False

    async def commit(self, meta: bytes, *, key: Key | None = None) -> None:
        """See `Draft`."""
        await self._store.commit(self, meta, key or self._key)


@final
class FakeStore(DirectoryStore):
    """See `Store`. Results are directories, made by copying; nothing outlives a power cut.

    Nobody can be kept from writing to a view or a draft, so each is a copy of its own, and so is
    what is published.
    """

    kind: ClassVar[str] = "fake"
    guarded: ClassVar[bool] = False
    folders: ClassVar[tuple[str, ...]] = ("results", "drafts")

    @classmethod
    async def open(cls, directory: str, idmap: IdMap, *, session: str) -> "FakeStore":
        """Open, or make, the store. StoreError."""
        store = cls(directory, idmap, session)
        store._prepare()
        return store

    @asynccontextmanager
    async def begin(self, key: Key, *, base: Key | None) -> AsyncIterator[FakeDraft]:
        """See `Store`."""
        draft = FakeDraft(self, self.path("drafts", self._draft_name()), key)
        try:
            with translated("can't start a draft"):
                await self._copy(base, draft.place)
            yield draft
        finally:
            await self._drop(draft.place)

    @asynccontextmanager
    async def view(self, key: Key) -> AsyncIterator[Root]:
        """See `Store`."""
        place = self.path("drafts", self._draft_name())
        try:
            with translated("can't show a result"):
                await self._copy(key, place)
            yield HostDir(os.path.join(place, "root"))
        finally:
            await self._drop(place)

    async def commit(self, draft: FakeDraft, meta: bytes, key: Key) -> None:
        """Publish a draft of this store; the draft's own `commit` calls it."""
        if draft.done:
            raise StoreError("the draft is published already")
        with translated("can't publish a result"):
            finished = os.path.join(draft.place, "result")
            os.mkdir(finished)
            write_file(os.path.join(finished, "meta"), meta)
            await _copy_tree(os.path.join(draft.place, "root"), os.path.join(finished, "root"))
            self._publish(finished, key)
            draft.done = True
            await self._drop(draft.place)

    async def delete(self, key: Key) -> None:
        """See `Store`."""
        place = self.path("drafts", self._draft_name())
        with translated("can't delete a result"):
            try:
                os.rename(self.path("results", key), place)
            except FileNotFoundError:
                return
            await self._drop(place)

    async def size(self, key: Key) -> int:
        """See `Store`. All of it: nothing is shared."""
        if not await self.contains(key):
            raise missing(key)
        return await anyio.to_thread.run_sync(disk_bytes, self.path("results", key))

    async def _copy(self, key: Key | None, place: str) -> None:
        os.mkdir(place)
        if key is None:
            os.mkdir(os.path.join(place, "root"), 0o755)
            return
        source = self.path("results", key, "root")
        try:
            await _copy_tree(source, os.path.join(place, "root"))
        except OSError:
            if os.path.isdir(source):
                raise
            raise missing(key) from None  # also one that was deleted meanwhile

    def _remove(self, path: str) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def _sync(self) -> None:
        """Tests have no power cuts."""

    def _swept(self) -> None:
        """Nothing is shared between results."""

    def _let_go(self) -> None:
        """Nothing is kept open."""


async def _copy_tree(source: str, target: str) -> None:
    await anyio.to_thread.run_sync(lambda: shutil.copytree(source, target, symlinks=True))


# --- the sandbox ---------------------------------------------------------------------------------


@final
class FakeSandbox:
    """See `Sandbox`. Commands are tasks of this process; files get its own owner.

    `programs` are more commands by name, each a coroutine function (see `fake_shell.Call`).
    """

    accepts: ClassVar[frozenset[type]] = frozenset({HostDir})

    def __init__(self, directory: str, idmap: IdMap, session: str) -> None:
        self._directory, self._idmap, self._session = directory, idmap, session
        self._numbers = itertools.count()
        self.programs: dict[str, Program] = {}
        self.features = Features(
            users=True,
            networks=frozenset({""}),
            secrets=True,
            limits=frozenset({"seconds"}),
            platforms=(host_platform(),),
            isolation=False,
            policies=frozenset(),
        )

    @classmethod
    async def open(
        cls,
        directory: str,
        idmap: IdMap,
        *,
        session: str,
        policy: Policy = Policy(),  # noqa: B008 - frozen
    ) -> "FakeSandbox":
        """Open the sandbox: there is nothing that could be missing."""
        os.makedirs(os.path.join(directory, "run"), exist_ok=True)
        return cls(directory, idmap, session)

    async def run(self, root: Root, command: Command, *, output: Callable[[bytes], None]) -> Exit:
        """See `Sandbox`."""
        return await self._run(root, command, output, b"")

    async def enter(self, root: Root, command: Command) -> Exit:
        """See `Sandbox`. A shell reads all of its input first."""
        stdin = await anyio.to_thread.run_sync(sys.stdin.buffer.read)
        return await self._run(root, command, lambda data: os.write(1, data), stdin)

    async def _run(
        self, root: Root, command: Command, output: Callable[[bytes], object], stdin: bytes
    ) -> Exit:
        if not isinstance(command.user, UnixUser):
            raise Unsupported("this sandbox takes users by number: (user (uid N) (gid N))")
        if command.network:
            raise Unsupported(f"this sandbox has no network called {command.network[0]!r}")
        folder = os.path.join(self._directory, "run", f"{self._session}.{next(self._numbers)}")
        os.mkdir(folder)
        try:
            mounts = (*command.mounts, *_secrets(command, folder))
            sources = [_directory(mount.source) for mount in mounts]
            if gone := [path for path in sources if not os.path.exists(path)]:
                raise SandboxError(f"the step could not be started: there is no {gone[0]}")
            files = Files(_directory(root), mounts)
            try:
                os.makedirs(files.host(command.cwd), exist_ok=True)
            except OSError as error:
                raise SandboxError(f"can't make {command.cwd}: {error.strerror}") from error
            shown = [(s.env, os.fsdecode(s.value)) for s in command.secrets if s.env]
            command = msgspec.structs.replace(command, env=(*command.env, *shown))
            shell = FakeShell(command, files, output, programs=self.programs, stdin=stdin)
            with anyio.move_on_after(command.limits.seconds):
                return Exit(await shell.run())
        finally:
            shutil.rmtree(folder)
        return Exit(137, timed_out=True)

    async def put(self, root: Root, tree: Manifest, source: Root, *, to: str, owner: User) -> None:
        """See `Sandbox`."""
        inside, outside = _directory(root), _directory(source)
        await anyio.to_thread.run_sync(
            lambda: copy_in(inside, tree, outside, to=to, owner=(0, 0), idmap=self._idmap)
        )

    async def check(self) -> None:
        """See `Sandbox`."""

    async def describe(self) -> str:
        """See `Sandbox`."""
        return "a fake: a few words of shell inside this process, no isolation at all"

    async def recover(self) -> None:
        """See `Sandbox`."""
        for name in os.listdir(os.path.join(self._directory, "run")):
            if not alive(self._directory, name.partition(".")[0]):
                shutil.rmtree(os.path.join(self._directory, "run", name), ignore_errors=True)

    async def close(self) -> None:
        """See `Sandbox`."""


def _secrets(command: Command, folder: str) -> list[Mount]:
    mounts = []
    for number, secret in enumerate(command.secrets):
        if secret.env:
            continue
        path = os.path.join(folder, str(number))
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o400)) as file:
            file.write(secret.value)
        mounts.append(Mount(HostDir(path), secret.target, readonly=True))
    return mounts


def _directory(root: Root) -> str:
    if not isinstance(root, HostDir):
        raise SandboxError("the fake sandbox works on directories only")
    return root.path
