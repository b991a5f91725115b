"""Output of programs as HTML: colours become classes, what else steers a terminal is dropped or named.

Colours are of the 256 that terminals have (others become the nearest of them), and of a style sheet
(`stylesheet`), as the page allows no styles in line. On the log's dark ground each is
lightened until it can be read.
"""

import functools
import html
import re

from msgspec import Struct
from msgspec.structs import replace

from obuilder.ui.terminal import visible

GROUND = (0x0D, 0x11, 0x17)
"""The colour that logs stand on."""
_LEGIBLE = 4.6
"""A little over the contrast that WCAG wants of small text."""
_LONGEST = 1 << 14
"""Characters of a line that are shown."""
_OPEN_LINE = 1 << 16
"""Bytes without an end of line that are kept in wait for it."""

_BASIC = (
    0x484F58, 0xFF7B72, 0x3FB950, 0xD29922, 0x58A6FF, 0xBC8CFF, 0x39C5CF, 0xB1BAC4,
    0x6E7681, 0xFFA198, 0x56D364, 0xE3B341, 0x79C0FF, 0xD2A8FF, 0x56D4DD, 0xFFFFFF,
)  # fmt: skip
_LEVELS = (0, 95, 135, 175, 215, 255)

_SEQUENCE = re.compile(
    r"\x1b(?:\[([0-9;:<=>?]*)[ -/]*([@-~])"  # CSI: parameters and what to do
    r"|\][^\x07\x1b]*(?:\x07|\x1b\\|$)"  # OSC: titles and links
    r"|[P^_X][^\x1b]*(?:\x1b\\|$)"  # strings for the terminal
    r"|[()*+][0-9A-Za-z]|[0-9@-Z\\-~=>])"
)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Style(Struct, frozen=True):
    """How text looks: colours of the 256, None for the usual ones."""

    front: int | None = None
    back: int | None = None
    bold: bool = False
    faint: bool = False
    italic: bool = False
    underlined: bool = False
    struck: bool = False
    inverse: bool = False

    @property
    def classes(self) -> str:
        """Its classes in the style sheet."""
        front, back = (self.back, self.front) if self.inverse else (self.front, self.back)
        found = [] if back is None else [f"b{back}"]
        if front is not None:
            found.append(f"f{front}")
        if self.inverse and back is None:
            found.append("inverse")
        found += [name for name in ("bold", "faint", "italic", "underlined", "struck")
                  if getattr(self, name)]  # fmt: skip
        return " ".join(found)


PLAIN = Style()


