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
from obuilder.spec.sexp import escape, quote
from obuilder.values import Limits, UnixUser, User

Block = list[str]
"""Lines that stand under each other, without the indentation that they have in common."""


def print_spec(spec: Spec) -> str:
    """The spec in OBuilder's layout, with a final newline."""
    return "\n".join(_spec(spec)) + "\n"


def heading(op: Op) -> str:
    """One op as the log shows it: a line, or several where fields or a string's lines stand so."""
    return "\n".join(_op(op))


def one_line(heading: str) -> str:
    """A heading of several lines as one, for lists."""
    first, *others = heading.split("\n")
    for line in others:
        # A string that goes on in the next line ends with a backslash.
        first = first[:-1] + line.lstrip() if first.endswith("\\") else f"{first} {line.lstrip()}"
    return first


def _spec(spec: Spec) -> Block:
    parts: list[Block] = []
    for name, child in spec.children:
        lines = [f"(build {quote(name)}", *(" " * 7 + line for line in _spec(child))]
        parts.append([*lines[:-1], lines[-1] + ")"])
    base = spec.base
    parts.append(
        _form("from", _words("build", (base.name,)))
        if isinstance(base, Built)
        else _words("from", (base,))
    )
    parts.extend(_op(op) for op in spec.ops)
    lines = [" " + line for part in parts for line in part]
    lines[0] = "(" + lines[0][1:]
    lines[-1] += ")"
    return lines


def _atom(text: str) -> Block:
    """A word; a text of several lines with each of them in a line of its own."""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) == 1:
        return [quote(text)]
    if text.endswith("\n"):
        lines[-1] += "\n"
    # Each line ends with a backslash, which joins it to the next; that begins with the line end.
    shown = [("\\n" if index else '"') + escape(line) for index, line in enumerate(lines)]
    return [*(line + "\\" for line in shown[:-1]), shown[-1] + '"']


def _form(name: str, *parts: Block) -> Block:
    """(name part part …), side by side."""
    lines = [f"({name}"]
    for part in parts:
        indent = len(lines[-1])
        lines[-1] += " " + part[0]
        # The lines of a string stand a column to the left, so that their text is in line.
        lines.extend(
            " " * (indent if line.startswith("\\n") else indent + 1) + line for line in part[1:]
        )
    lines[-1] += ")"
    return lines


def _under(name: str, fields: list[Block]) -> Block:
    """(name field …), the fields under each other."""
    return _form(name, [line for field in fields for line in field])


def _words(name: str, words: tuple[str, ...]) -> Block:
    return _form(name, *map(_atom, words))


def _op(op: Op) -> Block:
    match op:
        case Comment(text):
            return _words("comment", (text,))
        case Workdir(path):
            return _words("workdir", (path,))
        case Shell(argv):
            return _words("shell", argv)
        case SetUser(user):
            return _form("user", *_person(user))
        case Env(name, value):
            return _words("env", (name, value))
        case Run():
            return _under("run", _run(op))
        case Copy():
            return _under("copy", _copy(op))
        case Add():
            return _under("add", _add(op))
        case Mkdir(path):
            return _words("mkdir", (path,))
        case Arg(name, value):
            return _words("arg", (name, value))
        case Ambient(name, value):
            return _words("ambient", (name, value))
        case Inherit():
            return ["(inherit)"]
        case Entrypoint(argv):
            return _words("entrypoint", argv)
        case Cmd(argv):
            return _words("cmd", argv)
        case Label(name, value):
            return _words("label", (name, value))
        case Expose(ports):
            return _words("expose", ports)
        case Volume(paths):
            return _words("volume", paths)
        case StopSignal(signal):
            return _words("stopsignal", (signal,))
        case Healthcheck():
            return _healthcheck(op)
        case Onbuild(instruction):
            return _words("onbuild", (instruction,))
        case Author(name):
            return _words("author", (name,))


def _run(op: Run) -> list[Block]:
    fields = []
    if op.cache:
        fields.append(_form("cache", *map(_cache, op.cache)))
    if op.network:
        fields.append(_words("network", op.network))
    if op.secrets:
        fields.append(_form("secrets", *map(_secret, op.secrets)))
    if op.limits != Limits():
        fields.append(_form("limits", *_limits(op.limits)))
    if op.binds:
        fields.append(_form("binds", *map(_bind, op.binds)))
    if op.tmpfs:
        fields.append(_form("tmpfs", *map(_tmpfs, op.tmpfs)))
    if op.ssh:
        fields.append(_form("ssh", *map(_ssh, op.ssh)))
    if op.insecure:
        fields.append(["(insecure)"])
    fields.append(_words("exec", op.exec) if op.exec else _words("shell", (op.shell,)))
    return fields


