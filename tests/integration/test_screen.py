"""The live screen on a real terminal, and streams that are closed, full or left by their readers."""

import json
import os
import re
import subprocess  # the program under test is a process
import sys

import pytest

from obuilder import events
from program import REPO, Program, running, shell, until
from terminal import Terminal

needs = pytest.mark.needs
pytestmark = needs("overlay", "crun")

HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


def on_terminal(program: Program, *arguments: str, columns: int = 60) -> Terminal:
    """The program on a terminal."""
    own = ("COLUMNS", "LINES", "NO_COLOR")
    variables = {name: value for name, value in os.environ.items() if name not in own}
    return Terminal(
        [sys.executable, "-m", "obuilder", *arguments], cwd=program.context, columns=columns,
        env={**variables, "TERM": "xterm", "PYTHONPATH": str(REPO / "src"), **program.variables},
    )  # fmt: skip


STAGES = "".join(
    f"(build {name} ((from micro) (shell /bin/sh -c) {shell(f'echo {name} 日本日本日本日本日本日本日本日本日本日本日本日本日本日本日本日本; sleep 1; echo > /{name}')}))"
    for name in ("left", "right")
)
COPIES = [f"(copy (from (build {name})) (src /{name}) (dst /{name}))" for name in ("left", "right")]


def test_stages_that_run_at_once_are_shown_together_in_whatever_width(program: Program) -> None:
    program.spec(*COPIES, shell("echo before; exit 3"), before=STAGES)
    with on_terminal(program, "build") as terminal:
        terminal.until(b"[right]")
        assert terminal.end() == 1
    assert terminal.seen.count(HIDE) == terminal.seen.count(SHOW) > 0
    lines = terminal.lines()
    assert any(re.match(r"done +1\.\ds  \[left\] /: \(run", line) for line in lines)
    assert any(line.startswith("failed") for line in lines)
    assert "          before" in lines
    assert "error: the command exited with status 3" in lines
    drawn = [line for line in lines if "日" in line or line.startswith(("done", "cached"))]
    assert drawn
    assert all(len(line) + sum(sign in "日本" for sign in line) <= 60 for line in drawn)


def test_an_interrupt_gives_the_cursor_back(program: Program) -> None:
    program.spec(shell("echo begun; sleep 60"))
    with on_terminal(program, "build") as terminal:
        terminal.until(b"     begun")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert terminal.seen.rfind(SHOW) > terminal.seen.rfind(HIDE) >= 0
    assert any(line.startswith("cancelled") for line in terminal.lines())


@pytest.mark.parametrize("runtime", ["crun", pytest.param("runc", marks=needs("runc"))])
def test_a_shell_has_a_terminal_of_the_same_size(program: Program, runtime: str) -> None:
    program.spec(shell("true"))
    key = program.ok("build", "-q").strip()
    with on_terminal(program, "shell", f"--runtime={runtime}", key, columns=77) as terminal:
        terminal.until(b"# ")
        terminal.type("stty size; sleep 61.5\r")
        terminal.until(b"24 77\r\n")
        until(lambda: running("sleep", "61.5"), "the command runs")
        terminal.type("\x03")
        until(lambda: not running("sleep", "61.5"), "the command is interrupted")
        terminal.type("exit 7\r")
        assert terminal.end() == 7


