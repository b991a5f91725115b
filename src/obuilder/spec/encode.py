"""Spec to text: stable, and what is printed parses to an equal spec."""

from obuilder.spec.model import (
    Add,
    Ambient,
    Arg,
    Author,
    Bind,
    Built,
    Cache,
    Cmd,
    Comment,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Inherit,
    Label,
    Mkdir,
    Onbuild,
    Op,
    Run,
    Secret,
    SetUser,
    Shell,
    Spec,
    Ssh,
    StopSignal,
    Tmpfs,
    Volume,
    Workdir,
)  # fmt: skip
from obuilder.spec.sexp import quote
from obuilder.values import Limits, UnixUser, User


def print_spec(spec: Spec) -> str:
    """The spec in OBuilder's layout, with a final newline."""
    return "\n".join(_spec(spec)) + "\n"


def heading(op: Op) -> str:
    """One op as the log shows it: a line, or several where fields stand under each other."""
    return "\n".join(_op(op))


def _spec(spec: Spec) -> list[str]:
    parts = [
        _indent(f"(build {quote(name)}", _spec(child), deep=7) for name, child in spec.children
    ]
    base = spec.base
    named = f"(build {quote(base.name)})" if isinstance(base, Built) else quote(base)
    parts.append([f"(from {named})"])
    parts.extend(_op(op) for op in spec.ops)
    lines: list[str] = []
    for index, part in enumerate(parts):
        for position, line in enumerate(part):
            lines.append(("(" if index == 0 and position == 0 else " ") + line)
    lines[-1] += ")"
    return lines


def _indent(first: str, rest: list[str], *, deep: int) -> list[str]:
    lines = [first, *(" " * deep + line for line in rest)]
    lines[-1] += ")"
    return lines


def _op(op: Op) -> list[str]:
    match op:
        case Comment(text):
            return [f"(comment {quote(text)})"]
        case Workdir(path):
            return [f"(workdir {quote(path)})"]
        case Shell(argv):
            return [_form("shell", argv)]
        case SetUser(user):
            return [f"(user {_person(user)})"]
        case Env(name, value):
            return [_form("env", (name, value))]
        case Run():
            return _fields("run", _run(op))
        case Copy():
            return _fields("copy", _copy(op))
        case Add():
            return _fields("add", _add(op))
        case Mkdir(path):
            return [_form("mkdir", (path,))]
        case Arg(name, value):
            return [_form("arg", (name, value))]
        case Ambient(name, value):
            return [_form("ambient", (name, value))]
        case Inherit():
            return ["(inherit)"]
        case Entrypoint(argv):
            return [_form("entrypoint", argv)]
        case Cmd(argv):
            return [_form("cmd", argv)]
        case Label(name, value):
            return [_form("label", (name, value))]
        case Expose(ports):
            return [_form("expose", ports)]
        case Volume(paths):
            return [_form("volume", paths)]
        case StopSignal(signal):
            return [_form("stopsignal", (signal,))]
        case Healthcheck():
            return [_healthcheck(op)]
        case Onbuild(instruction):
            return [_form("onbuild", (instruction,))]
        case Author(name):
            return [_form("author", (name,))]


def _form(name: str, atoms: tuple[str, ...]) -> str:
    return "(" + " ".join([name, *map(quote, atoms)]) + ")"


def _fields(name: str, fields: list[str]) -> list[str]:
    lead = f"({name} "
    lines = [lead + fields[0], *(" " * len(lead) + field for field in fields[1:])]
    lines[-1] += ")"
    return lines


def _run(op: Run) -> list[str]:
    fields = []
    if op.cache:
        fields.append("(cache " + " ".join(map(_cache, op.cache)) + ")")
    if op.network:
        fields.append(_form("network", op.network))
    if op.secrets:
        fields.append("(secrets " + " ".join(map(_secret, op.secrets)) + ")")
    if op.limits != Limits():
        fields.append("(limits " + " ".join(_limits(op.limits)) + ")")
    if op.binds:
        fields.append("(binds " + " ".join(map(_bind, op.binds)) + ")")
    if op.tmpfs:
        fields.append("(tmpfs " + " ".join(map(_tmpfs, op.tmpfs)) + ")")
    if op.ssh:
        fields.append("(ssh " + " ".join(map(_ssh, op.ssh)) + ")")
    if op.insecure:
        fields.append("(insecure)")
    fields.append(_form("exec", op.exec) if op.exec else f"(shell {quote(op.shell)})")
    return fields


