"""Reading the pieces that forms are made of: names, words, numbers, fields.

Every fault is noted with its place. One that leaves nothing to go on with is raised as `Bad` to
whoever can go on without that piece (`part`), so that one look finds all that is wrong.
"""

from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from obuilder.errors import SpecError
from obuilder.spec.sexp import Atom, List, Sexp, Source

T = TypeVar("T")

SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
PLAIN = {"": 1}
_BASES = {"0x": 16, "0o": 8, "0b": 2, "0u": 10}
_MOST_GUESSED = 200


class Bad(Exception):  # never leaves this package: the fault was noted
    """A form can't be read."""


class Forms:
    """Reads forms of one text, and keeps the faults found."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.errors: list[SpecError] = []

    def fault(self, node: Sexp, message: str, *, hint: str | None = None) -> Bad:
        """Note a fault. What comes back is to be raised by whoever can't go on."""
        self.errors.append(self.source.error(message, node.start, node.end, hint=hint))
        return Bad()

    def part(self, read: Callable[[], T], otherwise: T) -> T:
        """What `read` reads; after a fault, `otherwise`."""
        try:
            return read()
        except Bad:
            return otherwise

    def each(self, nodes: Iterable[Sexp], read: Callable[[Sexp], T]) -> list[T]:
        """What `read` reads of each node that it can read."""
        found = []
        for node in nodes:
            try:
                found.append(read(node))
            except Bad:
                continue
        return found

    def whole(self, read: Callable[[], T]) -> T:
        """What `read` reads if there was no fault in any part of it, else Bad."""
        before = len(self.errors)
        found = read()
        if len(self.errors) > before:
            raise Bad
        return found

    def guess(self, name: str, known: Collection[str]) -> str | None:
        """A hint for a name that is none of `known`."""
        if not known or len(known) > _MOST_GUESSED:
            return None
        from difflib import get_close_matches

        close = get_close_matches(name.lower(), known, n=1)
        return f"did you mean {close[0]!r}?" if close else "known here: " + ", ".join(known)

    def atom(self, node: Sexp, what: str) -> str:
        """A word or string."""
        if isinstance(node, List):
            raise self.fault(node, f"{what} must be one word or string, not a list")
        return node.text

    def text(self, node: Sexp, what: str) -> str:
        """A word or string that a program or a file system will see."""
        text = self.atom(node, what)
        if "\0" in text:
            raise self.fault(node, f"{what} can't hold NUL")
        return text

    def head(self, node: Sexp, what: str) -> tuple[str, List]:
        """The name that a form begins with, and the form."""
        if isinstance(node, Atom):
            raise self.fault(node, f"{what} must be a list: (name …), not the word {node.text!r}")
        if not node.items:
            raise self.fault(node, f"{what} must be a list that begins with a name, not ()")
        first = node.items[0]
        if isinstance(first, List):
            raise self.fault(first, f"{what} must begin with a name, not with a list")
        return first.text, node

    def single(self, form: List) -> Sexp:
        """The one argument of a field."""
        if len(form.items) != 2:
            name = self.atom(form.items[0], "a field")
            count = len(form.items) - 1
            raise self.fault(
                form, f"({name} …) takes exactly one argument, here {number(count)}",
                hint="put text with blanks in double quotes" if count > 1 else None,
            )  # fmt: skip
        return form.items[1]

    def fields(self, arguments: list[Sexp], what: str, known: tuple[str, ...]) -> dict[str, List]:
        """The fields among `arguments` by name."""
        found: dict[str, List] = {}
        for argument in arguments:
            try:
                name, field = self.head(argument, f"a field of {what}")
            except Bad:
                continue
            if name not in known:
                message = f"{what} has no field {name!r}"
                self.fault(field.items[0], message, hint=self.guess(name, known))
            elif name in found:
                self.fault(field, f"a second ({name} …) in one {what}")
            else:
                found[name] = field
        return found

    def items(self, fields: dict[str, List], name: str) -> list[Sexp]:
        """What stands in a field that may be left out."""
        form = fields.get(name)
        return [] if form is None else form.items[1:]

    def words(self, fields: dict[str, List], name: str) -> tuple[str, ...]:
        """The words in a field that may be left out."""
        what = f"each item of {name} (they stand side by side)"
        return tuple(self.each(self.items(fields, name), lambda node: self.text(node, what)))

    def integer(self, node: Sexp, what: str) -> int:
        """A user or group id, in any notation that OCaml reads."""
        text = self.atom(node, what)
        sign, digits = (text[:1], text[1:]) if text[:1] in ("-", "+") else ("", text)
        base = _BASES.get(digits[:2].lower(), 10)
        if digits[:2].lower() in _BASES:
            digits = digits[2:]
        try:
            if not digits.isascii() or not digits[:1].isalnum() or len(digits) > 80:
                raise ValueError
            value = int(sign + digits.replace("_", ""), base)
        except ValueError:
            raise self.fault(node, f"{what} must be a whole number, not {text[:80]!r}") from None
        if not 0 <= value < (1 << 32) - 1:
            raise self.fault(
                node, f"{what} must be from 0 to 4294967294",
                hint="the kernel takes 4294967295 for no id at all" if value == 1 << 32 else None,
            )  # fmt: skip
        return value

    def measure(self, node: Sexp, what: str, units: dict[str, int]) -> float:
        """A positive number with a unit."""
        text = self.atom(node, what).lower()
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = text[len(digits) :]
        if units is SIZES:
            unit = unit.removesuffix("ib").removesuffix("b")
        try:
            if unit not in units or not digits.isascii() or len(digits) > 30:
                raise ValueError
            value = float(digits) * units[unit]
            if not 0 < value < 1e18:
                raise ValueError
        except ValueError:
            names = ", ".join(name for name in units if name)
            unit = f", with a unit if you like: {names}" if names else ""
            raise self.fault(node, f"{what} must be a positive number{unit}") from None
        return value


def number(count: int) -> str:
    """A number of things, for a message: `are 3`, `is none`."""
    return "is none" if count == 0 else "is one" if count == 1 else f"are {count}"
