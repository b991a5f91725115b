"""Steps run by an OCI runtime, crun or runc, always in a user namespace."""

import itertools
import os
import resource
from collections.abc import Callable
from contextlib import ExitStack
from typing import ClassVar

import anyio
import msgspec

from obuilder.backends.protocols import Command, Exit, Features, HostDir, Root
from obuilder.backends.sandboxes.mountpoints import MountPoints
from obuilder.errors import BackendUnavailable, SandboxError, Unsupported
from obuilder.oci.runtime_config import Bind, Box, Policy, runtime_config
from obuilder.system import linux, process
from obuilder.system.cgroups import Hierarchies, Leaf
from obuilder.system.tree import Manifest
from obuilder.values import IdMap, Platform, UnixUser, User

__all__ = ["OciSandbox", "Policy"]

_RUNTIMES = ("crun", "runc")
_INITS = ("tini-static", "docker-init", "tini")
_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_JOIN = 'n=$1; shift; for fd in $n; do echo 0 > "/proc/self/fd/$fd" || exit 125; done; exec "$@"'
_MARK = "obuilder-"


class OciSandbox:
    """Runs commands with an OCI runtime. Made by `open`."""

    accepts: ClassVar[frozenset[type]] = frozenset({HostDir})

    def __init__(
        self,
        directory: str,
        idmap: IdMap,
        *,
        session: str,
        runtime: str,
        init: str,
        policy: Policy,
    ) -> None:
        self._directory, self._idmap, self._session = directory, idmap, session
        self._runtime, self._init, self._policy = runtime, init, policy
        self._groups = Hierarchies()
        self._mark = f"{_MARK}{_identity(directory)}-"
        self._numbers = itertools.count()
        self._runs = os.path.join(directory, "run")
        # The runtime meets these as the step's root, who is nobody here: it may pass, not look.
        os.makedirs(self._runs, mode=0o711, exist_ok=True)
        for place in (directory, self._runs):
            os.chmod(place, os.stat(place).st_mode | 0o111)  # noqa: S103 - passing is not reading
        self.features = Features(
            users=not idmap.single,
            networks=frozenset({"host"}),
            secrets=True,
            limits=self._groups.limits | {"seconds"},
            platforms=(Platform("linux", _architecture(linux.machine())),),
        )

    @classmethod
    async def open(
        cls,
        directory: str,
        idmap: IdMap,
        *,
        session: str,
        runtime: str | None = None,
        policy: Policy = Policy(),  # noqa: B008 - frozen
    ) -> "OciSandbox":
        """Pick a runtime that works here. BackendUnavailable if none does."""
        init = next((p for name in _INITS if (p := _find(name)) and _is_static(p)), None)
        if init is None:
            raise BackendUnavailable(
                "no static init for steps was found",
                hint="install tini (Debian's package has tini-static)",
            )
        if closed := _closed(directory, idmap):
            raise BackendUnavailable(
                f"steps can't reach {directory}: others may not pass through {closed}",
                hint=f"chmod o+x {closed}, or put the store somewhere else",
            )
        said = []
        for name in (runtime,) if runtime else _RUNTIMES:
            path = _find(name)
            if path is None:
                said.append(f"{name}: not installed")
                continue
            sandbox = cls(directory, idmap, session=session, runtime=path, init=init, policy=policy)
            problem = await sandbox._probe()
            if problem is None:
                return sandbox
            said.append(f"{name}: {problem}")
        raise BackendUnavailable(
            "no OCI runtime works here: " + "; ".join(said), hint="install crun (or runc)"
        )

    async def _probe(self) -> str | None:
        """What is wrong with the runtime, found by running something; remembered if nothing is."""
        status = os.stat(self._runtime)
        known = [self._runtime, status.st_mtime_ns, os.uname().release, self._idmap.first]
        memory = os.path.join(self._directory, "runtime.json")
        if _remembered(memory) == known:
            return None
        place = os.path.join(self._runs, f"{self._session}.probe")
        os.makedirs(place, mode=0o755, exist_ok=True)
        os.chown(place, self._idmap.to_disk(0), self._idmap.to_disk(0))
        said: list[bytes] = []
        try:
            # The init itself is the one program there is: it says its version and ends.
            ended = await self.run(
                HostDir(place),
                Command(argv=("/dev/.init", "--version"), cwd="/", user=UnixUser(0, 0)),
                output=said.append,
            )
        except SandboxError as error:
            return error.message
        finally:
            _remove(place)
        if ended.status != 0:
            return b"".join(said).decode(errors="replace").strip()
        temporary = os.path.join(self._runs, f"{self._session}.json")
        _write(temporary, msgspec.json.encode(known), 0o644)
        os.rename(temporary, memory)
        return None

    async def check(self) -> None:
        """BackendUnavailable if the runtime can't run a step now."""
        if problem := await self._probe():
            raise BackendUnavailable(f"{self._runtime} does not work: {problem}")

    async def describe(self) -> str:
        """The runtime, its version and the limits that bite."""
        status, said = await anyio.to_thread.run_sync(
            lambda: process.capture([self._runtime, "--version"])
        )
        version = said.decode(errors="replace").splitlines()[0] if status == 0 and said else "?"
        limits = ", ".join(sorted(self.features.limits))
        return f"{self._runtime} ({version}), in a user namespace; limits: {limits}"

    async def run(self, root: Root, command: Command, *, output: Callable[[bytes], None]) -> Exit:
        """Run to the end. SandboxError if the command could not be started."""
        return await self._run(root, command, output)

    async def enter(self, root: Root, command: Command) -> Exit:
        """Run with this process's own terminal, or its own standard streams if that is none."""
        return await self._run(root, command, None)

    async def put(self, root: Root, tree: Manifest, source: Root, *, to: str, owner: User) -> None:
        """Copy in, in a thread. CopyError."""
        from obuilder.system.copying import copy_in

        inside, outside, user = _directory(root), _directory(source), _user(owner)
        await anyio.to_thread.run_sync(
            lambda: copy_in(
                inside, tree, outside, to=to, owner=(user.uid, user.gid), idmap=self._idmap
            )
        )

    async def recover(self) -> None:
        """End and remove what dead sessions left."""
        from obuilder.system.sessions import alive

        def dead(name: str) -> bool:
            return not alive(self._directory, name.rpartition(".")[0])

        mark = self._mark
        self._groups.sweep(lambda name: name.startswith(mark) and dead(name.removeprefix(mark)))
        for name in os.listdir(self._runs):
            if dead(name):
                await anyio.to_thread.run_sync(_remove, os.path.join(self._runs, name))

    async def _run(
        self, root: Root, command: Command, output: Callable[[bytes], None] | None
    ) -> Exit:
        name = f"{self._session}.{next(self._numbers)}"
        bundle = os.path.join(self._runs, name)
        os.mkdir(bundle, 0o711)
        try:
            with ExitStack() as stack:
                return await self._step(stack, bundle, root, command, output)
        except OSError as error:
            raise SandboxError(f"the step could not be started: {error}") from error
        finally:
            _remove(bundle)

    async def _step(
        self,
        stack: ExitStack,
        bundle: str,
        root: Root,
        command: Command,
        output: Callable[[bytes], None] | None,
    ) -> Exit:
        limits, name = command.limits, os.path.basename(bundle)
        box = self._box(
            stack, bundle, _directory(root), command, terminal=output is None and os.isatty(0)
        )
        _write(os.path.join(bundle, "config.json"), runtime_config(box), 0o600)
        leaf: Leaf | None = None
        if self._groups.limits:
            leaf = self._groups.leaf(
                self._mark + name, memory=limits.memory, cpus=limits.cpus, pids=limits.pids
            )
            stack.callback(leaf.remove)
        joiners = leaf.joiners() if leaf else []
        for fd in joiners:
            stack.callback(os.close, fd)
        pid_file = os.path.join(bundle, "pid")
        first: list[bytes] = []

        def heard(data: bytes) -> None:
            if not first:
                first.append(data[:1000])
            if output is not None:
                output(data)

        # The runtime's own words, warnings too, are not the step's output.
        said_file = os.path.join(bundle, "runtime.log")
        ended = await process.run(
            [
                "setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _JOIN, "sh",
                " ".join(map(str, joiners)), self._runtime, "--root", os.path.join(bundle, "state"),
                "--log", said_file, *self._options,
                "run", "--pid-file", pid_file, "--bundle", bundle, name,
            ],
            output=None if output is None else heard,
            pass_fds=joiners,
            timeout=limits.seconds,
            kill=lambda: _kill(leaf, pid_file),
        )  # fmt: skip
        if not ended.timed_out and not os.access(pid_file, os.F_OK):
            said = b"".join([*first, _read(said_file)]).decode(errors="replace").strip()
            raise SandboxError(
                f"{os.path.basename(self._runtime)} could not start the step: {said}"
            )
        return Exit(
            status=ended.status,
            timed_out=ended.timed_out,
            out_of_memory=leaf is not None and leaf.out_of_memory(),
        )

    @property
    def _options(self) -> list[str]:
        # The groups are ours: crun leaves them alone, runc forgives what it may not make.
        if os.path.basename(self._runtime).startswith("crun"):
            return ["--cgroup-manager=disabled"]
        return [] if self._groups.limits else ["--rootless=true"]

    def _box(
        self, stack: ExitStack, bundle: str, root: str, command: Command, *, terminal: bool
    ) -> Box:
        user = _user(command.user)
        if unknown := set(command.network) - {"host"}:
            raise Unsupported(f"this sandbox has no network called {min(unknown)!r}")
        host_network = "host" in command.network
        places = stack.enter_context(MountPoints(root, self._idmap))
        for target in ("/proc", "/dev", "/sys", "/etc"):
            places.fixed(target)
        places.directory(command.cwd, keep=True)
        places.file("/etc/hosts")
        hosts = os.path.join(bundle, "hosts")
        _write(hosts, f"127.0.0.1 localhost {command.hostname}\n".encode(), 0o644)
        resolv = None
        if host_network and os.path.exists("/etc/resolv.conf"):
            places.file("/etc/resolv.conf")
            resolv = os.path.realpath("/etc/resolv.conf")
        binds = []
        if command.secrets:
            folder = os.path.join(bundle, "secrets")
            os.mkdir(folder, 0o711)
            # Not noexec: a flag more than the bind inside has would be locked there.
            linux.mount("tmpfs", folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=711")
            stack.callback(linux.unmount, folder, linux.MNT_DETACH)
            for number, secret in enumerate(command.secrets):
                path = os.path.join(folder, str(number))
                _write(path, secret.value, 0o400)
                os.chown(path, self._idmap.to_disk(user.uid), self._idmap.to_disk(user.gid))
                binds.append(Bind(path, places.file(secret.target), readonly=True))
        for mount in command.mounts:
            is_file = not os.path.isdir(mount.source)
            place = places.file(mount.target) if is_file else places.directory(mount.target)
            if place == "/" or place.split("/")[1] in {"proc", "sys", "dev"}:
                raise SandboxError(f"nothing can be mounted on {mount.target}")
            binds.append(Bind(mount.source, place, readonly=mount.readonly))
        offered = host_network and self._policy.ca_bundle
        return Box(
            root=root,
            argv=command.argv,
            cwd=command.cwd,
            user=user,
            env=command.env,
            hostname=command.hostname,
            idmap=self._idmap,
            machine=linux.machine(),
            policy=self._policy,
            host_network=host_network,
            terminal=terminal,
            init=self._init,
            hosts=hosts,
            resolv_conf=resolv,
            ca_bundle=next((p for p in _BUNDLES if os.path.exists(p)), None) if offered else None,
            binds=tuple(binds),
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
        )


def _kill(leaf: Leaf | None, pid_file: str) -> None:
    """End a step at once: its group, or its PID 1, whose end is that of all below."""
    if leaf is not None:
        leaf.kill()
        return
    try:
        with open(pid_file, encoding="ascii") as stream:
            os.kill(int(stream.read()), 9)
    except (OSError, ValueError):
        return  # not started yet, or gone: the runtime's own end is the rest


def _directory(root: Root) -> str:
    if not isinstance(root, HostDir):
        raise SandboxError("an OCI runtime works on directories only")
    return root.path


def _user(user: User) -> UnixUser:
    if not isinstance(user, UnixUser):
        raise Unsupported("this sandbox takes users by number: (user (uid N) (gid N))")
    return user


def _find(name: str) -> str | None:
    for folder in _FOLDERS:
        path = os.path.join(folder, name)  # a name with a slash at its start stands for itself
        if os.access(path, os.X_OK):
            return os.path.realpath(path)
    return None


def _is_static(path: str) -> bool:
    """Whether a program needs no loader, which a step's root may lack."""
    with open(path, "rb") as stream:
        return b"/ld-" not in stream.read(4096)


def _closed(directory: str, idmap: IdMap) -> str | None:
    """The first directory above a store that a step's root, nobody to the host, can't pass."""
    if idmap.to_disk(0) == os.geteuid():
        return None
    place = ""
    for part in os.path.realpath(os.path.dirname(directory)).split("/")[1:]:
        place = f"{place}/{part}"
        if not os.stat(place).st_mode & 1:
            return place
    return None


def _identity(directory: str) -> str:
    """What tells this store's groups, which stand beside those of all others, from theirs.

    A random name that stays with the store, and where the store is: a copy has the same name.
    """
    path = os.path.join(directory, "sandbox-id")
    if not os.path.exists(path):
        temporary = f"{path}.{os.urandom(8).hex()}"
        _write(temporary, os.urandom(8).hex().encode(), 0o600)
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


def _remembered(path: str) -> object:
    try:
        with open(path, "rb") as stream:
            return msgspec.json.decode(stream.read())
    except (OSError, msgspec.DecodeError):
        return None


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        with open(fd, "wb", closefd=False) as stream:
            stream.write(data)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _architecture(machine: str) -> str:
    names = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
    return names.get(machine, machine)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
