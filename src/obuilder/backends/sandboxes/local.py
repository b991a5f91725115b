"""What sandboxes have in common whose steps are processes of this machine's own kernel.

Each step has a cell: a bundle and a control group (`cells`). Into the bundle goes what its starter
reads, and the starter leaves the file `pid` there once the step runs.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import ClassVar

import anyio
import anyio.to_thread

from obuilder.backends.protocols import Command, Exit, Features, HostDir, Root, SecretFile
from obuilder.backends.sandboxes.cells import Cell, Cells
from obuilder.backends.sandboxes.homes import account
from obuilder.errors import SandboxError, not_text, of_disk
from obuilder.system import linux, process
from obuilder.system.cgroups import Hierarchies
from obuilder.system.files import remove_tree
from obuilder.system.sessions import alive
from obuilder.system.tree import Manifest
from obuilder.values import IdMap, UnixUser, User

_MARK = "obuilder-"


class LocalSandbox(ABC):
    """The part of a sandbox that does not depend on what starts a step."""

    accepts: ClassVar[frozenset[type]] = frozenset({HostDir})
    waits: ClassVar[bool] = False
    """Whether the starter itself waits, for a line on its input, until its bundle is filled."""
    features: Features

    def __init__(self, directory: str, idmap: IdMap, session: str, groups: Hierarchies) -> None:
        self._directory, self._idmap, self._session = directory, idmap, session
        self._groups = groups
        self._runs = os.path.join(directory, "run")
        os.makedirs(self._runs, mode=0o711, exist_ok=True)
        self._mark = f"{_MARK}{_identity(directory, self._temporary('id'))}-"
        self._cells = Cells(
            self._runs, session, groups, self._mark, self._command_line, waits=self.waits
        )

    @abstractmethod
    def _command_line(self, bundle: str) -> list[str]:
        """What starts a step whose bundle is filled."""

    @abstractmethod
    def _fill(
        self, stack: ExitStack, bundle: str, root: str, command: Command, *, terminal: bool
    ) -> None:
        """Put into the bundle what the starter reads; `stack` undoes the rest after the step.

        UnicodeEncodeError for text that is not UTF-8.
        """

    @abstractmethod
    def _unstarted(self, bundle: str, said: bytes) -> SandboxError:
        """The error for a step that never ran, whose starter said `said`."""

    def _temporary(self, what: str) -> str:
        """Where a file is written before it gets its name; recovery knows whose it is."""
        return os.path.join(self._runs, f"{self._session}.{what}")

    # --- the parts of `Sandbox` that are the same for all -----------------------------------------

    async def run(self, root: Root, command: Command, *, output: Callable[[bytes], None]) -> Exit:
        """Run to the end. SandboxError if the command could not be started."""
        return await self._run(root, command, output)

    async def enter(self, root: Root, command: Command) -> Exit:
        """Run with this process's own terminal, or what its streams are connected to."""
        return await self._run(root, command, None)

    async def put(self, root: Root, tree: Manifest, source: Root, *, to: str, owner: User) -> None:
        """Copy in, in a thread. CopyError."""
        from obuilder.system.copying import copy_in

        inside, outside = directory_of(root), directory_of(source)
        user = account(inside, owner).user
        await anyio.to_thread.run_sync(
            lambda: copy_in(
                inside, tree, outside, to=to, owner=(user.uid, user.gid), idmap=self._idmap
            )
        )

    async def recover(self) -> None:
        """End and remove what dead sessions left."""

        def dead(name: str) -> bool:
            return not alive(self._directory, name.rpartition(".")[0])

        mark = self._mark
        self._groups.sweep(lambda name: name.startswith(mark) and dead(name.removeprefix(mark)))
        for name in os.listdir(self._runs):
            if dead(name):
                await anyio.to_thread.run_sync(remove_tree, os.path.join(self._runs, name))

    async def close(self) -> None:
        """See `Sandbox`."""
        self._cells.close()
        self._groups.close()

    async def _run(
        self, root: Root, command: Command, output: Callable[[bytes], None] | None
    ) -> Exit:
        try:
            with self._cells.cell(terminal=output is None) as cell, ExitStack() as stack:
                return await self._step(stack, cell, directory_of(root), command, output)
        except OSError as error:
            raise of_disk("the step could not be started", error, SandboxError) from error

    async def _step(
        self,
        stack: ExitStack,
        cell: Cell,
        root: str,
        command: Command,
        output: Callable[[bytes], None] | None,
    ) -> Exit:
        terminal = output is None and process.interactive()
        try:
            self._fill(stack, cell.bundle, root, command, terminal=terminal)
        except UnicodeEncodeError as error:
            raise not_text(str(error.object)) from error
        first: list[bytes] = []

        def heard(data: bytes) -> None:
            if not first:
                first.append(data[:1000])
            if output is not None:
                output(data)

        started = cell.start(command.limits, terminal=output is None)
        if output is not None:
            self._cells.prepare()
        ended = await cell.finish(started, command.limits, None if output is None else heard)
        if not ended.timed_out and not os.access(os.path.join(cell.bundle, "pid"), os.F_OK):
            raise self._unstarted(cell.bundle, b"".join(first))
        return ended


