"""Spec to text: stable, and what is printed parses to an equal spec."""

from obuilder.spec.model import (
    Cache,
    Comment,
    Copy,
    Env,
    Op,
    Run,
    Secret,
    SetUser,
    Shell,
    Spec,
    Workdir,
)  # fmt: skip
from obuilder.spec.sexp import quote
from obuilder.values import Limits, UnixUser


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
    parts.append([f"(from {quote(spec.base)})"])
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
        case SetUser(UnixUser(uid, gid)):
            return [f"(user (uid {uid}) (gid {gid}))"]
        case SetUser(user):
            return [f"(user (name {quote(user.name)}))"]  # type: ignore[union-attr] # the other kind
        case Env(name, value):
            return [f"(env {quote(name)} {quote(value)})"]
        case Run():
            return _fields("run", _run(op))
        case Copy():
            return _fields("copy", _copy(op))


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
    fields.append(f"(shell {quote(op.shell)})")
    return fields


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
    options = _options(cache.buildkit_options)
    return f"({quote(cache.id)} (target {quote(cache.target)}){mode}{options})"


def _secret(secret: Secret) -> str:
    options = _options(secret.buildkit_options)
    return f"({quote(secret.id)} (target {quote(secret.target)}){options})"


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
