"""Text to Spec: the grammar, with every fault it can find, each with its place."""

from collections.abc import Callable

from msgspec import Struct

from obuilder.errors import SpecError, SpecErrors
from obuilder.spec.model import (
    Cache,
    CacheMode,
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
from obuilder.spec.sexp import Atom, List, Sexp, Source, read
from obuilder.values import Limits, NamedUser, OpPath, Span, UnixUser

_DEPTH = 64
_MODES: tuple[CacheMode, ...] = ("private", "locked", "shared", "append", "read-only")
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Document(Struct, frozen=True):
    """A spec and where each of its ops stands in the text it came from."""

    spec: Spec
    spans: dict[OpPath, Span]


def parse(text: bytes, *, file: str) -> Document:
    """The spec in `text`; `file` is its name for messages. SpecErrors with all that is wrong."""
    source = Source(text, file)
    try:
        tree = read(source)
    except SpecError as error:
        raise SpecErrors([error]) from None
    decoder = _Decoder(source)
    spec = decoder.spec(tree, (), ())
    if decoder.errors or spec is None:
        raise SpecErrors(sorted(decoder.errors, key=lambda e: e.span.start if e.span else 0))
    return Document(spec, decoder.spans)


class _Bad(Exception):  # never leaves this module
    """A fault was noted; this form can't be read."""


class _Decoder:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.errors: list[SpecError] = []
        self.spans: dict[OpPath, Span] = {}

    # --- faults -----------------------------------------------------------------------------

    def fault(self, node: Sexp, message: str, *, hint: str | None = None) -> _Bad:
        self.errors.append(self.source.error(message, node.start, node.end, hint=hint))
        return _Bad()

    def guess(self, name: str, known: "tuple[str, ...] | list[str]") -> str | None:
        from difflib import get_close_matches

        close = get_close_matches(name.lower(), known, n=1)
        if close:
            return f"did you mean {close[0]!r}?"
        return ("known here: " + ", ".join(known)) if known else None

    # --- small pieces -------------------------------------------------------------------------

    def atom(self, node: Sexp, what: str) -> str:
        if isinstance(node, List):
            raise self.fault(node, f"{what} must be one word or string, not a list")
        return node.text

    def one(self, form: List, name: str, items: list[Sexp]) -> str:
        if len(items) != 1:
            raise self.fault(
                form,
                f"({name} …) takes exactly one argument, here are {len(items)}",
                hint="put text with blanks in double quotes" if len(items) > 1 else None,
            )
        return self.atom(items[0], f"the argument of {name}")

    def head(self, node: Sexp, what: str) -> tuple[str, List]:
        if isinstance(node, Atom):
            raise self.fault(node, f"{what} must be a list: (name …), not the word {node.text!r}")
        if not node.items:
            raise self.fault(node, f"{what} must be a list that begins with a name, not ()")
        first = node.items[0]
        if isinstance(first, List):
            raise self.fault(first, f"{what} must begin with a name, not with a list")
        return first.text, node

    def integer(self, node: Sexp, what: str) -> int:
        text = self.atom(node, what)
        digits = text.replace("_", "")
        sign = -1 if digits.startswith("-") else 1
        digits = digits.removeprefix("-") if sign < 0 else digits.removeprefix("+")
        base = {"0x": 16, "0o": 8, "0b": 2, "0u": 10}.get(digits[:2].lower(), 10)
        if digits[:2].lower() in ("0x", "0o", "0b", "0u"):
            digits = digits[2:]
        try:
            if not digits.isascii() or not digits.isalnum() or len(digits) > 80:
                raise ValueError
            value = sign * int(digits, base)
        except ValueError:
            raise self.fault(node, f"{what} must be a whole number, not {text[:80]!r}") from None
        if not 0 <= value < 1 << 32:
            raise self.fault(node, f"{what} must be from 0 to 4294967295")
        return value

    def measure(self, node: Sexp, what: str, units: dict[str, int]) -> float:
        text = self.atom(node, what).lower()
        number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = text[len(number) :].removesuffix("ib").removesuffix("b" if len(units) > 4 else "")
        try:
            if unit not in units or not number.isascii() or len(number) > 30:
                raise ValueError
            value = float(number) * units[unit]
            if not 0 < value < 1e18:
                raise ValueError
        except ValueError:
            names = ", ".join(name for name in units if name)
            raise self.fault(
                node, f"{what} must be a positive number, with a unit if you like: {names}"
            ) from None
        return value

    # --- specs ------------------------------------------------------------------------------------

    def spec(self, node: Sexp, path: OpPath, outer: tuple[str, ...]) -> Spec | None:
        """One spec; None after a fault that leaves no spec. `outer` are the builds in sight."""
        if isinstance(node, Atom):
            self.fault(node, "a spec is a list: ((from IMAGE) …)")
            return None
        if len(path) > _DEPTH:
            self.fault(node, f"builds are nested more than {_DEPTH} deep")
            return None
        children: list[tuple[str, Spec]] = []
        ops: list[Op] = []
        base: str | None = None
        bad_base = False
        scope = outer
        for item in node.items:
            try:
                name, form = self.head(item, "an operation")
                if name == "build":
                    if base is not None or bad_base:
                        raise self.fault(form, "(build …) must stand before (from …)")
                    child_name, child = self.build(form, (*path, len(children)), scope)
                    scope = (*scope, child_name)
                    if child is not None:
                        children.append((child_name, child))
                elif name == "from":
                    if base is not None or bad_base:
                        raise self.fault(form, "a second (from …) in one build")
                    bad_base = True
                    base = self.one(form, "from", form.items[1:])
                    self.spans[(*path, -1)] = self.source.span(form.start, form.end)
                elif base is None and not bad_base:
                    raise self.fault(
                        form,
                        f"({name} …) before (from …)" if name != "From" else "write (from …) small",
                        hint="only (build …) may stand before (from …)",
                    )
                else:
                    self.spans[(*path, len(ops))] = self.source.span(form.start, form.end)
                    ops.append(self.op(name, form, scope))
            except _Bad:
                continue
        if base is None:
            if not bad_base:
                self.fault(node, "missing (from IMAGE)", hint="for example (from scratch)")
            return None
        return Spec(base=base, ops=tuple(ops), children=tuple(children))

    def build(self, form: List, path: OpPath, scope: tuple[str, ...]) -> tuple[str, Spec | None]:
        if len(form.items) != 3:
            raise self.fault(form, "a nested build is (build NAME ((from IMAGE) …))")
        name = self.atom(form.items[1], "the name of a build")
        return name, self.spec(form.items[2], path, scope)

    def op(self, name: str, form: List, scope: tuple[str, ...]) -> Op:
        readers: dict[str, Callable[[List, list[Sexp]], Op]] = {
            "comment": lambda f, a: Comment(self.one(f, "comment", a)),
            "workdir": lambda f, a: Workdir(self.one(f, "workdir", a)),
            "shell": lambda _, a: Shell(tuple(self.atom(i, "a word of the shell") for i in a)),
            "env": self.env,
            "user": self.user,
            "run": self.run,
            "copy": lambda f, a: self.copy(f, a, scope),
        }
        small = name[:1].lower() + name[1:]
        reader = readers.get(small)
        if reader is None:
            if name.lower() == "from":
                raise self.fault(form, "a second (from …) in one build")
            raise self.fault(
                form.items[0], f"unknown operation {name!r}", hint=self.guess(name, [*readers])
            )
        arguments = form.items[1:]
        if name != small and small in ("run", "copy", "user", "env"):
            # OBuilder's other spelling: (Run ((shell x))), one more pair of parentheses.
            if len(arguments) != 1 or not isinstance(arguments[0], List):
                raise self.fault(
                    form,
                    f"({name} …) takes its fields in one more pair of parentheses",
                    hint=f"or write ({small} …)",
                )
            arguments = arguments[0].items
        return reader(form, arguments)

    # --- ops ----------------------------------------------------------------------------------------

    def env(self, form: List, arguments: list[Sexp]) -> Op:
        if len(arguments) != 2:
            raise self.fault(
                form, f"(env NAME VALUE) takes two arguments, here are {len(arguments)}",
                hint="put a value with blanks in double quotes" if len(arguments) > 2 else None,
            )  # fmt: skip
        name = self.atom(arguments[0], "the name of a variable")
        if not name or "=" in name or "\0" in name:
            raise self.fault(arguments[0], "the name of a variable can't be empty or hold = or NUL")
        value = self.atom(arguments[1], "the value of a variable")
        if "\0" in value:
            raise self.fault(arguments[1], "the value of a variable can't hold NUL")
        return Env(name, value)

    def user(self, form: List, arguments: list[Sexp]) -> Op:
        hint = "write (user (uid 1000) (gid 1000)) or, for Windows, (user (name NAME))"
        fields = self.fields(form, arguments, "user", ("uid", "gid", "name"))
        if set(fields) == {"uid", "gid"}:
            uid, gid = (
                self.integer(self.single(fields[name]), f"the {name}") for name in ("uid", "gid")
            )
            return SetUser(UnixUser(uid, gid))
        if set(fields) == {"name"}:
            return SetUser(NamedUser(self.atom(self.single(fields["name"]), "the user's name")))
        raise self.fault(form, "a user is a uid and a gid, or a name", hint=hint)

    def single(self, form: List) -> Sexp:
        if len(form.items) != 2:
            name = self.atom(form.items[0], "a field")
            raise self.fault(form, f"({name} …) takes exactly one argument")
        return form.items[1]

    def fields(
        self, form: List, arguments: list[Sexp], what: str, known: tuple[str, ...]
    ) -> dict[str, List]:
        found: dict[str, List] = {}
        bad = False
        for argument in arguments:
            try:
                name, field = self.head(argument, f"a field of {what}")
                if name not in known:
                    raise self.fault(
                        field.items[0], f"{what} has no field {name!r}",
                        hint=self.guess(name, known),
                    )  # fmt: skip
                if name in found:
                    raise self.fault(field, f"a second ({name} …) in one {what}")
                found[name] = field
            except _Bad:
                bad = True
        if bad:
            raise _Bad
        del form
        return found

    def atoms(self, fields: dict[str, List], name: str) -> tuple[str, ...]:
        form = fields.get(name)
        if form is None:
            return ()
        return tuple(
            self.atom(item, f"each item of {name} (they stand side by side)")
            for item in form.items[1:]
        )

    def run(self, form: List, arguments: list[Sexp]) -> Op:
        known = ("cache", "network", "secrets", "limits", "shell")
        fields = self.fields(form, arguments, "run", known)
        if "shell" not in fields:
            raise self.fault(form, 'run needs its command: (run (shell "…"))')
        shell = fields["shell"]
        if len(shell.items) != 2:
            raise self.fault(
                shell, f"the command of run is one string, here are {len(shell.items) - 1} words",
                hint="put the whole command in double quotes",
            )  # fmt: skip
        command = self.atom(shell.items[1], "the command")
        if "\0" in command:
            raise self.fault(shell.items[1], "a command can't hold NUL")
        caches = [self.cache(item) for item in self.rest(fields, "cache")]
        secrets = [self.secret(item) for item in self.rest(fields, "secrets")]
        return Run(
            shell=command,
            cache=tuple(caches),
            network=self.atoms(fields, "network"),
            secrets=tuple(secrets),
            limits=self.limits(fields),
        )

    def rest(self, fields: dict[str, List], name: str) -> list[Sexp]:
        form = fields.get(name)
        return [] if form is None else form.items[1:]

    def named(
        self, node: Sexp, what: str, known: tuple[str, ...]
    ) -> tuple[str, dict[str, List], List]:
        name, form = self.head(node, f"a {what}")
        return name, self.fields(form, form.items[1:], what, known), form

    def target(self, node: Sexp, what: str) -> str:
        path = self.atom(node, f"the target of a {what}")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not path.startswith("/") and path[1:3] not in (":/", ":\\"):
            raise self.fault(node, f"the target of a {what} must be an absolute path")
        if ".." in parts or "\0" in path:
            raise self.fault(node, f"the target of a {what} can't hold .. or NUL")
        if not parts or parts[0] in ("proc", "sys", "dev") or parts == ["etc"]:
            raise self.fault(
                node, f"the target of a {what} can't be {path}",
                hint="/, /etc itself, and all of /proc, /sys and /dev belong to the sandbox",
            )  # fmt: skip
        return path

    def cache(self, node: Sexp) -> Cache:
        name, fields, form = self.named(node, "cache", ("target", "mode", "buildkit_options"))
        if "target" not in fields:
            raise self.fault(form, "a cache needs its target: (cache (ID (target PATH)))")
        target = self.target(self.single(fields["target"]), "cache")
        mode: CacheMode = "private"
        if "mode" in fields:
            node = self.single(fields["mode"])
            word = self.atom(node, "the mode of a cache")
            found = [known for known in _MODES if known == word]
            if not found:
                raise self.fault(
                    node, f"no cache has the mode {word!r}", hint=self.guess(word, _MODES)
                )
            mode = found[0]
        return Cache(name, target, mode, self.options(fields))

    def secret(self, node: Sexp) -> Secret:
        name, fields, form = self.named(node, "secret", ("target", "buildkit_options"))
        if "target" in fields:
            target = self.target(self.single(fields["target"]), "secret")
        elif "/" in name or name in (".", ".."):
            raise self.fault(form, "a secret with such a name needs a (target PATH)")
        else:
            target = f"/run/secrets/{name}"
        return Secret(name, target, self.options(fields))

    def options(self, fields: dict[str, List]) -> tuple[tuple[str, str], ...]:
        if "buildkit_options" not in fields:
            return ()
        node = self.single(fields["buildkit_options"])
        if isinstance(node, Atom):
            raise self.fault(node, "buildkit_options are (buildkit_options ((KEY VALUE) …))")
        pairs = []
        for item in node.items:
            if isinstance(item, Atom) or len(item.items) != 2:
                raise self.fault(item, "each buildkit option is (KEY VALUE)")
            key, value = item.items
            pairs.append((self.atom(key, "an option"), self.atom(value, "an option's value")))
        return tuple(pairs)

    def limits(self, fields: dict[str, List]) -> Limits:
        if "limits" not in fields:
            return Limits()
        form = fields["limits"]
        known = ("memory", "cpus", "pids", "time", "log")
        found = self.fields(form, form.items[1:], "limits", known)
        values = {
            name: self.measure(
                self.single(field), f"the limit {name}",
                _TIMES if name == "time" else _SIZES if name in ("memory", "log") else {"": 1},
            )
            for name, field in found.items()
        }  # fmt: skip

        def whole(name: str) -> int | None:
            return max(1, int(values[name])) if name in values else None

        return Limits(
            memory=whole("memory"), cpus=values.get("cpus"), pids=whole("pids"),
            seconds=values.get("time"), log=whole("log"),
        )  # fmt: skip

    def copy(self, form: List, arguments: list[Sexp], scope: tuple[str, ...]) -> Op:
        fields = self.fields(form, arguments, "copy", ("from", "src", "dst", "exclude"))
        for needed in ("src", "dst"):
            if needed not in fields:
                raise self.fault(form, f"copy needs ({needed} …)")
        build = None if "from" not in fields else self.origin(self.single(fields["from"]), scope)
        dst = self.single(fields["dst"])
        op = Copy(
            src=self.atoms(fields, "src"),
            dst=self.atom(dst, "the destination"),
            build=build,
            exclude=self.atoms(fields, "exclude"),
        )
        self.check_copy(op, fields["src"], dst)
        return op

    def check_copy(self, op: Copy, src: List, dst: Sexp) -> None:
        if not op.src:
            raise self.fault(src, "no source items for copy", hint="(src .) copies everything")
        if len(op.src) > 1 and not op.dst.endswith("/"):
            raise self.fault(
                dst, "when copying several items, the destination must end with /",
                hint=f'write (dst "{op.dst}/")',
            )  # fmt: skip
        for text, node in zip(op.src, src.items[1:], strict=True):
            if ".." in text.split("/") or "\0" in text:
                raise self.fault(
                    node, f"can't use .. in source paths, as in {text!r}",
                    hint="sources are inside the build context",
                )  # fmt: skip
        if "\0" in op.dst:
            raise self.fault(dst, "a path can't hold NUL")

    def origin(self, node: Sexp, scope: tuple[str, ...]) -> str | None:
        if isinstance(node, Atom):
            if node.text == "context":
                return None
            raise self.fault(
                node, f"copy can't copy from {node.text!r}",
                hint="write (from (build NAME)), or (from context)",
            )  # fmt: skip
        name, form = self.head(node, "the source of a copy")
        if name != "build" or len(form.items) != 2:
            raise self.fault(form, "a copy's source is context or (build NAME)")
        build = self.atom(form.items[1], "the name of a build")
        if build not in scope:
            raise self.fault(
                form.items[1], f"unknown build {build!r}",
                hint=self.guess(build, scope) or "no build is in sight here",
            )  # fmt: skip
        return build
