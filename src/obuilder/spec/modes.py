"""What chmod takes: octal numbers and symbolic modes. A mode is applied to the one that was there."""

import re

_OCTAL = re.compile(r"0?[0-7]{1,4}")
_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)")
_ACTION = re.compile(r"([-+=])([rwxXst]*|[ugo])")
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}


def is_mode(text: str) -> bool:
    """Whether `text` is a mode, octal (at most 7777) or symbolic (`u=rwX,go=rX`)."""
    return bool(_OCTAL.fullmatch(text)) or all(map(_CLAUSE.fullmatch, text.split(",")))


def changed(text: str, mode: int, *, directory: bool) -> int:
    """The permissions that `mode`, 0 to 0o7777, becomes by the mode `text`."""
    if _OCTAL.fullmatch(text):
        return int(text, 8)
    for clause in text.split(","):
        found = _CLAUSE.fullmatch(clause)
        if found is None:
            raise ValueError(text)
        who = 0
        for sign in found.group(1).replace("a", "ugo") or "ugo":
            who |= _WHO[sign]
        for sign, what in _ACTION.findall(found.group(2)):
            bits = who & _named(what, mode, directory=directory)
            if sign == "-":
                mode &= ~bits
            elif sign == "+":
                mode |= bits
            else:
                mode = (mode & ~who) | bits
    return mode


def _named(what: str, mode: int, *, directory: bool) -> int:
    if what and what in "ugo":
        three = mode >> {"u": 6, "g": 3, "o": 0}[what] & 7
        return three * 0o111
    bits = 0
    for sign in what:
        if sign == "X":
            bits |= 0o111 if directory or mode & 0o111 else 0
        else:
            bits |= _BITS[sign]
    return bits
