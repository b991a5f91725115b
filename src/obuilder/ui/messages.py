"""How errors look: what, where with the line and a caret, and a hint after a blank line."""

import os
import sys

from obuilder.errors import ObuilderError, SpecError, SpecErrors, StepFailed


def colour_wanted(choice: str, stream: object) -> bool:
    """Whether to colour: `always`, `never`, or `auto` for a terminal without NO_COLOR."""
    if choice != "auto":
        return choice == "always"
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and bool(isatty()) and not os.environ.get("NO_COLOR")


def render(error: ObuilderError) -> str:
    """The whole message, ending with a newline."""
    if isinstance(error, SpecErrors):
        return "\n".join(_one(inner) for inner in error.errors)
    return _one(error)


def _one(error: ObuilderError) -> str:
    lines = [f"error: {error.message}"]
    if isinstance(error, SpecError) and error.span is not None:
        place = f"{error.file}:{error.span.line}:{error.span.column}"
        lines[0] = f"{place}: error: {error.message}"
        before = error.line_text[: error.span.column - 1]
        pad = "".join("\t" if sign == "\t" else " " for sign in before)
        width = max(1, min(error.span.end - error.span.start, len(error.line_text) - len(before)))
        lines += [f"  {error.line_text}", f"  {pad}{'^' * width}"]
    if isinstance(error, StepFailed) and error.heading:
        lines.append(f"  in {error.heading.partition(chr(10))[0]}")
    lines.extend(f"note: {note}" for note in getattr(error, "__notes__", ()))
    if error.hint:
        lines += ["", f"hint: {error.hint}"]
    return "\n".join(lines) + "\n"


def complain(error: ObuilderError) -> None:
    """Put the message on standard error, whatever bytes it holds."""
    data = render(error).encode("utf-8", "backslashreplace")
    sys.stderr.flush()
    try:
        sys.stderr.buffer.write(data)
        sys.stderr.flush()
    except (OSError, ValueError):
        return
