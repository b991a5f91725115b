"""The tutorial's commands are run as they stand, and print what it says."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from people import Person
from program import REPO

TUTORIAL = REPO / "docs/tutorial.md"

pytestmark = [
    pytest.mark.needs("root", "overlay", "newuidmap", "mmdebstrap", "system-python"),
    pytest.mark.xdist_group("debian"),
]


class Block(NamedTuple):
    """A block of code: its language, the file that it is if it is one, and its text."""

    language: str
    file: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(
        r"^```(\w+) ?(\S*)\n(.*?)^```$", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE
    )
    return [Block(*groups) for groups in found]


def script() -> tuple[str, list[str]]:
    """One program of all files and commands, and what is to be found in each of its parts' output."""
    lines = ["set -eu"]
    expected = []
    for block in blocks():
        if block.file:
            lines.append(f"cat > {block.file} <<'END OF FILE'\n{block.text}END OF FILE")
        elif block.language == "sh":
            lines.append(f"printf '\\036'\n{block.text}")
            expected.append("")
        else:
            assert block.language == "text", block
            expected[-1] = block.text
    return "\n".join(lines), expected


def agrees(line: str, with_: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in with_.split("…"))
    return re.fullmatch(rf"\s*{pattern}", line) is not None


def test_every_command_prints_what_the_tutorial_says(owner: Person, clone: Path) -> None:
    program, expected = script()
    assert len(expected) > 12
    done = owner.run("bash", "-c", f"exec 2>&1\n{program}", cwd=clone)
    parts = done.out.split("\036")[1:]
    for part, text in zip(parts, expected, strict=False):
        lines = iter(part.splitlines())
        for wanted in text.splitlines():
            assert any(agrees(line, wanted) for line in lines), f"no {wanted!r} in:\n{part}"
    assert done.status == 0, done.out
    assert len(parts) == len(expected)
    owner.run("rm", "-rf", "index", "obuilder-env", ".local")
