"""Steps as users of a machine without mount namespaces: they see their files by the redirect.

Home and prefix are mount points at which every user has a directory of their own (`obuilder.redirect`).
A step's are linked there for as long as it runs, and belong to its user meanwhile. Nothing else of
the machine is kept from a step but what its user may not do; the network least of all.
"""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import ClassVar, Protocol, final

import anyio
import anyio.to_thread

from obuilder.backends.protocols import Command, Exit, Features, HostDir, Mount, Root
from obuilder.backends.sandboxes.accounts import (
    Account,
    Accounts,
    Pool,
    end_processes,
    remove_files,
)  # fmt: skip
from obuilder.backends.sandboxes.local import directory_of
from obuilder.errors import BackendUnavailable, SandboxError, Unsupported, of_disk
from obuilder.oci.platforms import host_platform
from obuilder.system import process
from obuilder.system.sessions import alive
from obuilder.system.tree import Manifest
from obuilder.values import ROOT, IdMap, User

_PATIENCE = 20.0


class System(Protocol):
    """How one system runs a program as a user, and where it has homes and the prefix."""

    home: str
    prefix: str
    shared: tuple[str, ...]
    """Directories in which every user of the machine may leave files."""
    accounts: Accounts

    def command(
        self, account: Account, env: dict[str, str], cwd: str, argv: tuple[str, ...]
    ) -> list[str]:
        """The command line that runs `argv` as the user, with exactly that environment."""

    def temporary(self, account: Account) -> str | None:
        """The user's own directory for temporary files, where the system has such."""

    def unlocked(self, path: str) -> list[str] | None:
        """The command that takes away what would keep root from removing files, if there is such."""


