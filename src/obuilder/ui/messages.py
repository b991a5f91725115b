"""How errors look: what, where with the line and a caret, and a hint after a blank line."""

import os
import sys

from obuilder.errors import ObuilderError, SpecError, SpecErrors, StepFailed
from obuilder.spec.encode import one_line
from obuilder.ui.terminal import cells, visible


def colour_wanted(choice: str, stream: object) -> bool:
    """Whether to colour: `always`, `never`, or `auto` for a terminal that can, without NO_COLOR."""
    if choice != "auto":
        return choice == "always"
    isatty = getattr(stream, "isatty", None)
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and isatty is not None and bool(isatty())


def render(error: ObuilderError) -> str:
    """The whole message, ending with a newline."""
    if isinstance(error, SpecErrors):
        return "\n".join(_one(inner) for inner in error.errors)
    return _one(error)


def _one(error: ObuilderError) -> str:
    lines = [f"error: {visible(error.message)}"]
    if isinstance(error, SpecError) and error.span is not None:
        place = f"{error.file}:{error.span.line}:{error.span.column}"
        lines = [f"{visible(place)}: {lines[0]}", *_marked(*error.excerpt)]
    if isinstance(error, StepFailed) and error.heading:
        lines.append(f"  in {visible(one_line(error.heading))}")
    lines.extend(f"note: {visible(note)}" for note in getattr(error, "__notes__", ()))
    if error.hint:
        lines += ["", f"hint: {visible(error.hint)}"]
    return "\n".join(lines) + "\n"


def _marked(before: str, marked: str, after: str) -> list[str]:
    """A line of a text, and carets under what is meant."""
    before, marked, after = visible(before), visible(marked), visible(after)
    # Tabs stand for themselves, so that they are as wide below as above.
    pad = "".join("\t" if sign == "\t" else " " * cells(sign) for sign in before)
    return [f"  {before}{marked}{after}", f"  {pad}{'^' * max(1, cells(marked))}"]


def complain(error: ObuilderError) -> None:
    """Put the message on standard error, whatever bytes it holds."""
    data = render(error).encode()
    sys.stderr.flush()
    try:
        sys.stderr.buffer.write(data)
        sys.stderr.flush()
    except (OSError, ValueError):
        return
