"""Steps run by an OCI runtime, crun or runc, always in a user namespace."""

import os
import resource
from collections.abc import Callable
from contextlib import ExitStack
from typing import ClassVar

import anyio
import msgspec

from obuilder.backends.protocols import Command, Exit, Features, HostDir, Placing, Root
from obuilder.backends.sandboxes.cells import Cell, Cells
from obuilder.backends.sandboxes.homes import account, home_of
from obuilder.backends.sandboxes.mountpoints import MountPoints
from obuilder.errors import BackendUnavailable, SandboxError, Unsupported, of_disk
from obuilder.oci.bpf import compiled
from obuilder.oci.runtime_config import Bind, Box, runtime_config
from obuilder.oci.seccomp import filter_for
from obuilder.system import linux, process
from obuilder.system.cgroups import Hierarchies
from obuilder.system.files import remove_tree
from obuilder.system.picking import Selection
from obuilder.system.tree import Manifest
from obuilder.values import IdMap, Platform, Policy, UnixUser, User, shown

_RUNTIMES = ("crun", "runc")
_INITS = ("tini-static", "docker-init", "tini")
_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_MARK = "obuilder-"
_SAID = "runtime.log"


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
        self._passed_over: list[str] = []
        self._runs = os.path.join(directory, "run")
        # The runtime meets these as the step's root, who is nobody here: it may pass, not look.
        os.makedirs(self._runs, mode=0o711, exist_ok=True)
        self._mark = f"{_MARK}{_identity(directory, self._temporary('id'))}-"
        for place in (directory, self._runs):
            os.chmod(place, os.stat(place).st_mode | 0o111)  # noqa: S103 - passing is not reading
        self._seccomp = filter_for(
            linux.machine(), nested_userns=policy.nested_userns, fast_sync=policy.fast_sync
        )
        # For crun alone: others know only the profile.
        self._seccomp_bpf = None
        if self._is_crun:
            new = self._temporary("bpf")
            self._seccomp_bpf = compiled(self._seccomp, folder=directory, temporary=new)
        self._cells = Cells(self._runs, session, self._groups, self._mark, self._command_line)
        self.features = Features(
            users=not idmap.single,
            networks=frozenset({"host"}),
            secrets=True,
            limits=self._groups.limits | {"seconds", "pids"},
            platforms=(Platform("linux", _architecture(linux.machine())),),
            isolation=True,
            policies=frozenset(Policy.__struct_fields__),
            named_users=True,
            mounts=True,
        )

    @classmethod
    async def open(
        cls,
        directory: str,
        idmap: IdMap,
        *,
        session: str,
        policy: Policy = Policy(),  # noqa: B008 - frozen
    ) -> "OciSandbox":
        """Pick a runtime that works here. BackendUnavailable if none does."""
        init = next((p for name in _INITS if (p := _find(name)) and _is_static(p)), None)
        if init is None:
            raise BackendUnavailable(
                "no static init for steps was found",
                hint="install tini (Debian's package has tini-static)",
            )
        said = []
        for name in (policy.runtime,) if policy.runtime else _RUNTIMES:
            path = _find(name)
            if path is None:
                said.append(f"{name}: not installed")
                continue
            sandbox = cls(directory, idmap, session=session, runtime=path, init=init, policy=policy)
            problem = await sandbox._probe()
            if problem is None:
                sandbox._passed_over = said
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
            remove_tree(place)
        if ended.status != 0:
            return b"".join(said).decode(errors="replace").strip()
        temporary = self._temporary("json")
        _write(temporary, msgspec.json.encode(known), 0o644)
        os.rename(temporary, memory)
        return None

    def _temporary(self, what: str) -> str:
        """Where a file is written before it gets its name; recovery knows whose it is."""
        return os.path.join(self._runs, f"{self._session}.{what}")

    async def check(self) -> None:
        """BackendUnavailable if the runtime can't run a step now."""
        if problem := await self._probe():
            raise BackendUnavailable(f"{self._runtime} does not work: {problem}")

    async def describe(self) -> str:
        """The runtime, its version, why no other, and the limits that bite."""
        status, said = await anyio.to_thread.run_sync(
            lambda: process.capture([self._runtime, "--version"])
        )
        version = said.decode(errors="replace").splitlines()[0] if status == 0 and said else "?"
        ids = "one id: a step has one user" if self._idmap.single else f"{self._idmap.count} ids"
        limits = ", ".join(sorted(self.features.limits))
        lacking = ", ".join(sorted({"memory", "cpus"} - self.features.limits))
        if lacking:
            limits += f" (there is no cgroup to limit {lacking} with)"
        picked = "; ".join([f"{self._runtime} ({version})", *self._passed_over])
        return f"{picked}; in a user namespace of {ids}; limits: {limits}"

    async def run(self, root: Root, command: Command, *, output: Callable[[bytes], None]) -> Exit:
        """Run to the end. SandboxError if the command could not be started."""
        return await self._run(root, command, output)

    async def enter(self, root: Root, command: Command) -> Exit:
        """Run with this process's own terminal, or its own standard streams if that is none."""
        return await self._run(root, command, None)

    async def put(self, root: Root, tree: Manifest, source: Root, *, to: str, owner: User) -> None:
        """Copy in, in a thread. CopyError."""
        from obuilder.system.copying import copy_in

        inside, outside = _directory(root), _directory(source)
        user = account(inside, owner).user
        await anyio.to_thread.run_sync(
            lambda: copy_in(
                inside, tree, outside, to=to, owner=(user.uid, user.gid), idmap=self._idmap
            )
        )

    async def add(
        self, root: Root, selection: Selection, source: Root, how: Placing, *, to: str,
        owner: User | None,
    ) -> None:  # fmt: skip
        """Copy in as a Dockerfile does, in a thread. CopyError, BadImage, Unsupported."""
        from obuilder.oci.additions import add

        inside, outside = _directory(root), _directory(source)
        user = None if owner is None else account(inside, owner).user
        await anyio.to_thread.run_sync(
            lambda: add(
                inside, selection, outside, to=to, into=how.into,
                owner=None if user is None else (user.uid, user.gid),
                permissions=how.permissions, link=how.link, unpack=how.unpack, idmap=self._idmap,
            )
        )  # fmt: skip

    async def recover(self) -> None:
        """End and remove what dead sessions left."""
        from obuilder.system.sessions import alive

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

    async def _run(
        self, root: Root, command: Command, output: Callable[[bytes], None] | None
    ) -> Exit:
        try:
            with self._cells.cell(terminal=output is None) as cell, ExitStack() as stack:
                return await self._step(stack, cell, root, command, output)
        except OSError as error:
            raise of_disk("the step could not be started", error, SandboxError) from error

    async def _step(
        self,
        stack: ExitStack,
        cell: Cell,
        root: Root,
        command: Command,
        output: Callable[[bytes], None] | None,
    ) -> Exit:
        bundle, terminal = cell.bundle, output is None and os.isatty(0)
        box = self._box(stack, bundle, _directory(root), command, terminal=terminal)
        try:
            config = runtime_config(box)
        except UnicodeEncodeError as error:
            raise Unsupported(
                f"an OCI runtime takes UTF-8 only, which '{shown(str(error.object))[:60]}' is not",
                hint=r"let the command make such bytes itself, as with printf '\377'",
            ) from error
        place = os.path.join(bundle, "config.json")
        if any(secret.env for secret in command.secrets):
            # What a variable holds is on memory too.
            os.symlink("secrets/config.json", place)
            place = os.path.join(bundle, "secrets", "config.json")
        _write(place, config, 0o600)
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
        if not ended.timed_out and not os.access(os.path.join(bundle, "pid"), os.F_OK):
            words = b"".join([*first, _read(os.path.join(bundle, _SAID))])
            said = words.decode(errors="replace").strip()
            raise SandboxError(
                f"{os.path.basename(self._runtime)} could not start the step: {said}"
            )
        return ended

    def _command_line(self, bundle: str) -> list[str]:
        def inside(name: str) -> str:
            return os.path.join(bundle, name)

        # The runtime's own words, warnings too, are not the step's output.
        return [
            self._runtime, "--root", inside("state"), "--log", inside(_SAID), *self._options,
            "run", "--pid-file", inside("pid"), "--bundle", bundle, os.path.basename(bundle),
        ]  # fmt: skip

    @property
    def _is_crun(self) -> bool:
        return os.path.basename(self._runtime).startswith("crun")

    @property
    def _options(self) -> list[str]:
        # The groups are ours: crun leaves them alone, runc forgives what it may not make.
        if self._is_crun:
            return ["--cgroup-manager=disabled"]
        return [] if self._groups.limits else ["--rootless=true"]

    def _box(
        self, stack: ExitStack, bundle: str, root: str, command: Command, *, terminal: bool
    ) -> Box:
        user, groups = account(root, command.user)
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
                if secret.env:
                    continue
                path = os.path.join(folder, str(number))
                _write(path, secret.value, secret.permissions)
                mine = secret.owner or user
                os.chown(path, self._idmap.to_disk(mine.uid), self._idmap.to_disk(mine.gid))
                binds.append(Bind(path, places.file(secret.target), readonly=True))
        for mount in command.mounts:
            source = _directory(mount.source)
            is_file = not os.path.isdir(source)
            place = places.file(mount.target) if is_file else places.directory(mount.target)
            if place == "/" or place.split("/")[1] in {"proc", "sys", "dev"}:
                raise SandboxError(f"nothing can be mounted on {mount.target}")
            binds.append(Bind(source, place, readonly=mount.readonly))
        memory = tuple((places.directory(tmpfs.target), tmpfs.size) for tmpfs in command.tmpfs)
        variables = {s.env: os.fsdecode(s.value) for s in command.secrets if s.env}
        offered = host_network and self._policy.ca_bundle
        return Box(
            root=root,
            argv=command.argv,
            cwd=command.cwd,
            user=user,
            groups=groups,
            env=(("HOME", home_of(root, user.uid)), *command.env, *variables.items()),
            hostname=command.hostname,
            idmap=self._idmap,
            policy=self._policy,
            host_network=host_network,
            terminal=terminal,
            init=self._init,
            hosts=hosts,
            resolv_conf=resolv,
            ca_bundle=next((p for p in _BUNDLES if os.path.exists(p)), None) if offered else None,
            binds=tuple(binds),
            memory=memory,
            insecure=command.insecure,
            seccomp=self._seccomp,
            seccomp_bpf=self._seccomp_bpf,
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
            processes=None if "pids" in self._groups.limits else _processes(command.limits.pids),
        )


def _processes(wanted: int | None) -> int | None:
    """How many processes each user of a step may have, where no group counts them all."""
    own = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    given = [limit for limit in (wanted, own) if limit not in (None, resource.RLIM_INFINITY)]
    return min(given, default=None)


def _directory(root: Root) -> str:
    if not isinstance(root, HostDir):
        raise SandboxError("an OCI runtime works on directories only")
    return root.path


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


def _identity(directory: str, temporary: str) -> str:
    """What tells this store's groups, which stand beside those of all others, from theirs.

    A random name that stays with the store, and where the store is: a copy has the same name.
    The name is written at `temporary` first.
    """
    path = os.path.join(directory, "sandbox-id")
    if not os.path.exists(path):
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


def _architecture(machine: str) -> str:
    names = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
    return names.get(machine, machine)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