def _person(user: User) -> str:
    if isinstance(user, UnixUser):
        return f"(uid {user.uid}) (gid {user.gid})"
    return f"(name {quote(user.name)})"


def _file(owner: UnixUser | None, permissions: int | None) -> str:
    """Who has a file, and what may be done with it, where the step's op says that."""
    told = f" (owner {_person(owner)})" if owner is not None else ""
    return told + (f" (permissions {permissions:04o})" if permissions is not None else "")


def _bind(bind: Bind) -> str:
    source = f" (source {quote(bind.source)})" if bind.source != "/" else ""
    writable = " (writable)" if bind.writable else ""
    return f"({quote(bind.build)} (target {quote(bind.target)}){source}{writable})"


def _tmpfs(tmpfs: Tmpfs) -> str:
    return f"({quote(tmpfs.target)}" + (f" (size {tmpfs.size}))" if tmpfs.size else ")")


def _ssh(ssh: Ssh) -> str:
    optional = "" if ssh.required else " (optional)"
    more = optional + _file(ssh.owner, ssh.permissions)
    return f"({quote(ssh.id)} (target {quote(ssh.target)}){more})"


def _healthcheck(check: Healthcheck) -> str:
    head, *words = check.test
    name = {"NONE": "none", "CMD": "exec", "CMD-SHELL": "shell"}[head]
    waits = (
        ("interval", check.interval), ("timeout", check.timeout),
        ("start_period", check.start_period), ("start_interval", check.start_interval),
    )  # fmt: skip
    fields = [f"({wait} {duration(value)})" for wait, value in waits if value]
    if check.retries:
        fields.append(f"(retries {check.retries})")
    return "(" + " ".join(["healthcheck", *fields, _form(name, tuple(words))]) + ")"


def duration(nanoseconds: int) -> str:
    """A time in the largest unit that it is a whole number of."""
    for unit, size in (("h", 3600 * 10**9), ("m", 60 * 10**9), ("s", 10**9), ("ms", 10**6)):
        if nanoseconds % size == 0:
            return f"{nanoseconds // size}{unit}"
    return f"{nanoseconds}ns"


def _limits(limits: Limits) -> list[str]:
    named = (
        ("memory", limits.memory), ("cpus", limits.cpus), ("pids", limits.pids),
        ("time", limits.seconds), ("log", limits.log),
    )  # fmt: skip
    return [f"({name} {_number(value)})" for name, value in named if value is not None]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _cache(cache: Cache) -> str:
    mode = "" if cache.mode == "private" else f" (mode {cache.mode})"
    options = _options(cache.buildkit_options) + _file(cache.owner, cache.permissions)
    return f"({quote(cache.id)} (target {quote(cache.target)}){mode}{options})"


def _secret(secret: Secret) -> str:
    target = f" (target {quote(secret.target)})" if secret.target else ""
    options = _options(secret.buildkit_options)
    options += f" (env {quote(secret.env)})" if secret.env else ""
    options += "" if secret.required else " (optional)"
    options += _file(secret.owner, secret.permissions)
    return f"({quote(secret.id)}{target}{options})"


def _options(options: tuple[tuple[str, str], ...]) -> str:
    if not options:
        return ""
    pairs = " ".join(f"({quote(key)} {quote(value)})" for key, value in options)
    return f" (buildkit_options ({pairs}))"


def _copy(op: Copy) -> list[str]:
    fields = []
    if op.build is not None:
        fields.append(f"(from (build {quote(op.build)}))")
    fields.append(_form("src", op.src))
    fields.append(f"(dst {quote(op.dst)})")
    if op.exclude:
        fields.append(_form("exclude", op.exclude))
    return fields


def _add(op: Add) -> list[str]:
    fields = []
    if op.build is not None:
        fields.append(f"(from (build {quote(op.build)}))")
    if op.context is not None:
        fields.append(f"(from (context {quote(op.context)}))")
    if op.src:
        fields.append(_form("src", op.src))
    if op.files:
        files = " ".join(f"({quote(name)} {quote(content)})" for name, content in op.files)
        fields.append(f"(text {files})")
    fields.append(f"(dst {quote(op.dst)})")
    if op.owner is not None:
        fields.append(f"(owner {_person(op.owner)})")
    if op.permissions:
        fields.append(f"(permissions {quote(op.permissions)})")
    if op.exclude:
        fields.append(_form("exclude", op.exclude))
    named = (("parents", op.parents), ("link", op.link), ("unpack", op.unpack))
    fields.extend(f"({name})" for name, said in named if said)
    return fields
