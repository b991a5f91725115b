"""`.obuilderignore`: .dockerignore's patterns, in .dockerignore's meaning.

One pattern a line; `#` begins a comment line, `!` takes back what an earlier line left out, the
last line that matches decides. `*` and `?` stay inside one name, `**` spans any number of them.
A pattern that matches a directory matches all that is below it.
"""

import re


class IgnoreFile:
    """The parsed patterns of one file."""

    def __init__(self, patterns: "list[tuple[bool, list[str]]]") -> None:
        self._patterns = patterns
        self.takes_back = any(negated for negated, _ in patterns)

    @classmethod
    def parse(cls, text: str) -> "IgnoreFile":
        """Read the patterns. Every text is a valid file."""
        patterns = []
        for line in text.splitlines():
            pattern = line.strip() if not line.startswith("#") else ""
            negated = pattern.startswith("!")
            parts: list[str] = []
            for part in pattern.removeprefix("!").strip().split("/"):
                if part == ".." and parts and parts[-1] != "**":
                    parts.pop()
                elif part not in ("", ".", ".."):
                    parts.append(part)
            if parts:
                patterns.append((negated, parts))
        return cls(patterns)

    @staticmethod
    def name_matches(pattern: str, name: str) -> bool:
        """Whether one name matches one part of a pattern: `*`, `?`, `[…]` and a backslash."""
        return _name_matches(pattern, name)

    def matches(self, path: str) -> bool:
        """Whether a path, relative to the context, is left out."""
        names = path.split("/")
        ignored = False
        for negated, parts in self._patterns:
            if negated == ignored and any(
                _path_matches(parts, names[:depth]) for depth in range(1, len(names) + 1)
            ):
                ignored = not negated
        return ignored


def _path_matches(parts: list[str], names: list[str]) -> bool:
    """Whether a whole path matches a whole pattern, without recursion blowing up on `**`."""
    reachable = {0}
    for name in names:
        following: set[int] = set()
        for at in _through_stars(parts, reachable):
            if at < len(parts):
                if parts[at] == "**":
                    following.add(at)
                elif _name_matches(parts[at], name):
                    following.add(at + 1)
        reachable = following
    return len(parts) in _through_stars(parts, reachable)


def _through_stars(parts: list[str], reachable: set[int]) -> set[int]:
    found = set(reachable)
    for at in sorted(reachable):
        while at < len(parts) and parts[at] == "**":
            at += 1  # noqa: PLW2901 # walking on from here
            found.add(at)
    return found


def _name_matches(pattern: str, name: str) -> bool:
    if pattern == name:
        return True
    if not any(sign in pattern for sign in "*?[\\"):
        return False
    return _compiled(pattern).fullmatch(name) is not None


def _compiled(pattern: str) -> "re.Pattern[str]":
    out, at = "", 0
    while at < len(pattern):
        sign = pattern[at]
        at += 1
        if sign == "*":
            while pattern[at : at + 1] == "*":
                at += 1
            out += ".*"
        elif sign == "?":
            out += "."
        elif sign == "\\" and at < len(pattern):
            out += re.escape(pattern[at])
            at += 1
        elif sign == "[" and (end := pattern.find("]", at + 1)) > 0:
            inside = pattern[at:end].replace("\\", "\\\\")
            if inside.startswith(("!", "^")):
                inside = "^" + inside[1:]
            out += f"[{inside}]"
            at = end + 1
        else:
            out += re.escape(sign)
    try:
        return re.compile(out, re.DOTALL)
    except re.error:
        return re.compile(re.escape(pattern))
