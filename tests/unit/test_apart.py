"""What is done in a process apart: its answer, and its end."""

import os
import subprocess  # a process of one thread to fork from
import sys
import textwrap
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"


def run(text: str) -> subprocess.Popen[str]:
    """Start a program that has `apart`; its standard input is a pipe."""
    program = (
        "import os, signal, time\nfrom obuilder.system.apart import apart\n" + textwrap.dedent(text)
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(SOURCE)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def said(text: str) -> str:
    out, err = run(text).communicate(timeout=30)
    assert not err.startswith('Traceback (most recent call last):\n  File "<string>", line 3'), err
    return out


@pytest.mark.parametrize(
    ("work", "answer"),
    [
        ("lambda: b'said'", "b'said'"),
        ("lambda: b''", "b''"),
        ("lambda: b'x' * 300000", "b'x' * 300000"),  # more than a pipe holds
        ("lambda: 1 // 0", "None"),
        ("lambda: os._exit(3)", "None"),
        ("lambda: os.kill(os.getpid(), 9)", "None"),
    ],
)
def test_the_answer_or_that_there_was_none(work: str, answer: str) -> None:
    assert said(f"print(apart({work}, seconds=10) == {answer}, end='')") == "True"


def test_a_fault_is_told() -> None:
    _, err = run("apart(lambda: 1 // 0, seconds=10)").communicate(timeout=30)
    assert "ZeroDivisionError" in err


def test_who_takes_too_long_is_asked_to_end_and_may_answer() -> None:
    text = """
    def heed():
        heard = []
        signal.signal(signal.SIGTERM, lambda *_: heard.append(b"tidied up"))
        while not heard:
            time.sleep(0.01)
        return heard[0]
    print(apart(heed, seconds=0.3), end="")
    """
    began = time.monotonic()
    assert said(text) == "b'tidied up'"
    assert time.monotonic() - began >= 0.3


def test_who_does_not_heed_that_is_killed() -> None:
    text = """
    from obuilder.system import apart as module
    module._GRACE = 0.2
    def deaf():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(100)
    print(apart(deaf, seconds=0.2), end="")
    """
    assert said(text) == "None"


def test_the_end_of_a_descriptor_is_the_end_of_the_work() -> None:
    text = """
    def report():
        os.write(1, b"begun\\n")
        time.sleep(100)
    print(apart(report, seconds=60, until=0))
    """
    process = run(text)
    assert process.stdout.readline() == "begun\n"
    process.stdin.write("what comes there is nothing to it\n")
    process.stdin.flush()
    time.sleep(0.1)
    assert process.poll() is None
    out, _ = process.communicate(timeout=10)
    assert out == "None\n"


def test_it_never_outlives_who_began_it() -> None:
    text = """
    def report():
        os.write(1, f"{os.getpid()}\\n".encode())
        time.sleep(100)
    apart(report, seconds=60)
    """
    process = run(text)
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate()
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and b"Z" not in Path(f"/proc/{pid}/stat").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.01)
