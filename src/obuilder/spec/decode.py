"""Text to Spec: the grammar, with every fault it can find, each with its place."""

from collections.abc import Callable

from msgspec import Struct

from obuilder.errors import SpecError, SpecErrors
from obuilder.spec.forms import PLAIN, SIZES, TIMES, Bad, Forms, number
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
_DOUBLED = ("run", "copy", "user", "env")
"""Ops whose capitalised form takes its fields in one more pair of parentheses, as OBuilder's does."""


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
    spec = decoder.spec(tree, ())
    if decoder.errors or spec is None:
        raise SpecErrors(sorted(decoder.errors, key=lambda e: e.span.start if e.span else 0))
    return Document(spec, decoder.spans)


class _Decoder(Forms):
    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.spans: dict[OpPath, Span] = {}
        self.sight: dict[str, int] = {}
        """The builds that can be copied from where the decoder is, with how many bear each name."""
        self.ops: dict[str, Callable[[List, list[Sexp]], Op]] = {
            "comment": lambda form, found: Comment(self.argument(form, found, self.atom)),
            "workdir": lambda form, found: Workdir(self.argument(form, found, self.text)),
            "shell": self.shell,
            "env": self.env,
            "user": self.user,
            "run": self.run,
            "copy": self.copy,
        }

    # --- specs --------------------------------------------------------------------------------

    def spec(self, node: Sexp, path: OpPath) -> Spec | None:
        """One spec; None after a fault that leaves no spec."""
        if isinstance(node, Atom):
            self.fault(node, f"a spec is a list: ((from IMAGE) …), not the word {node.text[:40]!r}")
            return None
        if len(path) > _DEPTH:
            self.fault(node, f"builds are nested more than {_DEPTH} deep")
            return None
        first = node.items[0] if node.items else None
        if isinstance(first, Atom) and first.text in ("from", "build", *self.ops):
            self.fault(
                node, "a spec is a list of operations, not one operation",
                hint="put one more pair of parentheses around: ((from IMAGE) …)",
            )  # fmt: skip
            return None
        children: list[tuple[str, Spec]] = []
        ops: list[Op] = []
        base: str | None = None
        names: list[str] = []
        for item in node.items:
            try:
                name, form = self.head(item, "an operation")
                if name == "build":
                    if base is not None:
                        raise self.fault(form, "(build …) must stand before (from …)")
                    child_name, child = self.build(form, (*path, len(children)))
                    names.append(child_name)
                    self.sight[child_name] = self.sight.get(child_name, 0) + 1
                    if child is not None:
                        children.append((child_name, child))
                elif name == "from":
                    if base is not None:
                        raise self.fault(form, "a second (from …) in one build")
                    self.spans[*path, -1] = self.source.span(form.start, form.end)
                    base = ""  # even if it can't be read: what follows stands behind a from
                    base = self.argument(form, form.items[1:], self.text)
                else:
                    if base is None:
                        self.early(name, form)
                    self.spans[*path, len(ops)] = self.source.span(form.start, form.end)
                    ops.append(self.op(name, form))
            except Bad:
                continue
        for name in names:
            self.sight[name] -= 1
            if not self.sight[name]:
                del self.sight[name]
        if base is None:
            if not any(_named(item, "From") for item in node.items):
                self.fault(node, "missing (from IMAGE)", hint="for example (from scratch)")
            return None
        return Spec(base=base, ops=tuple(ops), children=tuple(children))

    def early(self, name: str, form: List) -> None:
        """Note an operation that stands before the base image."""
        if name.lower() in ("from", "build"):
            raise self.fault(form.items[0], f"write ({name.lower()} …) in small letters")
        if name[:1].lower() + name[1:] in self.ops:
            self.fault(
                form.items[0], f"({name} …) before (from …)",
                hint="only (build …) may stand before (from …)",
            )  # fmt: skip

    def build(self, form: List, path: OpPath) -> tuple[str, Spec | None]:
        if len(form.items) != 3:
            raise self.fault(form, "a nested build is (build NAME ((from IMAGE) …))")
        name = self.atom(form.items[1], "the name of a build")
        return name, self.spec(form.items[2], path)

    def op(self, name: str, form: List) -> Op:
        small = name[:1].lower() + name[1:]
        reader = self.ops.get(small)
        if reader is None:
            if name.lower() == "from":
                raise self.fault(form, "a second (from …) in one build")
            if name.lower() == "build":
                raise self.fault(form, "(build …) must stand before (from …)")
            raise self.fault(
                form.items[0], f"unknown operation {name!r}", hint=self.guess(name, self.ops)
            )
        arguments = form.items[1:]
        if name != small and small in _DOUBLED:
            if len(arguments) != 1 or not isinstance(arguments[0], List):
                raise self.fault(
                    form, f"({name} …) takes its fields in one more pair of parentheses",
                    hint=f"or write ({small} …)",
                )  # fmt: skip
            arguments = arguments[0].items
        elif len(arguments) == 1 and small in _DOUBLED and _is_doubled(arguments[0]):
            raise self.fault(
                arguments[0], f"({name} …) takes its fields without more parentheses",
                hint=f"write ({name} (…) (…)) in place of ({name} ((…) (…)))",
            )  # fmt: skip
        return self.whole(lambda: reader(form, arguments))

    # --- ops ----------------------------------------------------------------------------------

    def argument(self, form: List, arguments: list[Sexp], read: Callable[[Sexp, str], str]) -> str:
        name = self.atom(form.items[0], "the name of an operation")
        if len(arguments) != 1:
            raise self.fault(
                form,
                f"({name} …) takes exactly one argument, here {number(len(arguments))}",
                hint="put text with blanks in double quotes" if len(arguments) > 1 else None,
            )
        return read(arguments[0], f"the argument of {name}")

    def shell(self, form: List, arguments: list[Sexp]) -> Op:
        what = "each argument of shell"
        return Shell(tuple(self.each(arguments, lambda node: self.text(node, what))))

    def env(self, form: List, arguments: list[Sexp]) -> Op:
        if len(arguments) != 2:
            raise self.fault(
                form, f"(env NAME VALUE) takes two arguments, here {number(len(arguments))}",
                hint="put a value with blanks in double quotes" if len(arguments) > 2 else None,
            )  # fmt: skip
        name = self.part(lambda: self.text(arguments[0], "the name of a variable"), "A")
        if not name or "=" in name:
            self.fault(arguments[0], "the name of a variable can't be empty or hold =")
        return Env(name, self.text(arguments[1], "the value of a variable"))

    def user(self, form: List, arguments: list[Sexp]) -> Op:
        fields = self.whole(lambda: self.fields(arguments, "user", ("uid", "gid", "name")))
        if set(fields) == {"uid", "gid"}:
            uid = self.part(lambda: self.integer(self.single(fields["uid"]), "the uid"), 0)
            return SetUser(UnixUser(uid, self.integer(self.single(fields["gid"]), "the gid")))
        if set(fields) == {"name"}:
            return SetUser(NamedUser(self.text(self.single(fields["name"]), "the user's name")))
        raise self.fault(
            form, "a user is a uid and a gid, or a name",
            hint="write (user (uid 1000) (gid 1000)) or, for Windows, (user (name NAME))",
        )  # fmt: skip

    def run(self, form: List, arguments: list[Sexp]) -> Op:
        known = ("cache", "network", "secrets", "limits", "shell")
        before = len(self.errors)
        fields = self.fields(arguments, "run", known)
        if "shell" not in fields and len(self.errors) == before:
            self.fault(form, 'run needs its command: (run (shell "…"))')
        return Run(
            shell=self.part(lambda: self.command(fields), ""),
            cache=tuple(self.each(self.items(fields, "cache"), self.cache)),
            network=self.words(fields, "network"),
            secrets=tuple(self.each(self.items(fields, "secrets"), self.secret)),
            limits=self.limits(fields),
        )

    def command(self, fields: dict[str, List]) -> str:
        form = fields.get("shell")
        if form is None:
            raise Bad
        if len(form.items) != 2:
            count = len(form.items) - 1
            raise self.fault(
                form, f"the command of run is one string, here {number(count)}",
                hint="put the whole command in double quotes",
            )  # fmt: skip
        return self.text(form.items[1], "a command")

    def target(self, node: Sexp, what: str) -> str:
        path = self.text(node, f"the target of a {what}")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not path.startswith("/") and path[1:3] not in (":/", ":\\"):
            raise self.fault(node, f"the target of a {what} must be an absolute path")
        if ".." in parts:
            raise self.fault(node, f"the target of a {what} can't hold ..")
        if not parts or parts[0] in ("proc", "sys", "dev") or parts == ["etc"]:
            raise self.fault(
                node, f"the target of a {what} can't be {path}",
                hint="/, /etc itself, and all of /proc, /sys and /dev belong to the sandbox",
            )  # fmt: skip
        return path

    def cache(self, node: Sexp) -> Cache:
        name, form = self.head(node, "a cache")
        known = ("target", "mode", "buildkit_options")
        fields = self.whole(lambda: self.fields(form.items[1:], "cache", known))
        if "target" not in fields:
            raise self.fault(form, "a cache needs its target: (cache (ID (target PATH)))")
        target = self.part(lambda: self.target(self.single(fields["target"]), "cache"), "")
        return Cache(name, target, self.mode(fields), self.options(fields))

    def mode(self, fields: dict[str, List]) -> CacheMode:
        if "mode" not in fields:
            return "private"
        node = self.single(fields["mode"])
        word = self.atom(node, "the mode of a cache")
        for known in _MODES:
            if known == word:
                return known
        raise self.fault(node, f"no cache has the mode {word!r}", hint=self.guess(word, _MODES))

    def secret(self, node: Sexp) -> Secret:
        name, form = self.head(node, "a secret")
        known = ("target", "buildkit_options")
        fields = self.whole(lambda: self.fields(form.items[1:], "secret", known))
        if "target" in fields:
            target = self.part(lambda: self.target(self.single(fields["target"]), "secret"), "")
        elif not name or "/" in name or "\0" in name or name in (".", ".."):
            raise self.fault(form, "a secret with such a name needs a (target PATH)")
        else:
            target = f"/run/secrets/{name}"
        return Secret(name, target, self.options(fields))

    def options(self, fields: dict[str, List]) -> tuple[tuple[str, str], ...]:
        if "buildkit_options" not in fields:
            return ()
        node = self.single(fields["buildkit_options"])
        hint = "write (buildkit_options ((KEY VALUE) …))"
        if isinstance(node, Atom):
            raise self.fault(node, "buildkit_options are a list of pairs", hint=hint)
        pairs = []
        for item in node.items:
            if isinstance(item, Atom) or len(item.items) != 2:
                raise self.fault(item, "each option for BuildKit is (KEY VALUE)", hint=hint)
            key, value = item.items
            pairs.append((self.atom(key, "an option"), self.atom(value, "an option's value")))
        return tuple(pairs)

    def limits(self, fields: dict[str, List]) -> Limits:
        known = {"memory": SIZES, "cpus": PLAIN, "pids": PLAIN, "time": TIMES, "log": SIZES}
        found = self.fields(self.items(fields, "limits"), "limits", tuple(known))
        values: dict[str, float] = {}
        for name, field in found.items():
            try:
                values[name] = self.measure(self.single(field), f"the limit {name}", known[name])
            except Bad:
                continue

        def whole(name: str) -> int | None:
            return max(1, int(values[name])) if name in values else None

        return Limits(
            memory=whole("memory"), cpus=values.get("cpus"), pids=whole("pids"),
            seconds=values.get("time"), log=whole("log"),
        )  # fmt: skip

    def copy(self, form: List, arguments: list[Sexp]) -> Op:
        before = len(self.errors)
        fields = self.fields(arguments, "copy", ("from", "src", "dst", "exclude"))
        for needed in ("src", "dst"):
            if needed not in fields and len(self.errors) == before:
                self.fault(form, f"copy needs ({needed} …)")
        if "src" not in fields or "dst" not in fields:
            raise Bad
        build = self.part(lambda: self.origin(fields), None)
        src = tuple(self.each(self.items(fields, "src"), self.source_path))
        if len(fields["src"].items) == 1:
            hint = "(src .) copies everything"
            self.fault(fields["src"], "no source items for copy", hint=hint)
        node = self.single(fields["dst"])
        dst = self.text(node, "the destination")
        if len(src) > 1 and not dst.endswith("/"):
            raise self.fault(
                node, "when copying several items, the destination must end with /",
                hint=f'write (dst "{dst}/")',
            )  # fmt: skip
        return Copy(src=src, dst=dst, build=build, exclude=self.words(fields, "exclude"))

    def source_path(self, node: Sexp) -> str:
        path = self.text(node, "each item of src (they stand side by side)")
        if ".." in path.split("/"):
            raise self.fault(
                node, f"can't use .. in source paths, as in {path!r}",
                hint="sources are inside the build context",
            )  # fmt: skip
        return path

    def origin(self, fields: dict[str, List]) -> str | None:
        if "from" not in fields:
            return None
        node = self.single(fields["from"])
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
        if build not in self.sight:
            raise self.fault(
                form.items[1], f"unknown build {build!r}",
                hint=self.guess(build, self.sight) if self.sight else "no build is in sight here",
            )  # fmt: skip
        return build


def _named(node: Sexp, name: str) -> bool:
    """Whether a form begins with that name."""
    if isinstance(node, Atom) or not node.items:
        return False
    first = node.items[0]
    return isinstance(first, Atom) and first.text == name


def _is_doubled(node: Sexp) -> bool:
    return isinstance(node, List) and bool(node.items) and isinstance(node.items[0], List)