def directory_of(root: Root) -> str:
    """The directory of a root that is one. SandboxError."""
    if not isinstance(root, HostDir):
        raise SandboxError("this sandbox works on directories only")
    return root.path


def secret_files(
    stack: ExitStack,
    bundle: str,
    secrets: tuple[SecretFile, ...],
    owned: Callable[[UnixUser | None], tuple[int, int]],
) -> list[tuple[str, str]]:
    """Files on memory with the secrets' values, gone with `stack`, each with its target. OSError.

    `owned` gives the ids that a file's owner has on disk; None is the step's user. The directory
    is the bundle's `secrets`, there if any secret is, if only as a variable.
    """
    if not secrets:
        return []
    folder = os.path.join(bundle, "secrets")
    os.mkdir(folder, 0o711)
    # Not noexec: a flag more than the bind inside has would be locked there.
    linux.mount("tmpfs", folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=711")
    stack.callback(linux.unmount, folder, linux.MNT_DETACH)
    shown = []
    for number, secret in enumerate(secrets):
        if not secret.env:
            path = os.path.join(folder, str(number))
            write_new(path, secret.value, secret.permissions)
            os.chown(path, *owned(secret.owner))
            shown.append((path, secret.target))
    return shown


def secret_variables(secrets: tuple[SecretFile, ...]) -> list[tuple[str, str]]:
    """The variables that show secrets to a step."""
    return [(secret.env, os.fsdecode(secret.value)) for secret in secrets if secret.env]


def write_for_starter(bundle: str, name: str, data: bytes, secrets: tuple[SecretFile, ...]) -> None:
    """Write what the starter reads; where it holds a secret's variable, on memory too. OSError."""
    place = os.path.join(bundle, name)
    if any(secret.env for secret in secrets):
        os.symlink(os.path.join("secrets", name), place)
        place = os.path.join(bundle, "secrets", name)
    write_new(place, data, 0o600)


def write_new(path: str, data: bytes, mode: int) -> None:
    """Write a file that was not there. OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        with open(fd, "wb", closefd=False) as stream:
            stream.write(data)
    finally:
        os.close(fd)


def _identity(directory: str, temporary: str) -> str:
    """What tells this store's groups, which stand beside those of all others, from theirs.

    A random name that stays with the store, and where the store is: a copy has the same name.
    The name is written at `temporary` first.
    """
    path = os.path.join(directory, "sandbox-id")
    if not os.path.exists(path):
        write_new(temporary, os.urandom(8).hex().encode(), 0o600)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was the first
        finally:
            os.unlink(temporary)
    with open(path, encoding="ascii") as stream:
        name = stream.read()
    place = os.stat(directory)
    return f"{name}-{place.st_dev:x}-{place.st_ino:x}"
