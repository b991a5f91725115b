"""Steps run by an OCI runtime, crun or runc, always in a user namespace."""

import os
import resource
from contextlib import ExitStack
from typing import final

import anyio
import msgspec

from obuilder.backends.protocols import Command, Features, HostDir
from obuilder.backends.sandboxes.homes import account, home_of
from obuilder.backends.sandboxes.local import (
    LocalSandbox,
    directory_of,
    secret_files,
    secret_variables,
    write_for_starter,
    write_new,
)
from obuilder.backends.sandboxes.mountpoints import MountPoints
from obuilder.backends.sandboxes.runtimes import PREFERRED, Runtime, runtime_of
from obuilder.errors import BackendUnavailable, SandboxError, Unsupported
from obuilder.oci.bpf import compiled
from obuilder.oci.platforms import host_platform
from obuilder.oci.runtime_config import Bind, Box, runtime_config
from obuilder.oci.seccomp import filter_for
from obuilder.system import linux, process
from obuilder.system.cgroups import Hierarchies
from obuilder.system.files import remove_tree
from obuilder.values import IdMap, Policy, UnixUser

_INITS = ("tini-static", "docker-init", "tini")
_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_SAID = "runtime.log"


@final
class OciSandbox(LocalSandbox):
    """Runs commands with an OCI runtime. Made by `open`."""

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
        self._runtime, self._init, self._policy = runtime, init, policy
        self._kind = runtime_of(runtime)
        self._passed_over: list[str] = []
        super().__init__(directory, idmap, session, Hierarchies())
        # The runtime meets these as the step's root, who is nobody here: it may pass, not look.
        for place in (directory, self._runs):
            os.chmod(place, os.stat(place).st_mode | 0o111)  # noqa: S103 - passing is not reading
        self._seccomp = filter_for(
            linux.machine(), nested_userns=policy.nested_userns, fast_sync=policy.fast_sync
        )
        # For crun alone: others know only the profile.
        self._seccomp_bpf = None
        if self._kind.compiled:
            new = self._temporary("bpf")
            self._seccomp_bpf = compiled(self._seccomp, folder=directory, temporary=new)
        self.features = Features(
            users=not idmap.single,
            networks=frozenset({"", "host"}) - self._kind.lacks,
            secrets=True,
            limits=(self._groups.limits | {"seconds", "pids"}) - self._kind.lacks,
            platforms=(host_platform(),),
            isolation=True,
            utf8_only=True,
            policies=frozenset(Policy.__struct_fields__) - self._kind.lacks,
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
        for name in (policy.runtime,) if policy.runtime else PREFERRED:
            path = _find(name)
            if path is None:
                said.append(f"{name}: not installed")
                continue
            sandbox = cls(directory, idmap, session=session, runtime=path, init=init, policy=policy)
            problem = await sandbox._probe()
            if problem is None:
                sandbox._passed_over = said
                return sandbox
            await sandbox.close()
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
        write_new(temporary, msgspec.json.encode(known), 0o644)
        os.rename(temporary, memory)
        return None

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

    def _fill(
        self, stack: ExitStack, bundle: str, root: str, command: Command, *, terminal: bool
    ) -> None:
        box = self._box(stack, bundle, root, command, terminal=terminal)
        write_for_starter(bundle, "config.json", runtime_config(box), command.secrets)

    def _unstarted(self, bundle: str, said: bytes) -> SandboxError:
        words = said + _read(os.path.join(bundle, _SAID))
        name, text = os.path.basename(self._runtime), words.decode(errors="replace").strip()
        return SandboxError(f"{name} could not start the step: {text}")

    def _command_line(self, bundle: str) -> list[str]:
        def inside(name: str) -> str:
            return os.path.join(bundle, name)

        # The runtime's own words, warnings too, are not the step's output.
        return [
            self._runtime, "--root", inside("state"), "--log", inside(_SAID), *self._options,
            "run", "--pid-file", inside("pid"), "--bundle", bundle, os.path.basename(bundle),
        ]  # fmt: skip

    @property
    def _options(self) -> tuple[str, ...]:
        # The groups are ours: runc forgives what it may not make.
        bare = self._kind == Runtime() and not self._groups.limits
        return ("--rootless=true",) if bare else self._kind.options

    def _box(
        self, stack: ExitStack, bundle: str, root: str, command: Command, *, terminal: bool
    ) -> Box:
        user, groups = account(root, command.user)
        if unknown := set(command.network) - {"host"}:
            raise Unsupported(f"this sandbox has no network called {min(unknown)!r}")
        host_network = "host" in command.network
        places = stack.enter_context(MountPoints(root, (self._idmap.to_disk(0),) * 2))
        for target in ("/proc", "/dev", "/sys", "/etc"):
            places.fixed(target)
        places.directory(command.cwd, keep=True)
        places.file("/etc/hosts")
        for target in self._kind.spilt:
            places.file(target)
        hosts = os.path.join(bundle, "hosts")
        write_new(hosts, f"127.0.0.1 localhost {command.hostname}\n".encode(), 0o644)
        resolv = None
        if host_network and os.path.exists("/etc/resolv.conf"):
            places.file("/etc/resolv.conf")
            resolv = os.path.realpath("/etc/resolv.conf")

        def owned(owner: UnixUser | None) -> tuple[int, int]:
            mine = owner or user
            return self._idmap.to_disk(mine.uid), self._idmap.to_disk(mine.gid)

        shown = secret_files(stack, bundle, command.secrets, owned)
        binds = [Bind(path, places.file(target), readonly=True) for path, target in shown]
        binds += [
            Bind(root + place, place, readonly=False)
            for place in map(places.directory, self._kind.hidden)
        ]
        for mount in command.mounts:
            source = directory_of(mount.source)
            place = places.like(source, mount.target)
            binds.append(Bind(source, place, readonly=mount.readonly))
        memory = tuple((places.directory(tmpfs.target), tmpfs.size) for tmpfs in command.tmpfs)
        offered = host_network and self._policy.ca_bundle
        return Box(
            root=root,
            argv=command.argv,
            cwd=command.cwd,
            user=user,
            groups=() if self._idmap.single else groups,
            env=(
                ("HOME", home_of(root, user.uid)),
                *command.env,
                *secret_variables(command.secrets),
            ),
            hostname=command.hostname,
            idmap=self._idmap,
            policy=self._policy,
            host_network=host_network,
            terminal=os.get_terminal_size(0) if terminal else None,
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


def _remembered(path: str) -> object:
    try:
        with open(path, "rb") as stream:
            return msgspec.json.decode(stream.read())
    except (OSError, msgspec.DecodeError):
        return None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
