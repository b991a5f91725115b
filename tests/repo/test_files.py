"""What holds for the repository as a whole."""

import re
import subprocess  # the scripts are no part of the program
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
SOURCES = sorted((REPO / "src").rglob("*.py"))
TEXTS = [
    path
    for name in ("src", "tests", "docs", "examples", "bench", "scripts", ".ci")
    for path in sorted((REPO / name).rglob("*"))
    if path.is_file() and path.suffix not in (".pyc", ".png") and path != Path(__file__)
] + sorted(REPO.glob("*.md"))


def test_there_are_sources_to_check() -> None:
    assert len(SOURCES) > 40
    assert len(TEXTS) > len(SOURCES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_source_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_bytes().splitlines()) <= 450


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(rb"\b(TODO|FIXME|XXX)\b")
    assert [path for path in TEXTS if marks.search(path.read_bytes())] == []


def test_no_file_knows_somebodys_machine() -> None:
    places = re.compile(rb"(?<![\w.*])/work/")
    assert [path for path in TEXTS if places.search(path.read_bytes())] == []


@pytest.mark.parametrize(
    "path", sorted((REPO / "requirements").glob("*.txt")), ids=lambda p: p.name
)
def test_the_lock_has_hashes_and_names_no_host(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert not re.search(
        r"^\s*(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)\b", text, re.MULTILINE
    )
    pinned = [line for line in text.splitlines() if re.match(r"[a-z0-9]", line)]
    assert pinned
    for line in pinned:
        assert re.match(r"[a-z0-9._-]+==\S+( ; .*)? \\$", line), line
    assert text.count("--hash=sha256:") >= len(pinned)


@pytest.mark.parametrize(
    "path",
    [*sorted((REPO / "scripts").iterdir()), REPO / ".ci" / "run"],
    ids=lambda path: path.name,
)
def test_a_script_can_be_started(path: Path) -> None:
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", path], check=True)
