"""Where the sandbox suite tries a sandbox: opened on a store's directory, with a root beside it."""

import os
from collections.abc import Callable

import msgspec

from obuilder.backends.fetchers import fetcher_for
from obuilder.backends.protocols import (
    Command,
    Exit,
    HostDir,
    Mount,
    Sandbox,
    SandboxClass,
    SecretFile,
)
from obuilder.backends.registry import load
from obuilder.oci.reference import host_platform
from obuilder.system.namespaces import enter
from obuilder.system.sessions import Session, open_session
from obuilder.values import ROOT, IdMap, Limits, Policy, User


class Subject(msgspec.Struct, frozen=True):
    """The sandbox that is tried, MODULE:CLASS as in the registry, and the image it gets as root.

    `namespaces`: the sandbox works in this process's own namespaces, with the id map that they
    give. Else the map has one id, that of whoever runs the checks.
    """

    sandbox: str
    policy: Policy = Policy()
    base: str = "micro"
    namespaces: bool = True


class Bench:
    """An open sandbox, a root to run things in, and a directory of the host for all else."""

    def __init__(self, subject: Subject, place: str, idmap: IdMap) -> None:
        self.subject, self.place, self.idmap = subject, place, idmap
        self.root = HostDir(self.path("root"))
        self.said = b""
        self.sandbox: Sandbox
        self._sessions: list[Session] = []
        self._sandboxes: list[Sandbox] = []

    @classmethod
    async def open(cls, subject: Subject, place: str) -> "Bench":
        """Make a root and open the sandbox, in an empty or new directory."""
        idmap = enter() if subject.namespaces else IdMap(first=os.geteuid(), count=1)
        bench = cls(subject, place, idmap)
        os.makedirs(bench.root.path)
        os.chown(bench.root.path, idmap.to_disk(0), -1)
        fetcher = fetcher_for(subject.base)
        base = await fetcher.resolve(subject.base, host_platform())
        await fetcher.fetch(base, 0, into=bench.root, idmap=idmap, output=lambda _: None)
        os.makedirs(bench.path("root/tmp"), exist_ok=True)
        bench.sandbox = await bench.another()
        return bench

    async def close(self) -> None:
        """Close every sandbox and end the sessions."""
        for sandbox in reversed(self._sandboxes):
            await sandbox.close()
        for session in self._sessions:
            session.close()

    async def another(self, store: str = "store", policy: Policy | None = None) -> Sandbox:
        """The sandbox opened once more, as by another process; or that of another store."""
        directory = self.path(store)
        os.makedirs(directory, exist_ok=True)
        self._sessions.append(open_session(directory))
        kind: SandboxClass = load(self.subject.sandbox)
        sandbox = await kind.open(
            directory,
            self.idmap,
            session=self._sessions[-1].name,
            policy=policy or self.subject.policy,
        )
        self._sandboxes.append(sandbox)
        return sandbox

    def path(self, name: str) -> str:
        """A path in the directory of the host; those of the root are below `root`."""
        return os.path.join(self.place, name)

    def folder(self, name: str) -> str:
        """A new directory of the host that belongs to the root of steps."""
        path = self.path(name)
        os.makedirs(path)
        os.chown(path, self.idmap.to_disk(0), -1)
        return path

    def names(self, top: str = "root") -> list[str]:
        """Everything below a directory of the host."""
        return sorted(
            os.path.join(folder, name)
            for folder, folders, files in os.walk(self.path(top))
            for name in (*folders, *files)
        )

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
                    secrets=secrets, limits=limits,
                ),
                output=heard,
            )  # fmt: skip
        finally:
            self.said = b"".join(pieces)


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
