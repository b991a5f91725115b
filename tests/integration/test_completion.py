"""Completion, in each shell that a script is printed for."""

import json
import os
import subprocess  # shells to complete in
import sys

import pytest

from program import REPO, Program, shell
from terminal import Terminal

pytestmark = pytest.mark.needs("overlay", "crun")

# What a line could go on with; the shell itself goes on where nothing is said.
CASES = {
    "heal": ["healthcheck"],
    "build --no-ca": ["--no-ca-bundle", "--no-cache"],
    "image imp": ["import"],
    "image import --col": ["--color"],
    "image rm deb": ["debian:12"],
    "build --progress js": ["json"],
    "build --store overlayfs:/x --progress=js": ["--progress=json"],
    "completion f": ["fish"],
    "build -f READ": ["READABLE"],
}


@pytest.fixture
def completing(program: Program, tmp_path) -> dict[str, str]:
    """Variables for shells in which `obuilder` is the program, with a store that has results."""
    program.spec(shell("echo complete"))
    program.file("READABLE", b"")
    program.ok("build")
    program.ok("image", "import", "debian:12", "micro")
    (tmp_path / "obuilder").write_text(f'#!/bin/sh\nexec {sys.executable} -m obuilder "$@"\n')
    (tmp_path / "obuilder").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    # Nothing of whoever runs the tests: no settings, no history.
    own = {
        "HOME": str(tmp_path),
        "INPUTRC": os.devnull,
        "PATH": path,
        "LANG": "C.UTF-8",
        "TERM": "dumb",
    }
    return {**own, **program.variables, "PYTHONPATH": str(REPO / "src")}


def typed(argv: list[str], setup: str, program: Program, completing: dict[str, str]) -> None:
    """Type each case and a tab, or two where there is a choice, and look at the line then."""
    key = json.loads(program.ok("ls", "--json"))[0]["key"][:12]
    cases = {**CASES, f"show {key[:6]}": [key]}
    cases |= {f"show --store={program.settings.store} {key[:6]}": [key]}
    with Terminal(argv, cwd=program.context, env=completing, columns=200) as screen:
        screen.type(f"{setup}; PS1='$ '; echo rea''dy\r")
        screen.until(b"ready\r\n")
        for line, expected in cases.items():
            screen.seen = b""
            screen.type(f"obuilder {line}\t" + "\t" * (len(expected) > 1))
            done = line.rpartition(" ")[0] + " " if " " in line else ""
            for word in expected:
                whole = word if len(expected) > 1 else f"obuilder {done}{word} "
                screen.until(whole.encode())
            screen.type("\x15")  # takes the line away
        screen.type("exit\r")
        screen.end()


def test_bash_completes(program: Program, completing: dict[str, str]) -> None:
    argv = ["bash", "--norc", "--noprofile", "-i"]
    typed(argv, ". <(obuilder completion bash)", program, completing)


@pytest.mark.needs("zsh")
def test_zsh_completes(program: Program, completing: dict[str, str]) -> None:
    setup = "autoload -U compinit; compinit -u -D; source <(obuilder completion zsh)"
    typed(["zsh", "-f", "-i"], setup, program, completing)


@pytest.mark.needs("zsh")
def test_zsh_finds_the_script_among_its_functions(completing: dict[str, str], tmp_path) -> None:
    ask = """obuilder completion zsh > _obuilder; fpath=($PWD $fpath)
        autoload -U compinit; compinit -u -D; print $_comps[obuilder]"""
    assert asked(["zsh", "-f", "-c", ask], completing, str(tmp_path)) == "_obuilder\n"


@pytest.mark.needs("fish")
def test_fish_completes(program: Program, completing: dict[str, str]) -> None:
    ask = "obuilder completion fish | source; for line in $argv; complete -C $line; echo ==; end"
    lines = [f"obuilder {line}" for line in CASES]
    out = asked(["fish", "--no-config", "-c", ask, *lines], completing, program.context)
    assert out.count("==\n") == len(lines)
    for line, found in zip(lines, out.split("==\n"), strict=False):
        words = [row.partition("\t")[0] for row in found.splitlines()]
        assert sorted(words) == sorted(CASES[line.removeprefix("obuilder ")]), line


def asked(argv: list[str], completing: dict[str, str], folder: str) -> str:
    done = subprocess.run(
        argv, env=completing, cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


def test_without_a_store_nothing_of_it_is_offered(program: Program) -> None:
    assert program.ok("completion", "words", "--", "show", "") == ""
    assert "healthcheck\t" in program.ok("completion", "words", "--", "")
    assert not os.path.exists(program.store)
