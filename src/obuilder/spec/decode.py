"""Text to Spec: the grammar, with every fault it can find, each with its place."""

from collections.abc import Callable

from msgspec import Struct

from obuilder.errors import SpecError, SpecErrors
from obuilder.spec.decode_run import RunForms
from obuilder.spec.decode_settings import SettingForms
from obuilder.spec.forms import Bad, number
from obuilder.spec.model import (
    Add,
    Ambient,
    Arg,
    Built,
    Comment,
    Copy,
    Env,
    Inherit,
    Mkdir,
    Op,
    SetUser,
    Shell,
    Spec,
    Workdir,
)  # fmt: skip
from obuilder.spec.modes import is_mode
from obuilder.spec.sexp import Atom, List, Sexp, Source, read
from obuilder.values import OpPath, Span, User

_DEPTH = 64
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


class _Decoder(RunForms, SettingForms):
    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.spans: dict[OpPath, Span] = {}
        self.sight: dict[str, int] = {}
        self.ops: dict[str, Callable[[List, list[Sexp]], Op]] = {
            "comment": lambda form, found: Comment(self.argument(form, found, self.atom)),
            "workdir": lambda form, found: Workdir(self.argument(form, found, self.text)),
            "shell": self.shell,
            "env": self.env,
            "user": self.user,
            "run": self.run,
            "copy": self.copy,
            "add": self.add,
            "mkdir": lambda form, found: Mkdir(self.argument(form, found, self.text)),
            "arg": lambda form, found: Arg(*self.variable(form, found)),
            "ambient": lambda form, found: Ambient(*self.variable(form, found)),
            "inherit": self.inherit,
            **self.settings(),
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
        base: str | Built | None = None
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
                    base = self.base(form, form.items[1:])
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

    def base(self, form: List, arguments: list[Sexp]) -> str | Built:
        """What a build begins from: an image, or a build that stands before it."""
        if len(arguments) == 1 and isinstance(arguments[0], List):
            return Built(self.built(arguments[0], "what a build begins from"))
        return self.argument(form, arguments, self.text)

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
        return Env(*self.variable(form, arguments))

    def variable(self, form: List, arguments: list[Sexp]) -> tuple[str, str]:
        op = self.atom(form.items[0], "the name of an operation").lower()
        if len(arguments) != 2:
            raise self.fault(
                form, f"({op} NAME VALUE) takes two arguments, here {number(len(arguments))}",
                hint="put a value with blanks in double quotes" if len(arguments) > 2 else None,
            )  # fmt: skip
        name = self.part(lambda: self.text(arguments[0], "the name of a variable"), "A")
        if not name or "=" in name:
            self.fault(arguments[0], "the name of a variable can't be empty or hold =")
        return name, self.text(arguments[1], "the value of a variable")

    def inherit(self, form: List, arguments: list[Sexp]) -> Op:
        if arguments:
            raise self.fault(form, "(inherit) takes no argument")
        return Inherit()

    def user(self, form: List, arguments: list[Sexp]) -> Op:
        return SetUser(self.person(form, arguments))

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
        return self.built(node, "a copy's source is context or (build NAME)")

    def built(self, node: List, otherwise: str) -> str:
        """The build that (build NAME) names."""
        name, form = self.head(node, "the source of a copy")
        if name != "build" or len(form.items) != 2:
            raise self.fault(form, otherwise)
        return self.seen(form.items[1])

    def add(self, form: List, arguments: list[Sexp]) -> Op:
        known = (
            "from", "src", "dst", "text", "owner", "permissions", "exclude", "parents", "link",
            "unpack",
        )  # fmt: skip
        before = len(self.errors)
        fields = self.fields(arguments, "add", known)
        if "dst" not in fields and len(self.errors) == before:
            self.fault(form, "add needs (dst …)")
        if "dst" not in fields:
            raise Bad
        src = tuple(self.each(self.items(fields, "src"), self.source_path))
        files = tuple(self.each(self.items(fields, "text"), self.file))
        if not src and not files and len(self.errors) == before:
            self.fault(form, "no sources for add", hint="name some with (src …) or (text …)")
        node = self.single(fields["dst"])
        dst = self.text(node, "the destination")
        if len(src) + len(files) > 1 and not dst.endswith("/"):
            raise self.fault(
                node, "when adding several items, the destination must end with /",
                hint=f'write (dst "{dst}/")',
            )  # fmt: skip
        nowhere: tuple[str | None, str | None] = (None, None)
        build, context = self.part(lambda: self.place(fields), nowhere)
        owner: User | None = None
        if "owner" in fields:
            owner = self.person(fields["owner"], fields["owner"].items[1:])
        permissions = ""
        if "permissions" in fields:
            node = self.single(fields["permissions"])
            permissions = self.text(node, "permissions")
            if not is_mode(permissions):
                self.fault(
                    node, f"{permissions!r} is no mode of chmod", hint="as 0644 or u=rwX,go=rX"
                )
        return Add(
            src, dst, build, context, files, owner, permissions, self.words(fields, "exclude"),
            self.present(fields, "parents"), self.present(fields, "link"),
            self.present(fields, "unpack"),
        )  # fmt: skip

    def file(self, node: Sexp) -> tuple[str, str]:
        """A file whose content stands here."""
        name, form = self.head(node, "a text")
        if len(form.items) != 2 or not name or "/" in name or "\0" in name or name in (".", ".."):
            raise self.fault(form, "a text is (NAME CONTENT), its name without /")
        return name, self.atom(form.items[1], "a text's content")

    def place(self, fields: dict[str, List]) -> tuple[str | None, str | None]:
        """The build, or the named context, that an add copies from."""
        if "from" in fields and isinstance(node := self.single(fields["from"]), List):
            name, form = self.head(node, "the source of an add")
            if name == "context" and len(form.items) == 2:
                return None, self.text(form.items[1], "the name of a context")
        return self.origin(fields), None


def _named(node: Sexp, name: str) -> bool:
    """Whether a form begins with that name."""
    if isinstance(node, Atom) or not node.items:
        return False
    first = node.items[0]
    return isinstance(first, Atom) and first.text == name


def _is_doubled(node: Sexp) -> bool:
    return isinstance(node, List) and bool(node.items) and isinstance(node.items[0], List)