@final
class RedirectedUsers:
    """See `Sandbox`. Made by `open`."""

    accepts: ClassVar[frozenset[type]] = frozenset({HostDir})

    def __init__(self, system: System, directory: str, idmap: IdMap, session: str) -> None:
        self._system, self._directory, self._idmap = system, directory, idmap
        self._session = session
        self._runs = os.path.join(directory, "run")
        place = os.stat(directory)
        # Who has a copy of this store has another directory.
        mark = f"obuilder-{place.st_dev:x}-{place.st_ino:x}-"
        self._pool = Pool(system.accounts, mark, session, shared=system.shared)
        self._redirects: dict[str, process.Started] = {}
        self._starting = anyio.Lock()
        self.features = Features(
            users=False,
            networks=frozenset({"host"}),
            secrets=False,
            limits=frozenset({"seconds"}),
            platforms=(host_platform(),),
            isolation=False,
            readonly_mounts=False,
            policies=frozenset(),
            places=(system.home, system.prefix),
            domain="users",
        )

    @classmethod
    async def open(
        cls, system: System, directory: str, idmap: IdMap, *, session: str
    ) -> "RedirectedUsers":
        """BackendUnavailable without root: users and mounts are its alone to make."""
        if os.geteuid() != 0:
            raise BackendUnavailable(
                "only the machine's root can make users for steps", hint="run as root"
            )
        return cls(system, directory, idmap, session)

    async def check(self) -> None:
        """See `Sandbox`. Both redirects are mounted for it."""
        await self._mount()

    async def describe(self) -> str:
        """What a step is here."""
        own = f"its own {self._system.home} and {self._system.prefix}"
        return (
            f"users: each step as a user of this machine, with {own}; the network is the machine's"
        )

    async def run(self, root: Root, command: Command, *, output: Callable[[bytes], None]) -> Exit:
        """See `Sandbox`."""
        return await self._run(root, command, output)

    async def enter(self, root: Root, command: Command) -> Exit:
        """See `Sandbox`."""
        return await self._run(root, command, None)

    async def put(self, root: Root, tree: Manifest, source: Root, *, to: str, owner: User) -> None:
        """See `Sandbox`. There is one owner, whatever the spec says."""
        from obuilder.system.copying import copy_in

        inside, outside = directory_of(root), directory_of(source)
        await anyio.to_thread.run_sync(
            lambda: copy_in(
                inside, tree, outside, to=to, owner=(ROOT.uid, ROOT.gid), idmap=self._idmap
            )
        )

    async def recover(self) -> None:
        """See `Sandbox`. Redirects end with their session by themselves."""
        await self._pool.recover(lambda session: not alive(self._directory, session))

    async def close(self) -> None:
        """See `Sandbox`."""
        while self._redirects:
            _, started = self._redirects.popitem()
            with suppress(BrokenPipeError):
                started.release()
            with anyio.CancelScope(shield=True):
                await started.finish(lambda _: None, timeout=_PATIENCE)
        await self._pool.close()

    # --- redirects -------------------------------------------------------------------------------

    def _links(self, mountpoint: str) -> str:
        name = "home" if mountpoint == self._system.home else "prefix"
        return os.path.join(self._runs, f"{self._session}.{name}")

    async def _mount(self) -> None:
        async with self._starting:
            for mountpoint in (self._system.home, self._system.prefix):
                if mountpoint not in self._redirects:
                    self._redirects[mountpoint] = await self._redirect(mountpoint)

    async def _redirect(self, mountpoint: str) -> process.Started:
        links = self._links(mountpoint)
        os.makedirs(links, mode=0o711, exist_ok=True)  # who asks has to find a link
        before = os.stat(mountpoint)
        words = [sys.executable, "-m", "obuilder.redirect", links, mountpoint]
        started = process.start(words, held=True)
        with anyio.move_on_after(_PATIENCE):
            while _same(os.stat(mountpoint), before) and started.running:
                await anyio.sleep(0.01)
        if _same(os.stat(mountpoint), before):
            said: list[bytes] = []
            started.release()
            await started.finish(said.append, timeout=_PATIENCE)
            text = b"".join(said).decode(errors="replace").strip()
            raise BackendUnavailable(
                f"steps' files can't be shown at {mountpoint}: {text}",
                hint="pip install obuilder[fuse], and the system's FUSE (on macOS: macFUSE)",
            )
        return started

    # --- steps -----------------------------------------------------------------------------------

    async def _run(
        self, root: Root, command: Command, output: Callable[[bytes], None] | None
    ) -> Exit:
        await self._mount()
        try:
            async with (
                self._pool.one() as account,
                self._shown(directory_of(root), account, command.mounts),
            ):
                return await self._step(account, command, output)
        except OSError as error:
            raise of_disk("the step could not be started", error, SandboxError) from error

    async def _step(
        self, account: Account, command: Command, output: Callable[[bytes], None] | None
    ) -> Exit:
        env = {"HOME": self._system.home, **dict(command.env)}
        left = list(self._system.shared)
        if temporary := self._system.temporary(account):
            env.setdefault("TMPDIR", temporary)
            left.append(temporary)
        words = self._system.command(account, env, command.cwd, command.argv)
        started = process.start(words, terminal=output is None)
        try:
            ended = await started.finish(
                output, timeout=command.limits.seconds, kill=lambda: end_processes(account.uid)
            )
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(end_processes, account.uid)
                await anyio.to_thread.run_sync(remove_files, account.uid, left)
        return Exit(status=ended.status, timed_out=ended.timed_out)

    @asynccontextmanager
    async def _shown(
        self, root: str, account: Account, mounts: tuple[Mount, ...]
    ) -> AsyncIterator[None]:
        """A root's parts at their places for one user, and the user's for so long."""
        places = (self._system.home, self._system.prefix)
        links = [os.path.join(self._links(place), str(account.uid)) for place in places]
        kept = (self._idmap.to_disk(0),) * 2
        volumes = {directory_of(mount.source): root + mount.target for mount in mounts}
        if any(mount.readonly for mount in mounts):
            raise Unsupported("this sandbox can't keep a step from writing to a cache it sees")
        for place in places:
            os.makedirs(root + place, exist_ok=True)
        shown = [root + place for place in places] + list(volumes)
        try:
            for path in shown:
                await anyio.to_thread.run_sync(give, path, (account.uid, account.gid))
            for source, target in volumes.items():
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.symlink(source, target)
            for link, place in zip(links, places, strict=True):
                os.symlink(root + place, link)
            yield
        finally:
            for path in [*links, *volumes.values()]:
                with suppress(FileNotFoundError):
                    os.unlink(path)
            with anyio.CancelScope(shield=True):
                for path in shown:
                    if words := self._system.unlocked(path):
                        await process.run(words, output=lambda _: None)
                    await anyio.to_thread.run_sync(give, path, kept)


def give(path: str, owner: tuple[int, int]) -> None:
    """Make everything below a directory, and itself, an owner's. No symlink is followed."""
    for _, _, names, folder in os.fwalk(path):
        for name in (*names, "."):
            os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)
    for _, folders, _, folder in os.fwalk(path):
        for name in folders:  # a symlink to a directory is listed among these
            os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