def _person(user: User) -> list[Block]:
    if isinstance(user, UnixUser):
        return [[f"(uid {user.uid})"], [f"(gid {user.gid})"]]
    return [_words("name", (user.name,))]


def _file(owner: UnixUser | None, permissions: int | None) -> list[Block]:
    """Who has a file, and what may be done with it, where the step's op says that."""
    told = [] if owner is None else [_form("owner", *_person(owner))]
    return told if permissions is None else [*told, [f"(permissions {permissions:04o})"]]


def _said(**flags: bool) -> list[Block]:
    """Those flags that are said."""
    return [[f"({name})"] for name, said in flags.items() if said]


def _bind(bind: Bind) -> Block:
    source = [] if bind.source == "/" else [_words("source", (bind.source,))]
    target = _words("target", (bind.target,))
    return _named(bind.build, target, *source, *_said(writable=bind.writable))


def _tmpfs(tmpfs: Tmpfs) -> Block:
    return _named(tmpfs.target, *([[f"(size {tmpfs.size})"]] if tmpfs.size else []))


def _ssh(ssh: Ssh) -> Block:
    more = [*_said(optional=not ssh.required), *_file(ssh.owner, ssh.permissions)]
    return _named(ssh.id, _words("target", (ssh.target,)), *more)


def _healthcheck(check: Healthcheck) -> Block:
    head, *words = check.test
    name = {"NONE": "none", "CMD": "exec", "CMD-SHELL": "shell"}[head]
    waits = (
        ("interval", check.interval), ("timeout", check.timeout),
        ("start_period", check.start_period), ("start_interval", check.start_interval),
    )  # fmt: skip
    fields = [[f"({wait} {duration(value)})"] for wait, value in waits if value]
    if check.retries:
        fields.append([f"(retries {check.retries})"])
    return _form("healthcheck", *fields, _words(name, tuple(words)))


def duration(nanoseconds: int) -> str:
    """A time in the largest unit that it is a whole number of."""
    for unit, size in (("h", 3600 * 10**9), ("m", 60 * 10**9), ("s", 10**9), ("ms", 10**6)):
        if nanoseconds % size == 0:
            return f"{nanoseconds // size}{unit}"
    return f"{nanoseconds}ns"


def _limits(limits: Limits) -> list[Block]:
    named = (
        ("memory", limits.memory), ("cpus", limits.cpus), ("pids", limits.pids),
        ("time", limits.seconds), ("log", limits.log),
    )  # fmt: skip
    return [_words(name, (_number(value),)) for name, value in named if value is not None]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _cache(cache: Cache) -> Block:
    mode = [] if cache.mode == "private" else [_words("mode", (cache.mode,))]
    more = [*mode, *_options(cache), *_file(cache.owner, cache.permissions)]
    return _named(cache.id, _words("target", (cache.target,)), *more)


def _secret(secret: Secret) -> Block:
    parts = [_words("target", (secret.target,))] if secret.target else []
    parts += _options(secret)
    parts += [_words("env", (secret.env,))] if secret.env else []
    parts += [*_said(optional=not secret.required), *_file(secret.owner, secret.permissions)]
    return _named(secret.id, *parts)


def _named(name: str, *parts: Block) -> Block:
    return _form(quote(name), *parts)


def _options(mount: Cache | Secret) -> list[Block]:
    if not mount.buildkit_options:
        return []
    pairs = [_named(key, [quote(value)])[0] for key, value in mount.buildkit_options]
    return [[f"(buildkit_options ({' '.join(pairs)}))"]]


def _copy(op: Copy) -> list[Block]:
    fields = []
    if op.build is not None:
        fields.append(_form("from", _words("build", (op.build,))))
    fields.append(_words("src", op.src))
    fields.append(_words("dst", (op.dst,)))
    if op.exclude:
        fields.append(_words("exclude", op.exclude))
    return fields


def _add(op: Add) -> list[Block]:
    fields = []
    if op.build is not None:
        fields.append(_form("from", _words("build", (op.build,))))
    if op.context is not None:
        fields.append(_form("from", _words("context", (op.context,))))
    if op.src:
        fields.append(_words("src", op.src))
    if op.files:
        texts = (_named(name, _atom(content)) for name, content in op.files)
        fields.append(_under("text", list(texts)))
    fields.append(_words("dst", (op.dst,)))
    if op.owner is not None:
        fields.append(_form("owner", *_person(op.owner)))
    if op.permissions:
        fields.append(_words("permissions", (op.permissions,)))
    if op.exclude:
        fields.append(_words("exclude", op.exclude))
    return fields + _said(parents=op.parents, link=op.link, unpack=op.unpack)
