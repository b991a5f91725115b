"""What the pages say of commands and of each other is so."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from obuilder.cli.options import parser_for
from obuilder.cli.verbs import VERBS
from obuilder.spec.decode import parse

REPO = Path(__file__).parents[2]
PAGES = sorted([*REPO.glob("*.md"), *REPO.glob("docs/**/*.md"), *REPO.glob("examples/*.md")])

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))


def commands(text: str) -> list[list[str]]:
    """The command lines of obuilder in blocks of code, fenced or indented."""
    lines = []
    fenced = ""
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = "" if fenced else line
        elif fenced.startswith("```sh") or (not fenced and line.startswith("    ")):
            found = re.search(r"(?:^|&& |\$\(|-u \w+ )obuilder ([a-z].*)", line.strip())
            if found:
                words = shlex.split(found[1].partition(")")[0], comments=True)
                ends = [at for at, word in enumerate(words) if word in ("|", "||", "&&", ">")]
                lines.append(words[: ends[0]] if ends else words)
    return lines


def test_command_lines_are_found() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert len(commands(text)) > 40
    assert {words[0] for words in commands(text)} >= {"build", "shell", "export", "prune", "image"}


@each_page
def test_every_command_line_is_one(page: Path) -> None:
    for words in commands(page.read_text()):
        assert words[0] in VERBS, words
        module = import_module(f"obuilder.cli.{words[0]}")
        parser_for(words[0], module).parse_args(words[1:])


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@each_page
def test_every_spec_is_one(page: Path) -> None:
    for block in re.findall(r"^```lisp.*?\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        if "…" not in block:
            text = block if block.startswith("((") else f"((from scratch) {block})"
            parse(text.encode(), file=page.name)
