"""Words of a Dockerfile: quotes, escapes and variables with every modifier that BuildKit knows.

`${x-w} ${x:-w} ${x+w} ${x:+w} ${x?w} ${x:?w} ${x#p} ${x##p} ${x%p} ${x%%p} ${x/p/w} ${x//p/w}`
"""

import re
from collections.abc import Mapping

_SPECIAL = "@*#?-$!0"
_LONGEST = 1 << 16


class BadWord(ValueError):
    """A word that can't be read; the message says why."""


def expand(text: str, values: Mapping[str, str], escape: str) -> str:
    """One word with its variables' values, quotes and escapes solved. BadWord."""
    return "".join(piece for piece, _ in _Word(text, values, escape).pieces(""))


def expand_raw(text: str, values: Mapping[str, str]) -> str:
    """A here-document's text: quotes stay, a backslash takes the next sign as it is. BadWord."""
    return "".join(piece for piece, _ in _Word(text, values, "\\", quotes=False).pieces(""))


def expand_words(text: str, values: Mapping[str, str], escape: str) -> list[str]:
    """As `expand`, but blanks that are not quoted part words, those of values too. BadWord."""
    words: list[str] = []
    word = ""
    for piece, splits in _Word(text, values, escape).pieces(""):
        for sign in piece:
            if splits and sign.isspace():
                if word:
                    words.append(word)
                word = ""
            else:
                word += sign
    return [*words, word] if word else words


def bare(text: str, escape: str) -> tuple[str, bool]:
    """A word without its quotes and escapes, no variable touched; whether it had quotes."""
    out, at, quote, quoted = "", 0, "", False
    while at < len(text):
        sign = text[at]
        if quote:
            if sign == quote:
                quote = ""
            else:
                out += sign
        elif sign in "'\"":
            quote, quoted = sign, True
        elif sign == escape and at + 1 < len(text):
            at += 1
            out += text[at]
        else:
            out += sign
        at += 1
    return out, quoted


