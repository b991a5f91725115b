"""The program as people run it: a process, its streams and its exit status."""

import os
import signal
import time
from pathlib import Path

import pytest

from obuilder.cli.reference import markdown
from obuilder.cli.verbs import VERBS
from program import REPO, Program, finish, heard, obuilder, shell, start


def test_help_lists_every_verb(tmp_path: Path) -> None:
    status, out, _ = obuilder("--help", cwd=tmp_path)
    assert status == 0
    assert all(f"  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, tmp_path: Path) -> None:
    status, out, _ = obuilder(verb, "--help", cwd=tmp_path)
    assert status == 0
    assert out.startswith(f"usage: obuilder {verb}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bild"], "did you mean 'build'?"),
        (["build", "--stroe=x"], "did you mean --store?"),
        (["build", "--store=overlayfs:relative"], "absolute path"),
        (["build", "--store=nope:/x"], "no store called 'nope'"),
        (["build", "--secret", "nofile"], "tells no value"),
        (["build", "--secret", "id:/missing/file"], "can't read /missing/file"),
        (["build", "-f", "missing.spec", "."], "can't read missing.spec"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "obuilder.spec").write_text("((from scratch))")
    store = (
        []
        if any("--store" in a or "--stor" in a for a in arguments)
        else ["--store", f"overlayfs:{tmp_path}/s"]
    )
    if arguments[0] == "bild":
        store = []
    status, out, err = obuilder(*arguments, *store, cwd=tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_check_shows_every_fault_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "obuilder.spec").write_text("((from x)\n (rnu (shell y))\n (workdri /))\n")
    status, _, err = obuilder("check", cwd=tmp_path)
    assert status == 2
    assert "obuilder.spec:2:" in err
    assert "obuilder.spec:3:" in err


def test_a_config_file_and_the_environment_are_read_and_judged(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('stoer = "overlayfs:/x"\n')
    status, _, err = obuilder("ls", cwd=tmp_path, OBUILDER_CONFIG=str(config))
    assert status == 2
    assert "stoer" in err
    config.write_text('store = "overlayfs:/from/the/file"\n')
    _, _, err = obuilder("ls", cwd=tmp_path, OBUILDER_CONFIG=str(config))
    assert "/from/the/file" in err
    store = f"overlayfs:{tmp_path}/variable"
    _, _, err = obuilder("ls", cwd=tmp_path, OBUILDER_CONFIG=str(config), OBUILDER_STORE=store)
    assert f"{tmp_path}/variable" in err


def test_dockerfile_of_obuilders_own_line(tmp_path: Path) -> None:
    (tmp_path / "x.spec").write_text('((from debian)\n (run (shell "echo hi")))')
    status, out, _ = obuilder(
        "dockerfile", "-f", "x.spec", "--buildkit", "--escape", "unix", cwd=tmp_path
    )
    assert status == 0
    assert "FROM debian" in out


def test_a_reader_who_leaves_is_no_fault(tmp_path: Path) -> None:
    process = start("completion", "bash", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    process.wait(timeout=60)


def test_the_reference_is_what_the_parsers_say() -> None:
    page = (REPO / "docs/reference/cli.md").read_text()
    assert page == markdown(), "run: python -m obuilder.cli.reference > docs/reference/cli.md"


@pytest.mark.needs("root", "overlay")
def test_build_and_look_and_cancel(program: Program) -> None:
    program.spec(shell("printf 'a\\033]0;t\\007'"))
    out = program.ok("build")
    assert "a\x1b]0;t\x07\n---> saved as" in out
    key = out.splitlines()[-1].removeprefix('Got: "').removesuffix('"')
    again = program.ok("build", "-f", "obuilder.spec", ".", "-v", "--color=never")
    assert f'---> using "{key}" from cache' in again
    assert "saved as" not in again
    assert key[:12] in program.ok("ls")
    assert program.ok("log", key[:8]) == "a\x1b]0;t\x07"

    program.spec(shell("echo begun; while :; do :; done"))
    process = program.start("build")
    heard(process, b"begun")
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert finish(process, timeout=30).status == 130
    assert time.monotonic() - sent < 5

    program.spec(shell("exit 7"))
    done = program.run("build")
    assert done.status == 1
    assert done.err.startswith("error: ")
    program.ok("delete", key)


def test_fmt_changes_what_it_can_and_tells_the_rest(tmp_path: Path) -> None:
    (tmp_path / "good.spec").write_text("((from   x)  (env A b)) ; kept\n")
    (tmp_path / "good.spec").chmod(0o640)
    (tmp_path / "link.spec").symlink_to("good.spec")
    (tmp_path / "bad.spec").write_text("((from x")
    files = ("missing.spec", "bad.spec", "link.spec")
    done = obuilder("fmt", "--check", *files, cwd=tmp_path)
    assert (done.status, done.out) == (2, "link.spec: would be laid out anew\n")
    done = obuilder("fmt", *files, cwd=tmp_path)
    assert done.status == 2
    assert "can't read missing.spec" in done.err
    assert "bad.spec:1:2: error: this ( is never closed" in done.err
    assert (tmp_path / "link.spec").is_symlink()
    assert (tmp_path / "good.spec").read_text() == "((from x)\n (env A b)) ; kept\n"
    assert (tmp_path / "good.spec").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["bad.spec", "good.spec", "link.spec"]
    assert obuilder("fmt", "--check", "good.spec", cwd=tmp_path).status == 0
    assert obuilder("check", *files, cwd=tmp_path).out == "link.spec: ok\n"
