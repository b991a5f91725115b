"""The table of contents of a Markdown text."""

import sys
from collections.abc import Iterator
from itertools import pairwise

from markdown_it import MarkdownIt


def headings(text: str) -> Iterator[tuple[int, str]]:
    """Level and words of each heading, in order."""
    tokens = MarkdownIt().parse(text)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in inline.children or [])
            yield int(opening.tag[1:]), words


def outline(text: str) -> str:
    """One line a heading, indented by its level below the highest."""
    found = list(headings(text))
    top = min((level for level, _ in found), default=0)
    return "".join(f"{'  ' * (level - top)}- {words}\n" for level, words in found)


def main() -> None:
    """The program: Markdown files as arguments, their outlines on standard output."""
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            sys.stdout.write(outline(file.read()))
