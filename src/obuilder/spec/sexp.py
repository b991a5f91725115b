"""S-expressions as OBuilder reads them: bytes to tokens, tokens to atoms and lists, with places.

Takes time in proportion to the text, and no deeper nesting than other code can follow. Atoms are text
in Python's file-system convention: bytes that are not UTF-8 stay as lone surrogates.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from obuilder.errors import SpecError
from obuilder.values import Span


class Atom(Struct, frozen=True):
    """A word or a string: its text, and where it stands."""

    text: str
    start: int
    end: int


class List(Struct):
    """A parenthesised list."""

    items: "list[Atom | List]"
    start: int
    end: int


Sexp = Atom | List


class Token(Struct, frozen=True):
    """A piece of a text: an atom (with its `text`), a sign, or a comment."""

    kind: Literal["atom", "(", ")", "#;", "comment"]
    start: int
    end: int
    text: str = ""


_BLANKS = re.compile(rb"(?:[ \t\n\f]|\r\n)+")
_WORD = re.compile(rb'[^ \t\n\f\r()";]+')
_MARK = b"\xef\xbb\xbf"
_ESCAPES = {
    ord("n"): 10, ord("t"): 9, ord("r"): 13, ord("b"): 8,
    ord("\\"): 92, ord('"'): 34, ord("'"): 39,
}  # fmt: skip
_DIGITS = frozenset(b"0123456789")
_HEX = frozenset(b"0123456789abcdefABCDEF")

_DEEPEST = 200
_STRIDE = 4096
_EXCERPT = 60


class Source:
    """A text and its name, for telling places in it. A byte order mark is no part of the text."""

    def __init__(self, text: bytes, file: str) -> None:
        self.text, self.file = text.removeprefix(_MARK), file
        self._ends: list[int] | None = None
        self._columns: dict[int, list[tuple[int, int]]] = {}

    def span(self, start: int, end: int) -> Span:
        """The span of the bytes [start, end)."""
        line, line_start, _ = self._line(start)
        return Span(start, end, line + 1, self._column(line, line_start, start))

    def error(self, message: str, start: int, end: int, *, hint: str | None = None) -> SpecError:
        """An error at the bytes [start, end), with what stands around it."""
        _, line_start, line_end = self._line(start)
        first, last = line_start, line_end
        if last - first > 3 * _EXCERPT:
            first = max(first, self._boundary(max(0, start - _EXCERPT)))
            last = min(last, self._boundary(start + _EXCERPT))
        before = ("…" if first > line_start else "") + _decode(self.text[first:start])
        marked = _decode(self.text[start : min(last, end)])
        after = _decode(self.text[min(last, end) : last]) + ("…" if last < line_end else "")
        return SpecError(
            message,
            hint=hint,
            span=self.span(start, max(end, start + 1)),
            file=self.file,
            excerpt=(before, marked, after.rstrip("\r")),
        )

    def _line(self, at: int) -> tuple[int, int, int]:
        """The line of a place, counted from 0, and where it begins and ends."""
        if self._ends is None:
            self._ends = [found.start() for found in re.finditer(b"\n", self.text)]
        line = bisect_left(self._ends, at)
        start = self._ends[line - 1] + 1 if line else 0
        return line, start, self._ends[line] if line < len(self._ends) else len(self.text)

    def _boundary(self, at: int) -> int:
        """The place itself, or the next one that is not in the middle of a character."""
        end = at
        while end < min(at + 3, len(self.text)) and self.text[end] & 0xC0 == 0x80:
            end += 1
        return end

    def _column(self, line: int, line_start: int, at: int) -> int:
        # Counting from the line's start each time would take the square of a long line.
        known = self._columns.setdefault(line, [(line_start, 1)])
        while at - known[-1][0] > 2 * _STRIDE:
            place, column = known[-1]
            end = self._boundary(place + _STRIDE)
            known.append((end, column + len(_decode(self.text[place:end]))))
        place, column = known[bisect_right(known, (at, 1 << 62)) - 1]
        return column + len(_decode(self.text[place:at]))


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def tokens(source: Source) -> Iterator[Token]:
    """All tokens of a text, comments as well. SpecError where it is none."""
    text, size, at = source.text, len(source.text), 0
    while at < size:
        byte = text[at]
        blanks = _BLANKS.match(text, at)
        if blanks is not None:
            at = blanks.end()
            continue
        start = at
        if byte in b"()":
            at += 1
            yield Token("(" if byte == 40 else ")", start, at)
        elif byte == 34:
            word, at = _quoted(source, at)
            yield Token("atom", start, at, word)
        elif byte == 59:
            end = text.find(b"\n", at)
            at = size if end < 0 else end
            yield Token("comment", start, at)
        elif byte == 13:
            raise source.error("a carriage return without a line feed", at, at + 1)
        elif text.startswith(b"#|", at):
            at = _block_end(source, at)
            yield Token("comment", start, at)
        elif text.startswith(b"#;", at):
            at += 2
            yield Token("#;", start, at)
        else:
            found = _WORD.match(text, at)
            assert found is not None  # whatever ends a word was dealt with above
            at = found.end()
            data = found.group()
            if data.startswith(b"|#"):
                raise source.error("a |# without its #|", start, start + 2)
            if b"#|" in data or b"|#" in data:
                raise source.error(
                    "a comment sign inside a word", start, at, hint="put the word in double quotes"
                )
            yield Token("atom", start, at, _decode(data))


class _Level:
    """A list that is being read, or the whole text, and the `#;`s that wait in it."""

    def __init__(self, opened: int) -> None:
        self.node = List([], opened, opened)
        self.drops: list[Token] = []


def read(source: Source) -> Sexp:
    """The one expression of a text. SpecError."""
    levels = [_Level(0)]
    for token in tokens(source):
        level = levels[-1]
        node: Sexp
        if token.kind == "comment":
            continue
        if token.kind == "#;":
            level.drops.append(token)
            continue
        if token.kind == "(":
            if len(levels) > _DEEPEST:
                message = f"parentheses are nested more than {_DEEPEST} deep"
                raise source.error(message, token.start, token.end)
            levels.append(_Level(token.start))
            continue
        if token.kind == "atom":
            node = Atom(token.text, token.start, token.end)
        else:
            if len(levels) == 1:
                raise source.error("a ) without its (", token.start, token.end)
            _no_drops(source, levels.pop())
            node, level = level.node, levels[-1]
            node.end = token.end
        if level.drops:
            level.drops.pop()
        elif len(levels) == 1 and level.node.items:
            raise _second(source, level.node.items[0], node)
        else:
            level.node.items.append(node)
    if len(levels) > 1:
        start = levels[-1].node.start
        raise source.error("this ( is never closed", start, start + 1)
    _no_drops(source, levels[0])
    if not levels[0].node.items:
        raise source.error("the spec is empty", 0, 0, hint="the smallest spec is: ((from scratch))")
    return levels[0].node.items[0]


def _no_drops(source: Source, level: _Level) -> None:
    if level.drops:
        first = level.drops[0]
        raise source.error("nothing after this #; to leave out", first.start, first.end)


def _second(source: Source, first: Sexp, second: Sexp) -> SpecError:
    if isinstance(first, Atom):
        return source.error(
            f"a spec is a list, not the word {first.text[:40]!r}", first.start, first.end,
            hint="the smallest spec is: ((from scratch))",
        )  # fmt: skip
    return source.error(
        "a spec is one expression, but here begins another", second.start, second.end,
        hint="is there a ) too many before it?",
    )  # fmt: skip


def _block_end(source: Source, start: int) -> int:
    """Where the block comment that begins at `start` ends."""
    text, depth, at = source.text, 1, start + 2
    signs = re.compile(rb'#\||\|#|"')
    while found := signs.search(text, at):
        at = found.end()
        if found.group() == b'"':  # strings are honoured inside comments, as OBuilder does
            _, at = _quoted(source, found.start())
            continue
        depth += 1 if found.group() == b"#|" else -1
        if depth == 0:
            return at
    raise source.error("this comment is never closed", start, start + 2)


def _quoted(source: Source, start: int) -> tuple[str, int]:
    """The text of the string that begins at `start`, and where it ends."""
    text, size, at = source.text, len(source.text), start + 1
    out = bytearray()
    quote = -1
    while at < size:
        if quote < at:
            quote = text.find(b'"', at)
        if quote < 0:
            break
        slash = text.find(b"\\", at, quote)
        if slash < 0:
            out += text[at:quote]
            return _decode(bytes(out)), quote + 1
        out += text[at:slash]
        at = slash + 1
        if at >= size:
            break
        byte = text[at]
        if byte in _ESCAPES:
            out.append(_ESCAPES[byte])
            at += 1
        elif byte in _DIGITS:
            digits = text[at : at + 3]
            if len(digits) < 3 or not _DIGITS.issuperset(digits) or int(digits) > 255:
                raise source.error(
                    "a decimal escape is three digits from 000 to 255", slash, slash + 4
                )
            out.append(int(digits))
            at += 3
        elif byte == 120:
            digits = text[at + 1 : at + 3]
            if len(digits) < 2 or not _HEX.issuperset(digits):
                raise source.error("a hexadecimal escape is \\x and two digits", slash, slash + 4)
            out.append(int(digits, 16))
            at += 3
        elif byte == 10 or text.startswith(b"\r\n", at):
            at += 1 if byte == 10 else 2
            while at < size and text[at] in b" \t":
                at += 1
        else:
            out += bytes((92, byte))
            at += 1
    raise source.error("this string is never closed", start, start + 1)


_PLAIN = frozenset(range(33, 127)) - frozenset(b'"();\\')
_NAMED = {10: "\\n", 9: "\\t", 13: "\\r", 8: "\\b", 92: "\\\\", 34: '\\"'}


def quote(text: str) -> str:
    """An atom as OBuilder prints it: bare where it can be, else quoted, in ASCII only."""
    data = text.encode("utf-8", "surrogateescape")
    if data and _PLAIN.issuperset(data) and b"#|" not in data and b"|#" not in data:
        return text
    return f'"{escape(text)}"'


def escape(text: str) -> str:
    """What stands between the quotes of a quoted atom."""
    return "".join(_shown(byte) for byte in text.encode("utf-8", "surrogateescape"))


def _shown(byte: int) -> str:
    named = _NAMED.get(byte)
    if named is not None:
        return named
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03d}"
