"""Pretty-printing a spec file as a person would lay it out, with every comment kept.

Works on the text's own words (so `fmt` changes no meaning, not even spelling) and needs no more
than balanced parentheses; what is inside an operation stays on one line where it fits.
"""

from msgspec import Struct

from obuilder.spec.sexp import Source, read, skip_block_comment, skip_quoted

_WIDTH = 92


class _Token(Struct, frozen=True):
    """A word, parenthesis or comment as written; `blank` says that an empty line stood before."""

    text: str
    blank: bool
    alone: bool


class _Node(Struct):
    """A list (`items`), or a word or comment (`token`)."""

    token: _Token | None
    items: "list[_Node]"
    blank: bool = False

    @property
    def comment(self) -> bool:
        return self.token is not None and self.token.text.startswith((";", "#|"))


def format_text(text: bytes, *, file: str = "") -> bytes:
    """The same spec, laid out. SpecError if the text is no S-expression."""
    source = Source(text, file)
    read(source)
    lines: list[str] = []
    for node in _tree(_tokens(source)):
        if node.blank and lines:
            lines.append("")
        if node.token is not None and not node.token.alone and lines and node.comment:
            lines[-1] += " " + node.token.text
        else:
            lines.extend(_lines(node, 0))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def _tokens(source: Source) -> list[_Token]:
    text, at, size = source.text, 0, len(source.text)
    tokens: list[_Token] = []
    newlines = 1
    while at < size:
        byte = text[at]
        if byte in b" \t\f\r\n":
            newlines += byte == 10
            at += 1
            continue
        start = at
        if byte in b"()":
            at += 1
        elif byte == 59:
            end = text.find(b"\n", at)
            at = size if end < 0 else end
        elif byte == 34:
            at = skip_quoted(source, at)
        elif text[at : at + 2] == b"#|":
            at = skip_block_comment(source, at)
        elif text[at : at + 2] == b"#;":
            at += 2
        else:
            while at < size and text[at] not in b' \t\n\f\r()";':
                at += 1
        word = text[start:at].decode("utf-8", "surrogateescape").rstrip("\r")
        tokens.append(_Token(word, newlines > 1, newlines > 0))
        newlines = 0
    return tokens


def _tree(tokens: list[_Token]) -> list[_Node]:
    top = _Node(None, [])
    stack = [top]
    for token in tokens:
        if token.text == "(":
            node = _Node(None, [], token.blank)
            stack[-1].items.append(node)
            stack.append(node)
        elif token.text == ")":
            stack.pop()
        else:
            stack[-1].items.append(_Node(token, [], token.blank))
    return top.items


def _flat(node: _Node) -> str | None:
    """The node on one line; None if that can't be: line comments, strings over several lines."""
    if node.token is not None:
        text = node.token.text
        return None if text.startswith(";") or "\n" in text else text
    parts = []
    for item in node.items:
        part = _flat(item)
        if part is None:
            return None
        parts.append(part)
    return "(" + " ".join(parts) + ")"


def _lines(node: _Node, indent: int) -> list[str]:
    """The node laid out, its first line without indentation, the others with it."""
    if node.token is not None:
        return node.token.text.split("\n")
    flat = _flat(node)
    if flat is not None and indent + len(flat) <= _WIDTH and not _is_spec(node):
        return [flat]
    # Operations stand under each other; so do the fields of one, behind its name.
    name = None if not node.items else _flat(node.items[0]) if node.items[0].token else None
    lead = "(" if name is None else f"({name} "
    inner = indent + len(lead)
    if name == "build" and len(node.items) >= 3:
        lead, inner = f"(build {_flat(node.items[1]) or ''}", indent + 1
        rest = node.items[2:]
        lines = [lead]
    else:
        rest = node.items if name is None else node.items[1:]
        lines = []
    after_line_comment = False
    for item in rest:
        token = item.token
        if lines and token is not None and item.comment and not token.alone:
            lines[-1] += " " + token.text
            after_line_comment = token.text.startswith(";")
            continue
        if item.blank and lines:
            lines.append("")
        laid = _lines(item, inner)
        if not lines:
            lines.append(lead + laid[0])
        else:
            lines.append(" " * inner + laid[0])
        lines.extend(laid[1:])
        after_line_comment = token is not None and token.text.startswith(";")
    if not lines:
        lines = [lead.rstrip()]
    if after_line_comment:
        lines.append(" " * indent + ")")
    else:
        lines[-1] += ")"
    return lines


def _is_spec(node: _Node) -> bool:
    """Whether a list is a spec or a nested build: those are never put on one line."""
    heads = [item.items[0].token for item in node.items if item.token is None and item.items]
    return any(head is not None and head.text == "from" for head in heads) and len(heads) > 1
