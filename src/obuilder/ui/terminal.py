"""What may reach a terminal: text, line ends, tabs and colours; whatever else steers is shown."""

import os
import re

_SAFE = re.compile(rb"\x1b\[[0-9;:]*m")
_STEERS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]|\x1b|\xc2[\x80-\x9f]")
_OPEN = re.compile(rb"(?:\x1b(?:\[[0-9;:]{0,32})?|\xc2)\Z")


def neutral(data: bytes, *, colours: bool = True) -> bytes:
    """Output that can't steer a terminal; with `colours`, SGR sequences stay."""
    if _STEERS.search(data) is None:
        return data
    out, at = [], 0
    for kept in _SAFE.finditer(data):
        out.append(_STEERS.sub(_show, data[at : kept.start()]))
        if colours:
            out.append(kept.group())
        at = kept.end()
    out.append(_STEERS.sub(_show, data[at:]))
    return b"".join(out)


def _show(found: "re.Match[bytes]") -> bytes:
    byte = found.group()
    if len(byte) == 2:
        return b"\\x%02x" % byte[1]
    return b"^?" if byte == b"\x7f" else b"^%c" % (byte[0] + 64)


class Neutral:
    """`neutral` for a stream that comes in pieces: a sequence cut in two is put together."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may be shown by now."""
        data = self._held + data
        cut = _OPEN.search(data)
        self._held = cut.group() if cut else b""
        return neutral(data[: cut.start()] if cut else data)

    def end(self) -> bytes:
        """What was held back, at the end of the stream."""
        held, self._held = self._held, b""
        return neutral(held)


def visible(text: str) -> str:
    """Text for people: whatever is no sign they could see, but for line ends and tabs, is named."""
    if text.isprintable():
        return text
    return "".join(_named(sign) for sign in text)


def _named(sign: str) -> str:
    if sign.isprintable() or sign in "\n\t":
        return sign
    code = ord(sign)
    if code < 0x20 or code == 0x7F:
        return "^" + chr(code ^ 0x40)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no text
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}"


def cells(text: str) -> int:
    """How many columns of a terminal a visible text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(sign) else 2 if east_asian_width(sign) in "WF" else 1 for sign in text
    )


def width() -> int | None:
    """The columns that standard output has, by $COLUMNS or by the terminal; None if neither says."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size().columns or None
    except OSError:
        return None


def cut(text: str, width: int) -> str:
    """A visible text that takes no more than `width` columns, with a sign where it was cut."""
    if cells(text) <= width:
        return text
    taken = 0
    for at, sign in enumerate(text):
        taken += cells(sign)
        if taken > width - 1:
            return text[:at] + "…"
    return text
