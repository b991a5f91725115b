"""The program as people run it: a process, its streams and its exit status."""

import os
import signal
import subprocess  # the program under test is a process
import sys
import time
from pathlib import Path

import pytest

from obuilder.cli.main import VERBS
from obuilder.cli.reference import markdown

ROOT = Path(__file__).parents[2]


def start(*arguments: str, cwd: Path, **variables: str) -> "subprocess.Popen[bytes]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OBUILDER_")}
    return subprocess.Popen(
        [sys.executable, "-m", "obuilder", *arguments],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT / "src"), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def obuilder(*arguments: str, cwd: Path, **variables: str) -> tuple[int, str, str]:
    process = start(*arguments, cwd=cwd, **variables)
    out, err = process.communicate(timeout=120)
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out.decode(), err.decode()


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
        (["build", "--stor=x"], "did you mean --store?"),
        (["build", "--store=overlayfs:relative"], "absolute path"),
        (["build", "--store=nope:/x"], "no store called 'nope'"),
        (["build", "--secret", "nofile"], "is no secret"),
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
    page = (ROOT / "docs/reference/cli.md").read_text()
    assert page == markdown(), "run: python -m obuilder.cli.reference > docs/reference/cli.md"


@pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: the store's directory is the machine's own"
)
def test_build_and_look_and_cancel(tmp_path: Path) -> None:
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    store = f"--store=overlayfs:{tmp_path}/store"
    context = tmp_path / "ctx"
    context.mkdir()
    (context / "obuilder.spec").write_text(
        "((from micro) (shell /bin/sh -c) (run (shell \"printf 'a\\\\033]0;t\\\\007'\")))"
    )
    status, out, err = obuilder("build", store, cwd=context)
    assert status == 0, err
    assert "a\x1b]0;t\x07\n---> saved as" in out
    key = out.splitlines()[-1].removeprefix('Got: "').removesuffix('"')
    status, again, _ = obuilder(
        "build", "-f", "obuilder.spec", ".", store, "-v", "--color=never", cwd=context
    )
    assert status == 0
    assert f'---> using "{key}" from cache' in again
    assert "saved as" not in again
    assert key[:12] in obuilder("ls", store, cwd=context)[1]
    assert obuilder("log", key[:8], store, cwd=context)[1] == "a\x1b]0;t\x07"

    (context / "slow.spec").write_text(
        '((from micro) (shell /bin/sh -c) (run (shell "echo begun; while :; do :; done")))'
    )
    process = start("build", "-f", "slow.spec", ".", store, cwd=context)
    assert process.stdout is not None
    for line in process.stdout:
        if line == b"begun\n":
            break
    else:
        assert process.stderr is not None
        pytest.fail(process.stderr.read().decode())
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert time.monotonic() - sent < 5

    (context / "bad.spec").write_text('((from micro) (shell /bin/sh -c) (run (shell "exit 7")))')
    status, _, err = obuilder("build", "-f", "bad.spec", ".", store, cwd=context)
    assert status == 1
    assert err.startswith("error: ")
    assert obuilder("delete", key, store, cwd=context)[0] == 0