class Lines:
    """Output that comes in pieces, as lines of HTML. A colour lasts until another comes."""

    def __init__(self) -> None:
        self._style, self._rest = PLAIN, b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that have an end now."""
        *whole, rest = (self._rest + data).split(b"\n")
        found = [self._line(line) for line in whole]
        if len(rest) > _OPEN_LINE:
            found.append(self._line(rest))
            rest = b""
        elif b"\r" in (text := rest.rstrip(b"\r")):
            # A line that is written over: what was there counts for its colours alone.
            over = text.rindex(b"\r")
            self._line(rest[:over])
            rest = rest[over + 1 :]
        self._rest = rest
        return found

    @property
    def open(self) -> str:
        """The line that has no end yet; empty if there is none."""
        return _painted(_text(self._rest), self._style)[0] if self._rest else ""

    def end(self) -> list[str]:
        """What has no end of line, at the end of the output."""
        rest, self._rest = self._rest, b""
        return [self._line(rest)] if rest else []

    def _line(self, line: bytes) -> str:
        shown, self._style = _painted(_text(line), self._style)
        return shown


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")


def _painted(text: str, style: Style) -> tuple[str, Style]:
    """A line as HTML, and the style at its end."""
    text = text.rstrip("\r")
    if "\x1b" not in text and "\r" not in text:
        return _span(_cut(_readable(text)), style), style
    over, _, text = text.rpartition("\r")
    for found in _SEQUENCE.finditer(over):
        style = _after(found, style)
    parts, at, room = [], 0, _LONGEST
    for found in _SEQUENCE.finditer(text):
        parts.append((text[at : found.start()], style))
        style, at = _after(found, style), found.end()
    parts.append((text[at:], style))
    spans = []
    for part, look in parts:
        if part and room > 0:
            shown = _cut(_readable(part), room)
            room -= len(shown)
            spans.append(_span(shown, look))
    return "".join(spans), style


def _readable(text: str) -> str:
    if text.isascii() and _CONTROL.search(text) is None:
        return text
    return visible(text)


def _cut(text: str, room: int = _LONGEST) -> str:
    if len(text) <= room:
        return text
    return f"{text[:room]}… ({len(text) - room} more characters in the raw log)"


def _span(text: str, style: Style) -> str:
    escaped = html.escape(text)
    if style is PLAIN or not text or style == PLAIN:
        return escaped
    return f'<span class="{style.classes}">{escaped}</span>'


def _after(found: "re.Match[str]", style: Style) -> Style:
    """The style after an escape sequence."""
    if found[2] != "m" or found[1] is None or not set(found[1]) <= set("0123456789;:"):
        return style
    groups = [
        [int(part) if part else 0 for part in group.split(":")] for group in found[1].split(";")
    ]
    while groups:
        first, *more = groups.pop(0)
        if first in (38, 48):
            if not more:  # the older form, whose parts have semicolons as well
                size = {5: 1, 2: 3}.get(groups[0][0], 0) if groups else 0
                more = [group[0] for group in groups[: 1 + size]]
                del groups[: 1 + size]
            colour = _extended(more)
            if colour is not None:
                style = replace(style, **{"front" if first == 38 else "back": colour})
        else:
            style = _plainly(style, first, more)
    return style


_PLAIN_CODES: dict[int, dict[str, bool | None]] = {
    1: {"bold": True}, 2: {"faint": True}, 3: {"italic": True}, 7: {"inverse": True},
    9: {"struck": True}, 21: {"bold": False, "faint": False}, 22: {"bold": False, "faint": False},
    23: {"italic": False}, 24: {"underlined": False}, 27: {"inverse": False},
    29: {"struck": False}, 39: {"front": None}, 49: {"back": None},
}  # fmt: skip
"""What codes without parameters change."""


def _plainly(style: Style, code: int, more: list[int]) -> Style:
    if code == 0:
        return PLAIN
    if code == 4:
        return replace(style, underlined=more != [0])
    if code in _PLAIN_CODES:
        return replace(style, **_PLAIN_CODES[code])
    for start, name, shift in (
        (30, "front", 0),
        (40, "back", 0),
        (90, "front", 8),
        (100, "back", 8),
    ):
        if start <= code < start + 8:
            return replace(style, **{name: code - start + shift})
    return style


def _extended(parts: list[int]) -> int | None:
    """The colour of 5;N or 2;R;G;B; with colons a colour space may stand before R."""
    if len(parts) >= 2 and parts[0] == 5:
        return parts[1] if parts[1] < 256 else None
    if len(parts) >= 4 and parts[0] == 2:
        red, green, blue = (min(part, 255) for part in parts[-3:])
        return nearest(red, green, blue)
    return None


def nearest(red: int, green: int, blue: int) -> int:
    """The one of the 256 colours that is nearest."""
    step = [min(range(6), key=lambda n, v=v: abs(_LEVELS[n] - v)) for v in (red, green, blue)]  # type: ignore[misc] # mypy does not follow the default
    cube = 16 + 36 * step[0] + 6 * step[1] + step[2]
    grey = 232 + max(0, min(23, round(((red + green + blue) / 3 - 8) / 10)))
    return min(
        (cube, grey),
        key=lambda n: sum((a - b) ** 2 for a, b in zip(rgb(n), (red, green, blue), strict=True)),
    )


def rgb(number: int) -> tuple[int, int, int]:
    """One of the 256 colours."""
    if number < 16:
        return _BASIC[number] >> 16, _BASIC[number] >> 8 & 255, _BASIC[number] & 255
    if number < 232:
        number -= 16
        return _LEVELS[number // 36], _LEVELS[number // 6 % 6], _LEVELS[number % 6]
    level = 8 + 10 * (number - 232)
    return level, level, level


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """By WCAG's formula, from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: tuple[int, int, int]) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def legible(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """The colour, lightened until it can be read on the ground of logs."""
    shown = colour
    for part in range(1, 21):
        if contrast(shown, GROUND) >= _LEGIBLE:
            break
        red, green, blue = (round(value + (255 - value) * part / 20) for value in colour)
        shown = red, green, blue
    return shown


@functools.cache
def stylesheet() -> str:
    """A class for each colour: `f` before, `b` behind text, which is then dark or light as fits."""
    lines = []
    for number in range(256):
        colour = rgb(number)
        ink = max(((0, 0, 0), (255, 255, 255)), key=lambda ink, c=colour: contrast(ink, c))  # type: ignore[misc] # mypy does not follow the default
        lines.append(f".b{number}{{background:{_hex(colour)};color:{_hex(ink)}}}")
    lines += [f".f{number}{{color:{_hex(legible(rgb(number)))}}}" for number in range(256)]
    lines.append(f".log{{background:{_hex(GROUND)};color:#e6edf3}}")
    lines.append(f".inverse{{background:#e6edf3;color:{_hex(GROUND)}}}")
    lines.append(".bold{font-weight:700}.faint{opacity:.8}.italic{font-style:italic}")
    lines.append(".underlined{text-decoration:underline}.struck{text-decoration:line-through}")
    return "\n".join(lines) + "\n"


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
