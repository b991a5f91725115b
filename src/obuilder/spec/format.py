"""Pretty-printing a spec file as a person would lay it out, with every comment kept.

Works on the text's own words (so `fmt` changes no meaning, not even spelling) and needs no more
than an S-expression. A list stays on one line where it fits; else its items stand under each other.
"""

from typing import Literal

from msgspec import Struct

from obuilder.spec.sexp import Source, read, tokens

_WIDTH = 92


class _Node(Struct):
    """A word as it was written, a comment, a list, or one expression that `#;` leaves out.

    `beside`: a comment that began in the line where what stands before it ended; `blank`: an empty
    line stood before; `flat`: all of it on one line, None if that can't be or is too wide.
    """

    kind: Literal["atom", "comment", "list", "dropped"]
    text: str = ""
    items: "list[_Node]" = []
    beside: bool = False
    blank: bool = False
    flat: str | None = None

    @property
    def to_line_end(self) -> bool:
        return self.kind == "comment" and self.text.startswith(";")

    @property
    def is_spec(self) -> bool:
        """Whether a list is a spec of more than its base image: never put on one line."""
        heads = [item.items[0] for item in self.items if item.kind == "list" and item.items]
        return len(heads) > 1 and any(head.text == "from" for head in heads)

    def flatten(self) -> None:
        """Find `flat`, when the items have theirs."""
        if self.kind in ("atom", "comment"):
            self.flat = None if self.to_line_end or "\n" in self.text else self.text
            return
        parts = [item.flat for item in self.items if item.flat is not None]
        if (
            len(parts) == len(self.items)
            and not self.is_spec
            and sum(map(len, parts)) + len(parts) < _WIDTH
        ):
            self.flat = "#;" + parts[0] if self.kind == "dropped" else "(" + " ".join(parts) + ")"


def format_text(text: bytes, *, file: str = "") -> bytes:
    """The same spec, laid out. SpecError if the text is no S-expression."""
    source = Source(text, file)
    read(source)
    lines = _under_each_other(_tree(source), 0)
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _tree(source: Source) -> list[_Node]:
    """The nodes of a text that was read before, so that it is known to be sound."""
    levels: list[list[_Node]] = [[]]
    opened: list[_Node] = []
    drops = [0]
    end = 0
    for token in tokens(source):
        newlines = source.text.count(b"\n", end, token.start)
        beside = newlines == 0 and end > 0
        blank = newlines > 1
        end = token.end
        word = source.text[token.start : end].decode("utf-8", "surrogateescape")
        if token.kind == "comment":
            node = _Node("comment", word.rstrip(" \t\r\f"), beside=beside, blank=blank)
            node.flatten()
            levels[-1].append(node)
            continue
        if token.kind == "#;":
            drops[-1] += 1
            continue
        if token.kind == "(":
            opened.append(_Node("list", blank=blank))
            levels.append([])
            drops.append(0)
            continue
        if token.kind == "atom":
            node = _Node("atom", word, blank=blank)
        else:
            node = opened.pop()
            node.items = levels.pop()
            drops.pop()
        node.flatten()
        if drops[-1]:
            drops[-1] -= 1
            node = _Node("dropped", items=[node], blank=node.blank)
            node.flatten()
        levels[-1].append(node)
    return levels[0]


def _lines(node: _Node, indent: int) -> list[str]:
    """The node laid out, its first line without indentation, the others with it."""
    if node.kind in ("atom", "comment"):
        return node.text.split("\n")
    flat = node.flat
    if flat is not None and (indent + len(flat) <= _WIDTH or not node.items):
        return [flat]
    if node.kind == "dropped":
        lines = _lines(node.items[0], indent + 2)
        return ["#;" + lines[0], *lines[1:]]
    lead, rest, inner = _lead(node)
    lines = _under_each_other(rest, indent + inner, first=lead)
    if node.items[-1].to_line_end:
        lines.append(" " * indent + ")")
    else:
        lines[-1] += ")"
    return lines


def _lead(node: _Node) -> tuple[str, list[_Node], int]:
    """What stays in a list's first line, what stands under each other, and how far to the right."""
    names = [item.text for item in node.items[:2] if item.kind == "atom" and "\n" not in item.text]
    if names[:1] == ["build"] and len(names) == 2:
        return f"(build {names[1]}", node.items[2:], 1
    if names and node.items[0].kind == "atom" and not _begins_with_comment(node.items[1:]):
        return f"({names[0]} ", node.items[1:], len(names[0]) + 2
    return "(", node.items, 1


def _begins_with_comment(items: list[_Node]) -> bool:
    return bool(items) and items[0].kind == "comment"


def _under_each_other(items: list[_Node], indent: int, *, first: str | None = None) -> list[str]:
    """A line, or more, for each item. `first`: what the first item stands behind.

    Behind a name it stands in the name's line; behind a whole form's beginning in the next one.
    """
    lines = [] if first is None else [first]
    joined = first is not None and first.endswith(("(", " "))
    for item in items:
        laid = _lines(item, indent)
        if joined:
            lines[-1] += laid[0]
        elif item.beside and lines:
            lines[-1] += " " + laid[0]
        else:
            if item.blank and lines:
                lines.append("")
            lines.append(" " * indent + laid[0])
        lines.extend(laid[1:])
        joined = False
    return lines
