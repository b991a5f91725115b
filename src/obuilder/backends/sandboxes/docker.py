"""Steps run by a Docker engine: a container for each, whose changes become the root's image."""

import hashlib
import itertools
import os
import resource
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import BinaryIO, ClassVar, NamedTuple

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec

from obuilder.backends.docker import guard, images, mountpoints, podman
from obuilder.backends.docker.accounts import looked_up
from obuilder.backends.docker.api import DockerEngine, Refused
from obuilder.backends.docker.archives import parked
from obuilder.backends.docker.containers import (
    ENGINES_INIT,
    Bind,
    Guest,
    body,
    features,
    network,
)
from obuilder.backends.docker.copying import copy_in
from obuilder.backends.docker.engine import Engine, beside, dropping, told
from obuilder.backends.docker.files import Copy, Files, sweep_files
from obuilder.backends.docker.memory import Memory
from obuilder.backends.docker.model import Change, Image, Info
from obuilder.backends.docker.names import SESSION, Names
from obuilder.backends.docker.streams import pieces
from obuilder.backends.docker.sweep import sweep_containers
from obuilder.backends.fetchers.micro import static_busybox
from obuilder.backends.protocols import Command, EngineImage, Exit, HostDir, Root
from obuilder.backends.sandboxes.programs import ca_bundle, static_init
from obuilder.errors import BackendUnavailable, SandboxError, Unsupported
from obuilder.oci.config import Settings
from obuilder.oci.platforms import host_platform, platform_of
from obuilder.oci.seccomp import filter_for
from obuilder.system import copying, linux, process
from obuilder.system.sessions import alive
from obuilder.system.tree import Manifest
from obuilder.values import IdMap, Limits, Policy, UnixUser, User, shown

_KILLED = 137
_OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
"""As many as this process may have: more can't be given without power."""


class _Made(NamedTuple):
    """A container, the image that it is of, and what the engine itself changes in it untold."""

    container: str
    image: Image
    own: list[Change]


