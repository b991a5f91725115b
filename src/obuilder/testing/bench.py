"""Where the sandbox suite tries a sandbox: opened on a store's directory, with a root beside it."""

import os
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import msgspec

from obuilder.backends.fetchers import fetcher_for
from obuilder.backends.protocols import (
    Command,
    Draft,
    Exit,
    HostDir,
    Mount,
    Root,
    Sandbox,
    SandboxClass,
    SecretFile,
    Store,
    StoreClass,
)
from obuilder.backends.registry import load
from obuilder.oci.platforms import host_platform
from obuilder.spec.model import Tmpfs
from obuilder.system.namespaces import enter
from obuilder.system.sessions import dead_sessions, open_session
from obuilder.values import ROOT, IdMap, Key, Limits, Policy, User


class Subject(msgspec.Struct, frozen=True):
    """The sandbox that is tried, MODULE:CLASS as in the registry, and the image it gets as root.

    `namespaces`: the sandbox works in this process's own namespaces, with the id map that they
    give. Else the map has one id, that of whoever runs the checks. `store` makes the roots, also
    those to mount. `left`, MODULE:FUNCTION, lists what there is of a session outside of the
    store's directory. `home`: where in the root the checks put things, for a sandbox whose steps
    don't have all of it. `visible`: steps are processes that the machine sees.
    """

    sandbox: str
    policy: Policy = Policy()
    base: str = "micro"
    namespaces: bool = True
    store: str = "obuilder.testing.fakes:FakeStore"
    left: str = ""
    home: str = ""
    visible: bool = True


