"""What the pages say of commands and of each other is so."""

import argparse
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


def _known(parser: argparse.ArgumentParser) -> set[str]:
    found = {name for action in parser._actions for name in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= set(action.choices).union(*map(_known, action.choices.values()))
    return found


def test_every_option_that_the_pages_of_the_cluster_name_is_one() -> None:
    modules = {verb: import_module(f"obuilder.cli.{verb}") for verb in VERBS}
    known = set[str]().union(*(_known(parser_for(verb, modules[verb])) for verb in VERBS))
    come = REPO / "docs/how-to/from-ocluster.md"
    found = set()
    about = [p for p in REPO.glob("docs/cluster/*.md") if p.name != "figures.md"]
    for page in [*about, come]:  # figures tell how benches were run
        for line in page.read_text().splitlines():
            # What OCluster has stands on the left.
            ours = line.split("|")[-2] if page == come and line.startswith("|") else line
            for span in re.findall(r"`([^`]+)`", ours):
                found |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", span))
                verbs = re.match(r"obuilder ([a-z]+)(?: ([a-z][a-z-]+)\b)?", span)
                if verbs:
                    assert verbs[1] in VERBS, span
                    if verbs[1] in ("cluster", "job") and verbs[2]:
                        assert verbs[2] in known, span
    assert len(found) > 40
    assert found - known == set()


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
