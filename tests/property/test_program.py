"""Whatever bytes a spec's file holds, each verb that reads it prints or refuses: never a traceback."""

import io
import os
import random
import subprocess  # a handful as real processes
import sys
from pathlib import Path

import pytest

from obuilder.cli.main import run
from obuilder.errors import ObuilderError
from obuilder.ui.messages import render
from program import obuilder

SEEDS = [path.read_bytes() for path in Path(__file__).parents[2].glob("examples/*/obuilder.spec")]
WORDS = [
    b"(", b")", b'"', b"#|", b"|#", b"#;", b";", b"\\", b"\\x4", b"\\999", b"\0", b"\xff", b"\r", b"..", b"/",
    b"(run", b"(copy", b"(from micro)", b"(build a", b"(user (uid -1))", b"(cache", b"(Run ((shell x)))", b"micro",
    b"scratch", b"rootfs:/nowhere", b"tar:", b"(limits (memory 0))", b"9" * 400, b"(" * 200, b"\n" * 3,
]  # fmt: skip

COUNT = 1000 if os.environ.get("OBUILDER_TEST_WHOLE") else 300


def mutated(dice: random.Random) -> bytes:
    data = bytearray(dice.choice(SEEDS))
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(data) + 1)
        kind = dice.randrange(4)
        if kind == 0:
            data[at:at] = dice.choice(WORDS)
        elif kind == 1:
            del data[at : at + dice.randrange(1, 30)]
        elif kind == 2:
            data[at : at + 1] = bytes([dice.randrange(256)])
        else:
            start = dice.randrange(len(data) + 1)
            data[at:at] = data[start : start + dice.randrange(60)]
    return bytes(data)


def noise(dice: random.Random) -> bytes:
    size = dice.randrange(120)
    if dice.random() < 0.5:
        return dice.randbytes(size)
    return b" ".join(dice.choice(WORDS) for _ in range(size // 8))


@pytest.mark.parametrize("make", [noise, mutated])
def test_hundreds_of_files(make, tmp_path, monkeypatch, seed):
    dice = random.Random(seed)
    monkeypatch.setenv("OBUILDER_STORE", f"overlayfs:{tmp_path}/store")
    (tmp_path / "greeting.txt").write_text("hello")
    path = tmp_path / "obuilder.spec"
    lines = [
        ["check", str(path)], ["fmt", "--stdout", str(path)], ["plan", "-f", str(path), str(tmp_path)],
        ["plan", "--json", "-f", str(path), str(tmp_path)], ["dockerfile", "-f", str(path), "--buildkit"],
    ]  # fmt: skip
    outcomes = set()
    for _ in range(COUNT):
        path.write_bytes(make(dice))
        for line in lines:
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
            monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), "utf-8"))
            try:
                outcomes.add(run(line))
            except ObuilderError as error:
                outcomes.add(error.exit_status)
                assert render(error).startswith(("error: ", str(path)))
    assert 2 in outcomes


def test_some_as_processes(tmp_path, seed):
    dice = random.Random(seed)
    for number in range(12):
        data = (noise, mutated)[number % 2](dice)
        (tmp_path / "obuilder.spec").write_bytes(data)
        done = obuilder("check", cwd=tmp_path)
        assert done.status in (0, 2), (data, done)
        assert bool(done.err) == (done.status == 2)


def test_arguments_that_are_no_text(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OBUILDER_")}
    for line in (
        [b"check", b"\xff\xfe"],
        [b"\xff"],
        [b"build", b"-f", b"/no\xffwhere"],
        [b"build", b"--\xff"],
    ):
        done = subprocess.run(
            [sys.executable.encode(), b"-m", b"obuilder", *line],
            cwd=tmp_path, env=clean, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done
        assert b"Traceback" not in done.stderr
        assert done.stderr.startswith(b"error: ")
