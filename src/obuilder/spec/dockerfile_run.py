"""RUN: its command, and its mounts, network and security."""

import re
from typing import cast

from msgspec import Struct

from obuilder.spec.dockerfile import Instruction, Stretch, chomped, heredoc
from obuilder.spec.dockerfile_stage import Stage
from obuilder.spec.dockerfile_words import BadWord, as_pattern, expand
from obuilder.spec.image import SHELL
from obuilder.spec.model import Add, Bind, Cache, CacheMode, Run, Secret, Ssh, Tmpfs
from obuilder.values import UnixUser

_KEYS = {
    "cache": {"id", "target", "ro", "sharing", "from", "source", "mode", "uid", "gid"},
    "secret": {"id", "source", "target", "required", "mode", "uid", "gid", "env", "ro"},
    "bind": {"target", "source", "from", "ro"},
    "tmpfs": {"target", "size"},
    "ssh": {"id", "target", "required", "mode", "uid", "gid", "ro"},
}
_ALIASES = {
    "src": "source", "dst": "target", "destination": "target", "readonly": "ro", "readwrite": "rw",
}  # fmt: skip
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SCRIPTS = "/run/heredocs"


class _Mount(Struct):
    """A mount as it was said: what is None was not."""

    at: Stretch
    values: dict[str, str]
    readonly: bool | None = None

    def get(self, name: str, otherwise: str = "") -> str:
        return self.values.get(name, otherwise)


def run(stage: Stage, it: Instruction) -> None:
    """Take in a RUN."""
    network, insecure = stage.network, False
    caches: list[Cache] = []
    secrets: list[Secret] = []
    binds: list[Bind] = []
    memory: list[Tmpfs] = []
    agents: list[Ssh] = []
    for name, value, at in stage.flags(it, ("mount==", "network=", "security=", "device==")):
        if name == "network":
            if value not in ("default", "none", "host"):
                raise stage.fault(at, f"there is no network {value!r}: default, none or host")
            network = stage.network if value == "default" else (value,)
        elif name == "security":
            if value not in ("sandbox", "insecure"):
                raise stage.fault(at, f"security is sandbox or insecure, not {value!r}")
            insecure = value == "insecure"
        elif name == "device":
            raise stage.fault(at, "steps have no devices here")
        else:
            mount = _mount(stage, at, value)
            kind = mount.get("type", "bind")
            if kind == "cache":
                caches.append(_cache(stage, mount))
            elif kind == "secret":
                secrets.append(_secret(stage, mount))
            elif kind == "bind":
                binds.append(_bind(stage, mount))
            elif kind == "tmpfs":
                memory.append(Tmpfs(_target(stage, mount), _size(stage, mount)))
            else:
                agents.append(_ssh(stage, mount))
    line, words, script = _command(stage, it)
    if script is not None:
        binds.append(script)
    stage.put(
        Run(
            shell=line, exec=words, cache=tuple(caches), network=network, secrets=tuple(secrets),
            binds=tuple(binds), tmpfs=tuple(memory), ssh=tuple(agents), insecure=insecure,
        )
    )  # fmt: skip


def _command(stage: Stage, it: Instruction) -> tuple[str, tuple[str, ...], Bind | None]:
    """The line for the shell, or the words as they stand, and a script that they need."""
    words = stage.listed(it.rest)
    if words is not None:
        if it.heredocs:
            raise stage.fault(it.rest, "a list of words has no here-documents")
        if not words:
            raise stage.fault(it.whole, "RUN needs a command")
        return "", tuple(word.text for word in words), None
    text = it.rest.text
    if not text:
        raise stage.fault(it.whole, "RUN needs a command")
    if not it.heredocs:
        return text, (), None
    if heredoc(text, "\\") is None:
        return text + "".join(f"\n{doc.content}{doc.name}" for doc in it.heredocs), (), None
    document = it.heredocs[0]
    content = chomped(document.content) if document.chomp else document.content
    if not content.startswith("#!"):
        return content, (), None
    if "/" in document.name or document.name in (".", ".."):
        raise stage.fault(it.rest, f"a script can't be called {document.name!r}")
    ops = (Add((), "/", files=((document.name, content),), permissions="0755"),)
    path = f"{_SCRIPTS}/{document.name}"
    return "", (*(stage.config.shell or SHELL), path), Bind(
        stage.beside("script", ops, "scratch"), _SCRIPTS
    )  # fmt: skip