class Bench:
    """An open sandbox, a root to run things in, and a directory of the host for all else."""

    root: Root
    sandbox: Sandbox

    def __init__(self, subject: Subject, place: str, idmap: IdMap) -> None:
        self.subject, self.place, self.idmap = subject, place, idmap
        self.said = b""
        self._store: Store
        self._stack = AsyncExitStack()

    @classmethod
    async def open(cls, subject: Subject, place: str) -> "Bench":
        """Make a root and open the sandbox, in an empty or new directory."""
        idmap = enter() if subject.namespaces else IdMap(first=os.geteuid(), count=1)
        bench = cls(subject, place, idmap)
        try:
            bench._store = await bench._opened_store("roots")
            bench.root = await bench._new(bench._store.begin(_new_key(), base=None))
            fetcher = fetcher_for(subject.base)
            base = await fetcher.resolve(subject.base, host_platform())
            async with bench.files(write=True) as inside:
                top = HostDir(inside("/"))
                await fetcher.fetch(base, 0, into=top, idmap=idmap, output=lambda _: None)
                place = inside("/").rstrip("/")
                for name in bench.at("/tmp").split("/")[1:]:
                    place = f"{place}/{name}"
                    if not os.path.isdir(place):
                        os.mkdir(place)
                        bench.own(place)
            bench.sandbox = await bench.another()
        except BaseException:
            await bench.close()
            raise
        return bench

    async def close(self) -> None:
        """Close every sandbox and end the sessions."""
        await self._stack.aclose()

    async def another(self, store: str = "store", policy: Policy | None = None) -> Sandbox:
        """The sandbox opened once more, as by another process; or that of another store."""
        kind: SandboxClass = load(self.subject.sandbox)
        sandbox = await kind.open(
            self.path(store),
            self.idmap,
            session=self._session(store),
            policy=policy or self.subject.policy,
        )
        self._stack.push_async_callback(sandbox.close)
        return sandbox

    async def recover(self, place: str) -> None:
        """Put right what a dead bench left in that directory, as the next builder would."""
        await (await self.another(f"{place}/store")).recover()
        await (await self._opened_store(f"{place}/roots")).recover()

    async def _opened_store(self, name: str) -> Store:
        kind: StoreClass = load(self.subject.store)
        store = await kind.open(self.path(name), self.idmap, session=self._session(name))
        self._stack.push_async_callback(store.close)
        return store

    def _session(self, name: str) -> str:
        os.makedirs(self.path(name), exist_ok=True)
        session = open_session(self.path(name))
        self._stack.callback(session.close)
        return session.name

    async def _new(self, begun: AbstractAsyncContextManager[Draft]) -> Root:
        return (await self._stack.enter_async_context(begun)).root

    def path(self, name: str) -> str:
        """A path in the directory of the host."""
        return os.path.join(self.place, name)

    def folder(self, name: str) -> str:
        """A new directory of the host that belongs to the root of steps."""
        path = self.path(name)
        os.makedirs(path)
        self.own(path)
        return path

    def own(self, path: str) -> None:
        """Give a path of the host to the root of steps."""
        os.chown(path, self.idmap.to_disk(0), -1 if self.idmap.single else self.idmap.to_disk(0))

    def at(self, path: str) -> str:
        """A path as steps see it, in the directory of the root that is the checks' own."""
        return self.subject.home + path

    async def volume(self) -> Root:
        """Something new and empty that steps can mount, and that is their root's."""
        return await self._new(self._store.volume(_new_key(), base=None, owner=ROOT))

    @asynccontextmanager
    async def files(
        self, root: Root | None = None, *, write: bool = False
    ) -> AsyncIterator[Callable[[str], str]]:
        """Where the host sees a path of the root, or of another one; see `Store.files`."""
        async with self._store.files(root or self.root, write=write) as top:
            yield lambda path: f"{top}{path}"

    async def names(self) -> list[str]:
        """Everything in the root."""
        async with self.files() as inside:
            return [name.removeprefix(inside("/")) for name in below(inside("/"))]

    def left(self, place: str) -> list[str]:
        """What there is of dead sessions of the bench in that directory."""
        found = list[str]()
        for top in (self.path(f"{place}/store"), self.path(f"{place}/roots")):
            paths = below(top)
            for session in dead_sessions(top):
                found += load(self.subject.left)(session) if self.subject.left else []
                found += [path for path in paths if f"/{session}." in path]
        return found

    async def run(
        self,
        script: str,
        *,
        argv: tuple[str, ...] = (),
        user: User = ROOT,
        network: tuple[str, ...] = (),
        mounts: tuple[Mount, ...] = (),
        secrets: tuple[SecretFile, ...] = (),
        limits: Limits = Limits(),  # noqa: B008 - frozen
        cwd: str = "/",
        env: tuple[tuple[str, str], ...] = (),
        tmpfs: tuple[Tmpfs, ...] = (),
        insecure: bool = False,
        output: Callable[[bytes], None] = lambda _: None,
    ) -> Exit:
        """Run a shell's script, or `argv`; what it said is in `said`."""
        pieces: list[bytes] = []

        def heard(data: bytes) -> None:
            pieces.append(data)
            output(data)

        try:
            return await self.sandbox.run(
                self.root,
                Command(
                    argv=argv or ("/bin/sh", "-c", script), cwd=cwd, user=user,
                    env=(("PATH", "/bin"), ("HOME", "/"), *env), network=network, mounts=mounts,
                    secrets=secrets, limits=limits, tmpfs=tmpfs, insecure=insecure,
                ),
                output=heard,
            )  # fmt: skip
        finally:
            self.said = b"".join(pieces)


def _new_key() -> Key:
    return Key(os.urandom(32).hex())


def below(top: str) -> list[str]:
    """Every path below a directory of the host."""
    return sorted(
        os.path.join(folder, name)
        for folder, folders, files in os.walk(top)
        for name in (*folders, *files)
    )


def users_of(session: str) -> list[str]:
    """The machine's users that belong to a session."""
    from obuilder.backends.sandboxes.accounts import listed

    return [account.name for account in listed() if account.note.endswith(session)]


def marked(place: str) -> str:
    """Seconds to sleep that only steps of the bench in `place` do: very many, and known by that."""
    return str(10**9 + zlib.crc32(place.encode()) % 10**9)


def running(word: str) -> bool:
    """Whether the machine has a process with that argument."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as stream:
                arguments = stream.read().split(b"\0")
        except OSError:
            continue
        if word.encode() in arguments:
            return True
    return False