class DockerSandbox:
    """Runs commands in an engine's containers. Made by `open`."""

    accepts: ClassVar[frozenset[type]] = frozenset({EngineImage})

    def __init__(
        self, directory: str, idmap: IdMap, *, session: str, policy: Policy, engine: Engine,
        info: Info, guest: Guest, networks: list[str],
    ) -> None:  # fmt: skip
        self._directory, self._session, self._policy = directory, session, policy
        self._engine, self._info = engine, info
        self._folder = os.path.join(directory, "files")
        self._names = Names.of_store(directory, session)
        self._memory = Memory(self._names, info)
        self._guest, self._idmap = guest, idmap
        self._numbers = itertools.count()
        self._guard: process.Started | None = None
        self.features = features(info, networks, guest, secrets=Memory.works())

    @classmethod
    async def open(
        cls,
        directory: str,
        idmap: IdMap,
        *,
        session: str,
        policy: Policy = Policy(),  # noqa: B008 - frozen
    ) -> "DockerSandbox":
        """Find the engine. BackendUnavailable, also if it lacks the runtime that is asked for."""
        with told(BackendUnavailable, "steps can't be run by a Docker engine"):
            engine = Engine(DockerEngine.found())
            info, networks = await engine.info(), await engine.networks()
        folder = os.path.join(directory, "files")
        os.makedirs(folder, exist_ok=True)
        guest = _guest(info, policy)
        if info.podman and guest.seccomp:
            place = _in_file(guest.seccomp, directory, os.path.join(folder, f"{session}.seccomp"))
            guest = msgspec.structs.replace(guest, seccomp=place)
        if info.podman and guest.busybox is None:
            raise BackendUnavailable(
                "steps in podman need a static busybox, to clear what it puts into their environment",
                hint="install the package busybox-static",
            )
        known = info.runtimes or {}
        if policy.runtime is not None and policy.runtime not in known:
            raise BackendUnavailable(
                f"the Docker engine has no runtime called {policy.runtime!r}",
                hint=f"it has: {', '.join(sorted(known))}",
            )
        return cls(
            directory, idmap, session=session, policy=policy, engine=engine, info=info,
            guest=guest, networks=networks,
        )  # fmt: skip

    async def check(self) -> None:
        """BackendUnavailable if the engine does not answer."""
        with told(BackendUnavailable, "steps can't be run by a Docker engine"):
            await self._engine.check()

    async def describe(self) -> str:
        """The engine, its runtime and the limits that bite."""
        info = self._info
        runtime = self._policy.runtime or info.default_runtime
        if self._guest.os == "windows":
            runtime = f"isolation {self._policy.isolation}"
        limits = ", ".join(sorted(self.features.limits))
        kind = "podman" if info.podman else "a Docker engine"
        return (
            f"{kind} ({info.server_version}, {info.driver}) at {self._engine.api.path}, "
            f"{runtime}; limits: {limits}"
        )

    async def recover(self) -> None:
        """See `Sandbox`."""
        with told(SandboxError, "what dead sessions left can't be removed"):
            await sweep_containers(self._engine, self._names, self._lives)
        await anyio.to_thread.run_sync(self._memory.sweep, self._lives)
        for folder in (self._folder, os.path.join(self._directory, "run")):
            await anyio.to_thread.run_sync(sweep_files, folder, self._lives)

    def _lives(self, session: str) -> bool:
        return alive(self._directory, session)

    async def close(self) -> None:
        """See `Sandbox`."""
        if self._guard is not None:
            self._guard.discard()
            self._guard = None

    # --- running ---------------------------------------------------------------------------------

    async def run(self, root: Root, command: Command, *, output: Callable[[bytes], None]) -> Exit:
        """See `Sandbox`."""
        name = self._name()
        async with self._container(root, command, name) as made:
            timed_out = await self._follow(made.container, command.limits, output)
            with _trouble("the step's end was not seen"):
                status = await self._engine.wait(made.container)
                ended = await self._engine.container(made.container)
            with _trouble("what the step changed could not be kept"):
                await self._commit(made.container, _image(root), made.image)
                layer = await self._without(made, _image(root), command, name, ended.upper)
        # Only now, that no container is of it, goes what had the root's name before.
        with _trouble("what the step changed could not be kept"):
            await self._settle(_image(root), made.image, layer)
        out_of_memory = ended.state.oom_killed
        if podman.misses_memory(self._info) and command.limits.memory is not None:
            # Then a kill that is not ours is taken for the limit's.
            out_of_memory = out_of_memory or (status == _KILLED and not timed_out)
        return Exit(status, timed_out=timed_out, out_of_memory=out_of_memory)

    async def enter(self, root: Root, command: Command) -> Exit:
        """See `Sandbox`. What is changed is dropped."""
        from obuilder.backends.sandboxes.docker_terminal import attend

        terminal = os.isatty(0)
        async with self._container(
            root, command, self._name(), terminal=terminal, interactive=True
        ) as made:
            with _trouble("the step was cut off"):
                await attend(self._engine, made.container, terminal=terminal)
                return Exit(await self._engine.wait(made.container))

    def _name(self) -> str:
        return f"{self._session}.step{next(self._numbers)}"

    @asynccontextmanager
    async def _container(
        self, root: Root, command: Command, name: str, *,
        terminal: bool = False, interactive: bool = False,
    ) -> AsyncIterator[_Made]:  # fmt: skip
        """A step's container, not started yet."""
        container = self._names.thing(name)
        with _trouble("the step could not be started"):
            image, cwd = await self._engine.image(_image(root)), command.cwd
            user, groups = await self._account(image, command.user, f"{name}.who")
        command = msgspec.structs.replace(command, user=user)
        with self._shown(name, command) as binds:
            try:
                with _trouble("the step could not be started"):
                    self._watch()
                    own = list[Change]()
                    if self._info.podman:
                        cwd, own = await self._vetted(image, cwd, f"{name}.before")
                    told_ = partial(
                        body, msgspec.structs.replace(command, cwd=cwd), image,
                        policy=self._policy, labels=self._names.labels, groups=groups, binds=binds,
                        terminal=terminal, interactive=interactive,
                    )  # fmt: skip
                    await self._create(container, told_)
                    for other in command.network[1:]:
                        await self._connect(container, network(other, self._guest))
                yield _Made(container, image, own)
            finally:
                async with dropping():
                    await self._engine.remove(container)

    async def _vetted(self, image: Image, cwd: str, step: str) -> tuple[str, list[Change]]:
        async with parked(self._engine, self._names, step, image.id) as before:
            return await podman.vetted(self._engine, before, cwd)

    async def _account(self, image: Image, user: User, step: str) -> tuple[User, tuple[int, ...]]:
        """A user by number, where the root has to say it, and the groups that are also theirs."""
        if self._guest.os == "windows" or isinstance(user, UnixUser):
            return user, ()
        async with parked(self._engine, self._names, step, image.id) as root:
            place = os.path.join(self._folder, step)
            return await looked_up(self._engine, root, user, self._idmap, place=place)

    @contextmanager
    def _shown(self, name: str, command: Command) -> Iterator[list[Bind]]:
        with ExitStack() as stack:
            with _trouble("the step's secrets could not be shown"):
                shown_ = self._memory.shown(name, command.secrets, command.user)
                binds = stack.enter_context(shown_)
            yield binds

    async def _create(self, container: str, made: "partial[dict[str, object]]") -> None:
        try:
            await self._engine.create(container, made(guest=self._guest))
        except Refused as error:
            if self._guest.init is None or "bind source path does not exist" not in error.message:
                raise
            # The engine has other files than this machine: then it has to bring what steps need.
            self._guest = msgspec.structs.replace(
                self._guest, init=None, ca_bundle=None, busybox=None
            )
            await self._engine.create(container, made(guest=self._guest))

    async def _connect(self, container: str, name: str) -> None:
        await self._engine.call("POST", f"/networks/{name}/connect", None, {"Container": container})

    def _watch(self) -> None:
        """Have somebody end the steps of this session when it does not end them itself."""
        if self._guard is None:
            argv = [sys.executable, "-I", "-S", guard.__file__]
            argv += [self._engine.api.path, f"{SESSION}={self._session}"]
            self._guard = process.start(argv, held=True)

    async def _follow(
        self, container: str, limits: Limits, output: Callable[[bytes], None]
    ) -> bool:
        """Start a container and follow it to its end. Whether that was its time limit."""
        api = self._engine.api
        query = {"stream": "1", "stdout": "1", "stderr": "1"}
        answer = api.ask(
            "POST", f"/containers/{container}/attach", query, timeout=None, upgrade=True
        )
        timed_out = False

        def work() -> None:
            with answer:
                api.call("POST", f"/containers/{container}/start")
                for _, piece in pieces(answer):
                    anyio.from_thread.run_sync(output, piece)

        async def stop() -> None:
            nonlocal timed_out
            assert limits.seconds is not None
            await anyio.sleep(limits.seconds)
            timed_out = True
            while True:  # it may not have been started yet
                await self._engine.kill(container)
                await anyio.sleep(0.1)

        with _trouble("the step could not be started"):
            async with beside(*([] if limits.seconds is None else [stop])):
                await self._engine.streamed(work, answer)
        return timed_out

    # --- what becomes of the root ------------------------------------------------------------------

    async def _commit(self, container: str, name: str, image: Image) -> None:
        """Give `name` to an image of what is in a container, made from `image`."""
        await self._engine.commit(container, name, image.config or Settings())

    async def _without(
        self, made: _Made, name: str, command: Command, step: str, upper: str
    ) -> Callable[[BinaryIO], None] | None:
        """What writes a layer without what was mounted in a step, whose files are in `upper`."""
        targets = [secret.target for secret in command.secrets]
        targets += [mount.target for mount in command.mounts]
        targets += [ENGINES_INIT] if self._guest.init is None else []
        if self._guest.os == "windows" or not (targets or made.own):
            return None
        changes = await self._engine.changes(made.container)
        async with parked(self._engine, self._names, f"{step}.after", name) as after:
            return await mountpoints.without(
                self._engine, after, targets, changes, made.own,
                upper=upper if self._info.podman else "", cwd=command.cwd,
            )  # fmt: skip

    async def _settle(
        self, name: str, image: Image, layer: Callable[[BinaryIO], None] | None = None
    ) -> None:
        """Put a layer on what was committed, which says of itself what `image` says.

        Not every engine does with a commit as it is asked to.
        """
        made = await self._engine.image(name)
        wanted, found = image.config or Settings(), made.config or Settings()
        if layer is not None or (found.entrypoint or None, found.cmd or None) != (
            wanted.entrypoint or None, wanted.cmd or None,
        ):  # fmt: skip
            made = msgspec.structs.replace(made, config=wanted)
            await images.stack(self._engine, name, made, layer, folder=self._directory)

    async def put(self, root: Root, tree: Manifest, source: Root, *, to: str, owner: User) -> None:
        """See `Sandbox`."""
        if not isinstance(source, HostDir):
            raise SandboxError("files are copied in from directories only")
        if self._guest.os == "windows":
            to, owner = to.partition(":")[2] or to, UnixUser(0, 0)
        name = _image(root)
        with _trouble(f"can't copy to {to}"):
            image = await self._engine.image(name)
            user, _ = await self._account(image, owner, self._name())
            assert isinstance(user, UnixUser)
            if self._info.podman:
                await self._put_by_files(name, tree, source.path, to, user)
                return
            async with parked(self._engine, self._names, self._name(), name) as container:
                await copy_in(
                    self._engine, container, image, tree, source.path, to=to,
                    owner=(user.uid, user.gid), folder=self._directory,
                )  # fmt: skip
                await self._commit(container, name, image)
            await self._settle(name, image)

    async def _put_by_files(
        self, name: str, tree: Manifest, source: str, to: str, user: UnixUser
    ) -> None:
        """The same for podman, whose archives lose owners: into a copy of all that is in the root."""
        files = Files(self._engine, self._names, None, self._idmap, self._folder, parts=False)
        copy = Copy(self._name(), EngineImage(name))
        try:
            path = await files.take_out(copy, write=True)
            await anyio.to_thread.run_sync(
                lambda: copying.copy_in(
                    path, tree, source, to=to, owner=(user.uid, user.gid), idmap=self._idmap
                )
            )
            await files.bring_back(copy)
        finally:
            with anyio.CancelScope(shield=True):
                await files.drop(copy)
                files.close()


