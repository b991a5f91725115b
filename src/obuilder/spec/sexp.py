"""S-expressions as OBuilder reads them: bytes to atoms and lists, each with its place.

No recursion, so that depth costs memory only. Atoms are text in Python's file-system convention:
bytes that are not UTF-8 stay as lone surrogates.
"""

from bisect import bisect_left

from msgspec import Struct

from obuilder.errors import SpecError
from obuilder.values import Span


class Atom(Struct, frozen=True):
    """A word: its text, and whether it was quoted."""

    text: str
    start: int
    end: int


class List(Struct):
    """A parenthesised list."""

    items: "list[Atom | List]"
    start: int
    end: int


Sexp = Atom | List

_BLANK = frozenset(b" \t\n\f")
_ENDS = frozenset(b' \t\n\f\r()";')
_ESCAPES = {
    ord("n"): 10, ord("t"): 9, ord("r"): 13, ord("b"): 8,
    ord("\\"): 92, ord('"'): 34, ord("'"): 39,
}  # fmt: skip
_DIGITS = frozenset(b"0123456789")
_HEX = frozenset(b"0123456789abcdefABCDEF")


class Source:
    """A text and its name, for telling places in it."""

    def __init__(self, text: bytes, file: str) -> None:
        self.text, self.file = text, file
        self._ends: list[int] | None = None

    def span(self, start: int, end: int) -> Span:
        """The span of the bytes [start, end)."""
        if self._ends is None:
            ends, at = [], self.text.find(b"\n")
            while at >= 0:
                ends.append(at)
                at = self.text.find(b"\n", at + 1)
            self._ends = ends
        line = bisect_left(self._ends, start)
        line_start = self._ends[line - 1] + 1 if line else 0
        column = len(_decode(self.text[line_start:start])) + 1
        return Span(start, end, line + 1, column)

    def error(self, message: str, start: int, end: int, *, hint: str | None = None) -> SpecError:
        """An error at the bytes [start, end)."""
        line_start = self.text.rfind(b"\n", 0, start) + 1
        line_end = self.text.find(b"\n", start)
        line = self.text[line_start : len(self.text) if line_end < 0 else line_end]
        return SpecError(
            message,
            hint=hint,
            span=self.span(start, max(end, start + 1)),
            file=self.file,
            line_text=_decode(line[:500]),
        )


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


class _Drop:
    """A `#;` waiting for the expression that it drops."""

    def __init__(self, at: int) -> None:
        self.at = at


def read(source: Source) -> Sexp:
    """The one expression of a text. SpecError."""
    text, size = source.text, len(source.text)
    top: list[Sexp] = []
    stack: list[List] = []
    drops: list[list[_Drop]] = [[]]
    at = 0

    def add(node: Sexp) -> None:
        if drops[-1]:
            drops[-1].pop()
        elif stack:
            stack[-1].items.append(node)
        else:
            if top:
                raise source.error(
                    "a spec is one expression, but here begins another", node.start, node.end
                )
            top.append(node)

    while at < size:
        byte = text[at]
        if byte in _BLANK:
            at += 1
        elif byte == 13:
            if text[at + 1 : at + 2] != b"\n":
                raise source.error("a carriage return without a line feed", at, at + 1)
            at += 2
        elif byte == 59:
            end = text.find(b"\n", at)
            at = size if end < 0 else end
        elif byte == 40:
            stack.append(List([], at, at))
            drops.append([])
            at += 1
        elif byte == 41:
            if not stack:
                raise source.error("a ) without its (", at, at + 1)
            pending = drops.pop()
            if pending:
                raise source.error(
                    "nothing after this #; to leave out", pending[0].at, pending[0].at + 2
                )
            at += 1
            node = stack.pop()
            node.end = at
            add(node)
        elif byte == 34:
            atom, at = _quoted(source, at)
            add(atom)
        elif byte == 35 and text[at + 1 : at + 2] == b"|":
            at = skip_block_comment(source, at)
        elif byte == 35 and text[at + 1 : at + 2] == b";":
            drops[-1].append(_Drop(at))
            at += 2
        elif byte == 124 and text[at + 1 : at + 2] == b"#":
            raise source.error("a |# without its #|", at, at + 2)
        else:
            start = at
            while at < size and text[at] not in _ENDS:
                at += 1
            word = text[start:at]
            if b"#|" in word or b"|#" in word:
                raise source.error(
                    "a comment sign inside a word", start, at, hint="put the word in double quotes"
                )
            add(Atom(_decode(word), start, at))
    if stack:
        raise source.error("this ( is never closed", stack[-1].start, stack[-1].start + 1)
    if drops[0]:
        raise source.error("nothing after this #; to leave out", drops[0][0].at, drops[0][0].at + 2)
    if not top:
        raise source.error("the spec is empty", 0, 0, hint="the smallest spec is: ((from scratch))")
    return top[0]


def skip_block_comment(source: Source, start: int) -> int:
    """Where the comment that begins at `start` ends."""
    text, size, depth, at = source.text, len(source.text), 1, start + 2
    while at < size:
        pair = text[at : at + 2]
        if pair == b"#|":
            depth += 1
            at += 2
        elif pair == b"|#":
            depth -= 1
            at += 2
            if depth == 0:
                return at
        elif text[at] == 34:  # strings are honoured inside comments, as OCaml does
            _, at = _quoted(source, at)
        else:
            at += 1
    raise source.error("this comment is never closed", start, start + 2)


def _quoted(source: Source, start: int) -> tuple[Atom, int]:
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
            return Atom(_decode(bytes(out)), start, quote + 1), quote + 1
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
        elif byte == 10 or text[at : at + 2] == b"\r\n":
            at += 1 if byte == 10 else 2
            while at < size and text[at] in b" \t":
                at += 1
        else:
            out += bytes((92, byte))
            at += 1
    raise source.error("this string is never closed", start, start + 1)


def skip_quoted(source: Source, start: int) -> int:
    """Where the string that begins at `start` ends."""
    return _quoted(source, start)[1]


_PLAIN = frozenset(range(33, 127)) - frozenset(b'"();\\')
_NAMED = {10: "\\n", 9: "\\t", 13: "\\r", 8: "\\b", 92: "\\\\", 34: '\\"'}


def quote(text: str) -> str:
    """An atom as OBuilder prints it: bare where it can be, else quoted, in ASCII only."""
    data = text.encode("utf-8", "surrogateescape")
    if data and _PLAIN.issuperset(data) and b"#|" not in data and b"|#" not in data:
        return text
    return '"' + "".join(_shown(byte) for byte in data) + '"'


def _shown(byte: int) -> str:
    named = _NAMED.get(byte)
    if named is not None:
        return named
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03d}"
