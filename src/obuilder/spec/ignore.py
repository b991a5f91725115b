"""`.obuilderignore`: .dockerignore's patterns, in .dockerignore's meaning.

One pattern a line; `#` begins a comment line, `!` takes back what an earlier line left out, the
last line that matches decides. `*` and `?` stay inside one name, `**` spans any number of them.
A pattern that matches a directory matches all that is below it.
"""

import re
from collections.abc import Iterable


class IgnoreFile:
    """The parsed patterns of one file."""

    def __init__(self, patterns: "list[tuple[bool, str]]") -> None:
        """Each pattern as a regular expression, and whether it takes back."""
        self.takes_back = any(back for back, _ in patterns)
        # What stands together and says the same is asked together, the last first.
        groups: list[tuple[bool, list[str]]] = []
        for back, expression in patterns:
            if not groups or groups[-1][0] != back:
                groups.append((back, []))
            groups[-1][1].append(expression)
        self._groups = [
            (back, re.compile(f"(?:{'|'.join(expressions)})(?:/.*)?", re.DOTALL).fullmatch)
            for back, expressions in reversed(groups)
        ]

    @classmethod
    def parse(cls, text: str) -> "IgnoreFile":
        """Read the patterns. ValueError with the number of a line that is none."""
        patterns = []
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            try:
                patterns.extend([] if line.startswith("#") else _read(line.strip()))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        return cls(patterns)

    @classmethod
    def of(cls, patterns: Iterable[str]) -> "IgnoreFile":
        """The same of patterns that stand in no file. ValueError."""
        return cls([found for pattern in patterns for found in _read(pattern)])

    def matches(self, path: str) -> bool:
        """Whether a path, relative to the context, is left out."""
        for back, matches in self._groups:
            if matches(path):
                return not back
        return False


def name_pattern(pattern: str) -> "re.Pattern[str]":
    """What one name must be to match one part of a pattern of COPY. ValueError."""
    # Stars in a row are one, and stay in the name.
    single = re.sub(r"(\\.)|\*+", lambda found: found.group(1) or "*", pattern, flags=re.DOTALL)
    return _compiled(single)


def _compiled(pattern: str) -> "re.Pattern[str]":
    try:
        return re.compile(_expression(pattern), re.DOTALL)
    except (re.error, ValueError) as error:
        raise ValueError(f"{pattern!r} is no pattern: {error}") from None


def _read(pattern: str) -> list[tuple[bool, str]]:
    """One pattern as `IgnoreFile` takes it; none if it can't match anything. ValueError."""
    back = pattern.startswith("!")
    clean = _clean(pattern.removeprefix("!").strip())
    return [(back, _compiled(clean).pattern)] if clean else []


def _clean(pattern: str) -> str:
    """The pattern without `.`, `..` and doubled slashes; "" for one that can't match anything."""
    parts: list[str] = []
    for part in pattern.split("/"):
        if part == "..":
            if parts:
                parts.pop()
            elif not pattern.startswith("/"):
                return ""  # it leads out of the context
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _expression(pattern: str) -> str:
    """As a regular expression, by Docker's own rules."""
    out, at = [], 0
    while at < len(pattern):
        sign = pattern[at]
        at += 1
        if sign == "*" and pattern[at : at + 1] == "*":
            start, at = at - 1, at + 1
            slash = pattern[at : at + 1] == "/"
            at += slash
            # Behind it stands a whole name, but for a pattern that begins so without a slash.
            whole = at == len(pattern) or (start == 0 and not slash)
            out.append(".*" if whole else "(?:.*/)?")
        elif sign == "*":
            out.append("[^/]*")
        elif sign == "?":
            out.append("[^/]")
        elif sign == "[":
            end = _class_end(pattern, at)
            out.append(_class(pattern[at:end]))
            at = end + 1
        else:
            if sign == "\\" and at < len(pattern):
                sign, at = pattern[at], at + 1
            out.append(re.escape(sign))
    return "".join(out)


def _class_end(pattern: str, at: int) -> int:
    at += pattern[at : at + 1] == "^"
    while at < len(pattern) and pattern[at] != "]":
        at += 1 + (pattern[at] == "\\")
    if at >= len(pattern):
        raise ValueError("a [ without its ]")
    return at


def _class(inside: str) -> str:
    """A class of signs: `[a-z]`, `[^a-z]`, never the slash between names."""
    negated = inside.startswith("^")
    if inside in ("", "^"):
        raise ValueError("nothing between [ and ]")
    signs = re.sub(r"(?<!\\)([\[&~|])", r"\\\1", inside.removeprefix("^"))
    return f"(?!/)[{'^' if negated else ''}{signs}]"