def _mount(stage: Stage, at: Stretch, text: str) -> _Mount:
    """The fields of a --mount, variables solved, checked against what its type knows."""
    mount = _Mount(at, {})
    for field in _fields(stage, at, text):
        key, sign, value = field.partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        if not sign and key not in ("ro", "rw", "required"):
            raise stage.fault(at, f"{field[:40]!r} in a mount has no =")
        if key == "from" and "$" in value.rstrip("$"):
            raise stage.fault(
                at, "from= takes no variable",
                hint="name the image in a FROM of its own, and that stage here",
            )  # fmt: skip
        try:
            value = expand(value, stage.env, stage.escape) if sign else "true"
        except BadWord as error:
            raise stage.fault(at, str(error)) from None
        if key in ("ro", "rw", "required") and _bool(value) is None:
            raise stage.fault(at, f"{key} is true or false, not {value!r}")
        if key in ("ro", "rw"):
            mount.readonly = _bool(value) == (key == "ro")
            key = "ro"
        if key == "type":
            value = value.lower()
        mount.values[key] = value
    kind = mount.get("type", "bind")
    if kind not in _KEYS:
        raise stage.fault(at, f"there is no mount of the type {kind!r}: {', '.join(_KEYS)}")
    for key in mount.values:
        if key not in _KEYS[kind] | {"type"}:
            raise stage.fault(
                at, f"a {kind} mount has no {key[:40]!r}",
                hint="it has: " + ", ".join(sorted(_KEYS[kind])),
            )  # fmt: skip
    return mount


def _fields(stage: Stage, at: Stretch, text: str) -> list[str]:
    """The fields of one line of CSV."""
    found: list[str] = []
    for quoted, plain, rest in re.findall(r'(?:"((?:[^"]|"")*)"|([^,"]*))(,|$|.)', text):
        if rest not in ("", ","):
            raise stage.fault(at, "a quote in a mount stands around a whole field")
        found.append(quoted.replace('""', '"') if quoted else plain)
        if not rest:
            break
    return [field for field in found if field]


def _bool(text: str) -> bool | None:
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    return False if text in ("0", "f", "F", "false", "FALSE", "False") else None


def _target(stage: Stage, mount: _Mount) -> str:
    return _allowed(stage, mount, mount.get("target"))


def _allowed(stage: Stage, mount: _Mount, text: str) -> str:
    """Where a mount is seen, absolute; never where the sandbox's own things are."""
    if not text:
        raise stage.fault(mount.at, "the mount needs a target")
    path = stage.path(text)
    first = path.split("/")[1]
    if path in ("/", "/etc") or first in ("proc", "sys", "dev"):
        raise stage.fault(
            mount.at, f"nothing can be mounted on {path}",
            hint="/, /etc itself, and all of /proc, /sys and /dev belong to the sandbox",
        )  # fmt: skip
    return path


def _number(stage: Stage, mount: _Mount, name: str, base: int, largest: int) -> int | None:
    text = mount.values.get(name)
    if text is None:
        return None
    try:
        if not text.isascii() or not text.isdecimal() or len(text) > 12:
            raise ValueError
        value = int(text, base)
        if value > largest:
            raise ValueError
    except ValueError:
        raise stage.fault(mount.at, f"{name}={text} is no such number") from None
    return value


