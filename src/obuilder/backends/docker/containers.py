"""What an engine is told of a step: a command and a policy as the body of one request. Pure.

Linux and Windows containers differ here, and nowhere else.
"""

import re
from collections.abc import Sequence
from string import ascii_letters
from typing import Any, Literal

from msgspec import Struct

from obuilder.backends.docker.model import Image, Info
from obuilder.backends.protocols import Command, EngineVolume, Features, Mount
from obuilder.errors import SandboxError, Unsupported
from obuilder.oci.platforms import platform_of
from obuilder.oci.runtime_config import CA_BUNDLE, CA_VARIABLES
from obuilder.values import Limits, Policy, UnixUser, User

INIT = "/dev/.init"
"""Where a step's PID 1 is shown: on /dev's own tmpfs, so that nothing of it is left in the image."""
_ENV = "/dev/.bin/env"
ENGINES_INIT = "/sbin/docker-init"
"""Where engines show their own, which leaves an empty file."""

_CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID",
    "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_ADMINISTRATOR = "ContainerAdministrator"


class Guest(Struct, frozen=True):
    """What containers of an engine are like, and what of this machine they see.

    `init` is a path, or None: the engine has to bring one. `ca_bundle` is for steps with the host's
    network, `seccomp` a profile, or for podman where one is. `busybox` is a static one, for an engine
    that puts into a step's environment what can't be kept out. `limits` are the soft and the hard
    ones of a user's open files, say, by their names.
    """

    os: Literal["linux", "windows"] = "linux"
    init: str | None = None
    ca_bundle: str | None = None
    seccomp: str = ""
    busybox: str | None = None
    limits: tuple[tuple[str, int, int], ...] = (("core", 0, 0),)


class Bind(Struct, frozen=True):
    """A file of the engine's machine that a step sees and can't change."""

    source: str
    target: str


def body(
    command: Command,
    image: Image,
    guest: Guest,
    policy: Policy,
    *,
    labels: dict[str, str],
    groups: Sequence[int] = (),
    binds: Sequence[Bind] = (),
    terminal: bool = False,
    interactive: bool = False,
) -> dict[str, Any]:
    """The request that makes a step's container.

    `groups` are those that the command's user has besides. `interactive`: it reads what a person says;
    `terminal`: at a terminal. Unsupported, SandboxError.
    """
    windows = guest.os == "windows"
    argv, env, binds = list(command.argv), dict(command.env), list(binds)
    if windows and argv[0].startswith("/"):
        argv[0] = windows_path(argv[0])
    unset = _unset(env, image, guest)
    if guest.busybox is not None:
        argv = [_ENV, *(word for name in unset for word in ("-u", name)), *argv]
        binds.append(Bind(guest.busybox, _ENV))
        unset = []
    if guest.init is not None:
        argv = [INIT, "--", *argv]
        binds.append(Bind(guest.init, INIT))
    if guest.ca_bundle is not None and "host" in command.network:
        env = {**dict.fromkeys(CA_VARIABLES, CA_BUNDLE), **env}
        binds.append(Bind(guest.ca_bundle, CA_BUNDLE))
    return {
        "Image": image.id,
        "Entrypoint": argv,
        "Hostname": command.hostname,
        "User": _windows_user(command.user) if windows else _linux_user(command.user),
        "WorkingDir": windows_path(command.cwd) if windows else command.cwd,
        "Env": [*(f"{name}={value}" for name, value in env.items()), *unset],
        "Labels": labels,
        "Tty": terminal,
        "OpenStdin": interactive,
        "StdinOnce": interactive,
        "AttachStdin": interactive,
        "AttachStdout": True,
        "AttachStderr": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": network(command.network[0] if command.network else "", guest),
            "LogConfig": {"Type": "none"},
            "GroupAdd": [str(group) for group in groups],
            "Mounts": [
                *(_mount(mount, windows=windows) for mount in command.mounts),
                *(_bind(bind) for bind in binds),
            ],
            **_limits(command.limits, windows=windows),
            **(_windows(policy) if windows else _linux(command, guest, policy)),
        },
    }


