"""What an image says of itself, and how the ops of a spec change that.

None of it is in a step's key: it is for whoever exports a result, or begins a Dockerfile from it.
"""

import msgspec
from msgspec import Struct

from obuilder.spec.model import (
    Author,
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Label,
    Onbuild,
    Op,
    SetUser,
    Shell,
    StopSignal,
    Volume,
    Workdir,
)
from obuilder.values import ROOT, NamedUser, UnixUser, User

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For images that bring no PATH, as most that are no OCI images do not."""


class ImageConfig(Struct, frozen=True, omit_defaults=True):
    """What an image says of itself. Steps take `env`; a spec that inherits takes user, workdir, shell.

    `healthcheck` is as the op's; ports are `80/tcp`.
    """

    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    workdir: str = ""
    shell: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck: Healthcheck | None = None
    onbuild: tuple[str, ...] = ()
    author: str = ""


SCRATCH = ImageConfig(env=(("PATH", DEFAULT_PATH),), workdir="/")
"""What an empty image says of itself, as Docker has it."""
SHELL = ("/bin/sh", "-c")
"""What runs commands where neither the image nor a Dockerfile says."""


def user_of(text: str) -> User:
    """The user that a config names: `1000:1000`, or anything that /etc/passwd has to tell of."""
    if not text:
        return ROOT
    uid, _, gid = text.partition(":")
    if all(part.isascii() and part.isdecimal() and len(part) < 10 for part in (uid, gid)):
        return UnixUser(int(uid), int(gid))
    return NamedUser(text)


def begun(base: ImageConfig) -> ImageConfig:
    """The config of a build that begins from an image: what the image kept for this is done."""
    return msgspec.structs.replace(base, onbuild=())


def changed(config: ImageConfig, op: Op, *, own_cmd: bool, cwd: str) -> ImageConfig:
    """The config after an op. `own_cmd`: a cmd stood before it in the same build; `cwd`: where the
    op leaves the working directory.
    """
    made: dict[str, object]
    match op:
        case Env(name, value):
            made = {"env": _with(config.env, name, value)}
        case SetUser(UnixUser(uid, gid)):
            made = {"user": f"{uid}:{gid}"}
        case SetUser(user):
            made = {"user": user.name}  # type: ignore[union-attr] # the other kind
        case Shell(argv):
            made = {"shell": argv}
        case Entrypoint(argv):
            made = {"entrypoint": argv, "cmd": config.cmd if own_cmd else ()}
        case Cmd(argv):
            made = {"cmd": argv}
        case Label(name, value):
            made = {"labels": tuple(sorted(_with(config.labels, name, value)))}
        case Expose(ports):
            made = {"ports": tuple(sorted({*config.ports, *ports}))}
        case Volume(paths):
            made = {"volumes": tuple(sorted({*config.volumes, *paths}))}
        case StopSignal(signal):
            made = {"stop_signal": signal}
        case Healthcheck():
            made = {"healthcheck": op}
        case Onbuild(instruction):
            made = {"onbuild": (*config.onbuild, instruction)}
        case Author(name):
            made = {"author": name}
        case Workdir():
            made = {"workdir": cwd}
        case _:
            return config
    return msgspec.structs.replace(config, **made)


def _with(pairs: tuple[tuple[str, str], ...], name: str, value: str) -> tuple[tuple[str, str], ...]:
    """The pairs with one more; one of that name gets the value where it stands."""
    found = dict(pairs)
    found[name] = value
    return tuple(found.items())
