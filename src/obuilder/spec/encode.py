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
from obuilder.spec.sexp import escape, quote
from obuilder.values import Limits, UnixUser

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
    parts.append(_words("from", (spec.base,)))
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
        case SetUser(UnixUser(uid, gid)):
            return [f"(user (uid {uid}) (gid {gid}))"]
        case SetUser(user):
            return _form("user", _words("name", (user.name,)))  # type: ignore[union-attr] # the other kind
        case Env(name, value):
            return _words("env", (name, value))
        case Run():
            return _under("run", _run(op))
        case Copy():
            return _under("copy", _copy(op))


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
    fields.append(_words("shell", (op.shell,)))
    return fields


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
    return _named(cache.id, _words("target", (cache.target,)), *mode, *_options(cache))


def _secret(secret: Secret) -> Block:
    return _named(secret.id, _words("target", (secret.target,)), *_options(secret))


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
