"""What a step sees for a while that is not its own: results, texts of the spec, agents of keys."""

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, SocketStream

from obuilder.backends.protocols import HostDir, Mount, Root, Store
from obuilder.errors import CopyError, UsageError
from obuilder.plan.model import BindMount
from obuilder.spec.model import Ssh
from obuilder.system.linux import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from obuilder.values import Key, UnixUser, User

_BLOCK = 1 << 16


@asynccontextmanager
async def bound(store: Store, bind: BindMount, result: Key) -> AsyncIterator[Mount]:
    """A part of a result; where it is writable, of a copy that is dropped after."""
    if bind.writable:
        async with store.begin(Key(os.urandom(32).hex()), base=result) as draft:
            yield Mount(HostDir(_inside(draft.root, bind)), bind.target)
    else:
        async with store.view(result) as root:
            yield Mount(HostDir(_inside(root, bind)), bind.target, readonly=True)


def _inside(root: Root, bind: BindMount) -> str:
    """Where the bind's source is on the host, symlinks followed inside the root."""
    if not isinstance(root, HostDir):
        raise UsageError("this store's results can't be shown to a step")
    top = os.open(root.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        fd = openat2(bind.source, os.O_PATH, at=top, resolve=resolve)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    except OSError as error:
        raise CopyError(f"can't show {bind.source!r} at {bind.target}: {error.strerror}") from error
    finally:
        os.close(top)


def _place(directory: str, session: str) -> str:
    """A directory of this session's, which recovery removes if nobody else does."""
    runs = os.path.join(directory, "run")
    os.makedirs(runs, mode=0o711, exist_ok=True)
    place = os.path.join(runs, f"{session}.{os.urandom(8).hex()}")
    os.mkdir(place, 0o711)
    return place


@contextmanager
def written_out(directory: str, session: str, files: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """A directory with the texts, for as long as the context lasts."""
    place = _place(directory, session)
    try:
        for name, content in files:
            path = os.path.join(place, name)
            with open(path, "wb") as file:
                file.write(os.fsencode(content))
            os.chmod(path, 0o644)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@asynccontextmanager
async def agent(
    socket: str, store: Store, number: int, ssh: Ssh, user: User
) -> AsyncIterator[Mount]:
    """A socket for a step, whose every connection goes on to the agent behind `socket`."""
    place = _place(store.directory, f"{store.session}")
    short = f"/proc/self/fd/{(folder := os.open(place, os.O_PATH | os.O_DIRECTORY))}"
    path = os.path.join(place, str(number))
    try:
        # A socket's path has a length limit, which the store's directory may not know of.
        async with await anyio.create_unix_listener(os.path.join(short, str(number))) as listener:
            owner = ssh.owner or (user if isinstance(user, UnixUser) else UnixUser(0, 0))
            os.chown(path, store.idmap.to_disk(owner.uid), store.idmap.to_disk(owner.gid))
            os.chmod(path, 0o600 if ssh.permissions is None else ssh.permissions)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, lambda client: _forward(client, socket))
                yield Mount(HostDir(path), ssh.target)
                tasks.cancel_scope.cancel()
    finally:
        os.close(folder)
        shutil.rmtree(place, ignore_errors=True)


async def _forward(client: SocketStream, socket: str) -> None:
    async with client:
        with suppress(OSError):  # the agent is gone: the step sees its connection end
            async with (
                await anyio.connect_unix(socket) as server,
                anyio.create_task_group() as both,
            ):
                both.start_soon(_pass, client, server)
                await _pass(server, client)
                both.cancel_scope.cancel()


async def _pass(source: ByteReceiveStream, target: ByteSendStream) -> None:
    with suppress(anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
        while True:
            await target.send(await source.receive(_BLOCK))