def as_pattern(path: str) -> str:
    """The pattern of COPY that matches this very path."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", path)


def quoted_words(text: str, escape: str) -> list[str]:
    """The words of a line, quotes and escapes left in them."""
    return [text[start:end] for start, end in word_places(text, escape)]


def word_places(text: str, escape: str) -> list[tuple[int, int]]:
    """Where the words of a line stand: blanks part them, but for those in quotes."""
    found: list[tuple[int, int]] = []
    at, size = 0, len(text)
    while at < size:
        if text[at].isspace():
            at += 1
            continue
        start, quote = at, ""
        while at < size and (quote or not text[at].isspace()):
            sign = text[at]
            if sign == escape and quote != "'":
                at += 1
            elif sign == quote:
                quote = ""
            elif not quote and sign in "'\"":
                quote = sign
            at += 1
        found.append((start, min(at, size)))
    return found


class _Word:
    """Reads one text. A piece is text, and whether blanks in it part words."""

    def __init__(
        self, text: str, values: Mapping[str, str], escape: str, *, quotes: bool = True
    ) -> None:
        self.text, self.values, self.escape, self.quotes = text, values, escape, quotes
        self.at = 0
        self.depth = 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def next(self) -> str:
        sign = self.peek()
        self.at += 1
        return sign

    def pieces(self, stop: str, *, raw: bool = False) -> list[tuple[str, bool]]:
        """Everything up to the sign `stop`, or the end; `raw`: escapes stay where they stand."""
        found: list[tuple[str, bool]] = []
        while sign := self.peek():
            if sign == stop:
                self.at += 1
                return found
            if sign == "$":
                found.append((self.dollar(), True))
            elif self.quotes and sign == "'":
                found.append((self.single(), False))
            elif self.quotes and sign == '"':
                found.append((self.double(raw=raw), False))
            elif sign == self.escape:
                self.at += 1
                found.append(((sign if raw else "") + self.next(), False))
            else:
                self.at += 1
                found.append((sign, True))
        if stop:
            raise BadWord(f"a {stop} is missing")
        return found

    def word(self, stop: str, *, raw: bool = False) -> str:
        return "".join(piece for piece, _ in self.pieces(stop, raw=raw))

    def single(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise BadWord("a ' is never closed")
        found = self.text[self.at + 1 : end]
        self.at = end + 1
        return found

    def double(self, *, raw: bool) -> str:
        self.at += 1
        out = ""
        while sign := self.peek():
            if sign == "$":
                out += self.dollar()
                continue
            self.at += 1
            if sign == '"':
                return out
            if sign == self.escape:
                out += sign if raw else ""
                following = self.peek()
                if following and following in ('"', "$", self.escape):
                    self.at += 1
                    out += following
                elif not raw and following:
                    out += sign
                continue
            out += sign
        raise BadWord('a " is never closed')

    def name(self) -> str:
        found = re.compile(r"\d+|[^\W\d]\w*").match(self.text, self.at)
        if found is None and self.peek() and self.peek() in _SPECIAL:
            return self.next()
        if found is None:
            return ""
        self.at = found.end()
        return found.group()

    def dollar(self) -> str:
        self.at += 1
        if self.peek() != "{":
            name = self.name()
            return self.values.get(name, "") if name else "$"
        self.at += 1
        self.depth += 1
        if self.depth > 50:
            raise BadWord("variables are nested more than 50 deep")
        if not self.peek():
            raise BadWord("a } is missing")
        if self.peek() in "{}:":
            raise BadWord("bad substitution: a name must follow ${")
        name = self.name()
        found = self.modified(name, self.values.get(name))
        self.depth -= 1
        return found

    def modified(self, name: str, value: str | None) -> str:
        sign = self.next()
        if sign == "}":
            return value or ""
        if not sign:
            raise BadWord("a } is missing")
        if sign == "/":
            return self.replaced(value or "")
        absent = value is None
        if sign == ":":
            sign = self.next()
            absent = not value
            if sign in ("#", "%"):
                raise BadWord(f"there is no modifier :{sign}")
        if not sign or sign not in "+-?#%":
            raise BadWord(f"there is no modifier {sign or ':'} of a variable")
        word = self.word("}", raw=sign in "#%")
        if sign == "-":
            return word if absent else value or ""
        if sign == "+":
            return "" if absent else word
        if sign == "?":
            if absent:
                raise BadWord(f"{name}: {word or 'it must have a value'}")
            return value or ""
        longest = word.startswith(sign)
        return _trimmed(value or "", word[longest:], sign, longest=longest)

    def replaced(self, value: str) -> str:
        every = self.peek() == "/"
        self.at += every
        pattern = re.compile(_regular(self.word("/", raw=True)), re.DOTALL)
        new = self.word("}", raw=True)
        return pattern.sub(lambda _: new, value, count=0 if every else 1)


def _trimmed(value: str, pattern: str, sign: str, *, longest: bool) -> str:
    """The value without the shortest, or longest, beginning (#) or end (%) that matches."""
    whole = re.compile(_regular(pattern), re.DOTALL)
    if len(value) > _LONGEST:
        raise BadWord("a value this long can't be trimmed")
    sizes = range(len(value) + 1)
    for size in reversed(sizes) if longest else sizes:
        if sign == "#" and whole.fullmatch(value, 0, size):
            return value[size:]
        if sign == "%" and whole.fullmatch(value, len(value) - size):
            return value[: len(value) - size]
    return value


def _regular(pattern: str) -> str:
    """A shell pattern of * and ? as a regular expression."""
    out, at = "", 0
    while at < len(pattern):
        sign = pattern[at]
        at += 1
        if sign == "*":
            out += "" if out.endswith(".*") else ".*"
        elif sign == "?":
            out += "."
        elif sign == "\\" and at < len(pattern):
            out += re.escape(pattern[at])
            at += 1
        else:
            out += re.escape(sign)
    return out