def test_a_terminal_is_not_coloured_where_nobody_wants_it(program: Program) -> None:
    program.spec(shell("echo x"))
    program.ok("build")
    cases = (
        ({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False),
    )  # fmt: skip
    for variables, coloured in cases:
        program.variables = {
            **{name: value for name, value in program.variables.items() if name != "NO_COLOR"},
            **variables,
        }
        with on_terminal(program, "build") as terminal:
            assert terminal.end() == 0
        assert (b"\x1b[34m" in terminal.seen) == coloured
    program.variables["TERM"] = "xterm"
    with on_terminal(program, "build", "--color=always") as terminal:
        assert terminal.end() == 0
    assert b"\x1b[34m" in terminal.seen


def test_lists_are_cut_where_the_terminal_ends_and_help_fits_it(program: Program) -> None:
    program.spec(shell("echo a command that is longer than a narrow terminal is wide; true"))
    program.ok("build")
    for columns, variables, longest in ((40, {}, 40), (200, {"COLUMNS": "30"}, 30)):
        program.variables |= variables
        with on_terminal(program, "ls", columns=columns) as terminal:
            assert terminal.end() == 0
        assert max(map(len, terminal.lines())) == longest
        with on_terminal(program, "build", "--help", columns=columns) as terminal:
            assert terminal.end() == 0
        assert all(word in terminal.lines()[0] for word in ("usage:", "build"))
    for columns, told in ((0, ""), (0, "wide"), (80, "wide")):
        program.variables["COLUMNS"] = told
        with on_terminal(program, "ls", columns=columns) as terminal:
            assert terminal.end() == 0
        assert any("a command" in line for line in terminal.lines())


@pytest.mark.needs("root")
def test_a_warning_is_seen_on_every_screen(program: Program) -> None:
    program.spec(shell("true"))
    with on_terminal(program, "build", "--sandbox=host") as terminal:
        assert terminal.end() == 0
    assert terminal.lines()[0].startswith("warning: NO ISOLATION: ")
    program.spec(shell("exit 1"))
    told = program.run("build", "--sandbox=host", "--progress=json").out.splitlines()
    notes = [json.loads(line) for line in told if '"event":"note"' in line]
    assert [note["warning"] for note in notes] == [True]


def test_every_line_for_programs_is_an_event_and_the_last_one_is_the_end(program: Program) -> None:
    import msgspec

    def told(*arguments: str) -> list[events.Event]:
        done = program.run("build", "--progress=json", *arguments)
        first, *lines = done.out.splitlines()
        assert json.loads(first) == {"event": "schema", "version": events.SCHEMA_VERSION}
        return [msgspec.json.decode(line, type=events.Event) for line in lines]

    program.spec(*COPIES, shell("cat /left /right"), before=STAGES)
    for cached in (0, 6):
        found = told()
        assert isinstance(found[0], events.BuildStarted)
        assert isinstance(found[-1], events.BuildDone)
        assert (found[-1].cached, found[-1].cached + found[-1].ran) == (cached, 6)
        started = [event.key for event in found if isinstance(event, events.StepStarted)]
        ended = [
            event.key for event in found if isinstance(event, events.StepDone | events.StepCached)
        ]
        assert sorted(started) == sorted(ended)
        assert found[-1].result == ended[-1]
    program.spec(shell("exit 3"))
    assert told()[-1].code == "step-failed"
    program.spec("(nonsense)")
    assert [event.code for event in told()] == ["spec"]
    assert [event.code for event in told("-f", "missing")] == ["usage"]


@pytest.mark.parametrize(("fresh", "unbuffered"), [([], ""), ([], "1"), (["--no-cache"], "1")])
def test_streams_that_are_closed_full_or_left(
    program: Program, fresh: list[str], unbuffered: str
) -> None:
    program.variables["PYTHONUNBUFFERED"] = unbuffered
    program.spec(*(shell(f"echo {number}") for number in range(6)))
    program.ok("build")
    line = f"{sys.executable} -m obuilder build {' '.join(fresh)}"
    left = "| head -n 1 >/dev/null; exit ${PIPESTATUS[0]}"  # 0 if all was written before
    for script, statuses, said in (
        (f"{line} >&- 2>&- <&-", (0,), ""),
        (f"{line} >/dev/full", (4,), "error: can't write the output: No space left on device\n"),
        (f"{line} {left}", (0, 141), ""),
        (f"{line} --progress=json {left}", (0, 141), ""),
        (f"{line} --help >&-", (0,), ""),
        (
            f"{line} --help >/dev/full",
            (4,),
            "error: can't write the output: No space left on device\n",
        ),
    ):
        done = subprocess.run(
            ["bash", "-c", script], cwd=program.context, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(REPO / "src"), **program.variables}, timeout=60,
        )  # fmt: skip
        assert done.returncode in statuses, script
        assert done.stderr == said, script