@contextmanager
def _trouble(what: str) -> Iterator[None]:
    """An engine's errors, and the machine's, as the sandbox's."""
    try:
        with told(SandboxError, what):
            yield
    except OSError as error:
        raise SandboxError(f"{what}: {error}") from error
    except UnicodeEncodeError as error:
        raise Unsupported(
            f"a Docker engine takes UTF-8 only, which '{shown(str(error.object))[:60]}' is not",
            hint=r"let the command make such bytes itself, as with printf '\377'",
        ) from error


def _image(root: Root) -> str:
    if not isinstance(root, EngineImage):
        raise SandboxError("a Docker engine works on images only")
    return root.ref


def _guest(info: Info, policy: Policy) -> Guest:
    if info.os_type == "windows":
        return Guest("windows")
    profile = ""
    if platform_of(info.os_type, info.architecture) == host_platform():
        rules = filter_for(
            linux.machine(), nested_userns=policy.nested_userns, fast_sync=policy.fast_sync
        )
        profile = msgspec.json.encode(rules).decode()
    limits = [("core", 0, 0), ("nofile", min(1024, _OPEN_FILES), min(1 << 19, _OPEN_FILES))]
    if info.podman:  # which else would give more than it may
        limits.append(("nproc", *resource.getrlimit(resource.RLIMIT_NPROC)))
    return Guest(
        init=static_init(),
        ca_bundle=ca_bundle() if policy.ca_bundle else None,
        seccomp=profile,
        busybox=static_busybox() if info.podman else None,
        limits=tuple(limits),
    )


def _in_file(profile: str, directory: str, temporary: str) -> str:
    """Where a profile is, for podman, which wants no more than that."""
    digest = hashlib.sha256(profile.encode()).hexdigest()
    path = os.path.join(directory, f"seccomp-{digest}.json")
    if not os.path.exists(path):
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(profile)
        os.rename(temporary, path)
    return path