def features(info: Info, networks: Sequence[str], guest: Guest, *, secrets: bool) -> Features:
    """What steps can have in an engine's containers; `secrets`: this machine has a place for them."""
    linux_ = guest.os == "linux"
    limits = {"seconds"}
    if not linux_ or info.memory_limit:
        limits.add("memory")
    if not linux_ or info.cpu_cfs_quota:
        limits.add("cpus")
    if linux_ and info.pids_limit:
        limits.add("pids")
    policies = {"runtime", "no_new_privileges", "ca_bundle"} if linux_ else {"isolation"}
    if guest.seccomp:
        policies |= {"nested_userns", "fast_sync"}
    return Features(
        users=linux_,
        networks=frozenset({"", "host", *networks} - {"none"}),
        secrets=linux_ and secrets,
        limits=frozenset(limits),
        platforms=(platform_of(info.os_type, info.architecture),),
        isolation=True,
        utf8_only=True,
        policies=frozenset(policies),
        places=("/",) if linux_ else tuple(f"{drive}:/" for drive in ascii_letters),
        named_users=True,
        secret_variables=False,
    )


def network(name: str, guest: Guest) -> str:
    """What an engine calls a network of a spec: none where the spec names none."""
    if not name:
        return "none"
    return "nat" if name == "host" and guest.os == "windows" else name


def windows_path(path: str) -> str:
    """A path as Windows has it: what starts at the root starts at C:."""
    return path if _DRIVE.match(path) else "C:/" + path.lstrip("/")


def _linux_user(user: User) -> str:
    if isinstance(user, UnixUser):
        return f"{user.uid}:{user.gid}"
    raise Unsupported(f"nobody has looked up who {user.name!r} is")


def _windows_user(user: User) -> str:
    if not isinstance(user, UnixUser):
        return user.name
    if (user.uid, user.gid) == (0, 0):
        return _ADMINISTRATOR
    raise Unsupported("Windows has users by name: (user (name NAME))")


def _unset(env: dict[str, str], image: Image, guest: Guest) -> list[str]:
    """What a step would have in its environment besides. To Docker a name alone means: not that."""
    theirs = [item.partition("=")[0] for item in (image.config and image.config.env) or ()]
    if guest.os != "windows":
        theirs.append("HOSTNAME")
    if guest.busybox is not None:
        theirs += ["PATH", "TERM", "container"]
    return list(dict.fromkeys(name for name in theirs if name not in env))


def _mount(mount: Mount, *, windows: bool) -> dict[str, Any]:
    if not isinstance(mount.source, EngineVolume):
        raise SandboxError("a Docker engine mounts volumes of its own only")
    target = windows_path(mount.target) if windows else mount.target
    top = target.strip("/").split("/")[0]
    if not windows and top in {"", "proc", "sys", "dev"}:
        raise SandboxError(f"nothing can be mounted on {mount.target}")
    return {
        "Type": "volume", "Source": mount.source.name, "Target": target,
        "ReadOnly": mount.readonly, "VolumeOptions": {"NoCopy": True},
    }  # fmt: skip


def _bind(bind: Bind) -> dict[str, Any]:
    return {"Type": "bind", "Source": bind.source, "Target": bind.target, "ReadOnly": True}


def _limits(limits: Limits, *, windows: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if limits.cpus is not None:
        found["NanoCpus"] = int(limits.cpus * 1e9)
    if limits.memory is not None:
        found["Memory"] = limits.memory
        if not windows:
            found["MemorySwap"] = limits.memory  # both together: no swap
    if limits.pids is not None and not windows:
        found["PidsLimit"] = limits.pids
    return found


def _windows(policy: Policy) -> dict[str, Any]:
    return {"Isolation": policy.isolation}


def _linux(command: Command, guest: Guest, policy: Policy) -> dict[str, Any]:
    options = [f"no-new-privileges={'true' if policy.no_new_privileges else 'false'}"]
    if guest.seccomp:
        options.append(f"seccomp={guest.seccomp}")
    found: dict[str, Any] = {
        "Init": guest.init is None,
        "CapDrop": ["ALL"],
        "CapAdd": list(_CAPABILITIES),
        "SecurityOpt": options,
        "ExtraHosts": [f"{command.hostname}:127.0.0.1"],
        "Ulimits": [
            {"Name": name, "Soft": soft, "Hard": hard} for name, soft, hard in guest.limits
        ],
        "IpcMode": "private",
    }
    if policy.runtime is not None:
        found["Runtime"] = policy.runtime
    return found