def _owner(stage: Stage, mount: _Mount) -> UnixUser:
    uid = _number(stage, mount, "uid", 10, (1 << 32) - 2)
    gid = _number(stage, mount, "gid", 10, (1 << 32) - 2)
    return UnixUser(uid or 0, gid or 0)


def _permissions(stage: Stage, mount: _Mount, otherwise: int) -> int:
    found = _number(stage, mount, "mode", 8, 0o7777)
    return otherwise if found is None else found


def _size(stage: Stage, mount: _Mount) -> int | None:
    text = mount.get("size").lower()
    if not text:
        return None
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([kmgt]?)(i?b)?", text)
    if found is None or not float(found.group(1)):
        raise stage.fault(mount.at, f"{text!r} is no size", hint="write 100m or 1g")
    return max(1, int(float(found.group(1)) * _SIZES[found.group(2)]))


def _cache(stage: Stage, mount: _Mount) -> Cache:
    if mount.get("from") or mount.get("source"):
        raise stage.fault(
            mount.at, "a cache begins empty here: from= and source= can't be honoured",
            hint="fill it in the command, from a bind mount",
        )  # fmt: skip
    target = _target(stage, mount)
    sharing = mount.get("sharing", "shared").lower()
    if sharing not in ("shared", "private", "locked"):
        raise stage.fault(mount.at, f"sharing is shared, private or locked, not {sharing!r}")
    mode = cast("CacheMode", "read-only" if mount.readonly else sharing)
    return Cache(
        mount.get("id") or target, target, mode,
        owner=_owner(stage, mount), permissions=_permissions(stage, mount, 0o755),
    )  # fmt: skip


def _secret(stage: Stage, mount: _Mount) -> Secret:
    if mount.readonly is False:
        raise stage.fault(mount.at, "a secret can't be written to")
    if mount.get("source") and mount.get("id"):
        raise stage.fault(mount.at, "id and source of a secret are the same: give one")
    target, env = mount.get("target"), mount.get("env")
    name = mount.get("id") or mount.get("source") or target.rpartition("/")[2]
    if not name:
        raise stage.fault(mount.at, "a secret needs an id or a target")
    if env and "=" in env:
        raise stage.fault(mount.at, "the name of a variable can't hold =")
    if not target and not env:
        target = f"/run/secrets/{name.rpartition('/')[2]}"
    return Secret(
        name, _allowed(stage, mount, target) if target else "",
        required=_bool(mount.get("required", "false")) is True, env=env,
        owner=_owner(stage, mount), permissions=_permissions(stage, mount, 0o400),
    )  # fmt: skip


def _bind(stage: Stage, mount: _Mount) -> Bind:
    target = _target(stage, mount)
    if ".." in mount.get("source").split("/"):
        raise stage.fault(mount.at, "the source of a mount can't hold ..")
    source = stage.path("/" + mount.get("source"))
    if mount.get("from"):
        build = stage.built(_word(mount, mount.get("from")))
    else:
        # No more of the context than is shown: what else changes in it is nothing to this step.
        build = stage.beside("context", (Add((as_pattern(source),), source),), "scratch")
    return Bind(build, target, source, writable=mount.readonly is False)


def _word(mount: _Mount, text: str) -> Stretch:
    return Stretch(text, [mount.at.start] * len(text) + [mount.at.end])


def _ssh(stage: Stage, mount: _Mount) -> Ssh:
    target = mount.get("target") or "/run/buildkit/ssh_agent.0"
    return Ssh(
        mount.get("id", "default"), _allowed(stage, mount, target),
        _bool(mount.get("required", "false")) is True,
        _owner(stage, mount), _permissions(stage, mount, 0o600),
    )  # fmt: skip


def csv(fields: list[tuple[str, str]]) -> str:
    """Fields of a mount as one line of CSV, as `_fields` reads it."""
    return ",".join(
        '"' + field.replace('"', '""') + '"' if any(sign in field for sign in ',"') else field
        for field in (f"{key}={value}" for key, value in fields)
    )
