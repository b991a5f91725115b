"""The examples build, and the second time everything comes from the cache."""

import subprocess  # a builder enters namespaces, which are for its process alone
import sys
import tempfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

BUILD_TWICE = """
import sys

import anyio

from obuilder import events
from obuilder.engine.builder import Builder
from obuilder.engine.settings import Settings
from obuilder.spec.decode import parse

store, example = sys.argv[1:]
with open(f"{example}/obuilder.spec", "rb") as file:
    spec = parse(file.read(), file="obuilder.spec").spec


def say(event):
    if isinstance(event, events.Output):
        sys.stdout.buffer.write(event.data)


async def main():
    async with Builder.open(Settings(store=f"overlayfs:{store}")) as builder:
        first = await builder.build(spec, example, sink=say)
        again = await builder.build(spec, example)
        assert first.ran > 0, first
        assert (again.key, again.ran) == (first.key, 0), again


anyio.run(main)
"""


@pytest.mark.needs("root", "overlay")
@pytest.mark.parametrize(
    ("example", "output"), [("hello", "Hello, world\n"), ("multi-stage", "left\nright\n")]
)
def test_an_example_builds_and_is_cached(example: str, output: str) -> None:
    # Not below pytest's own directory, which is closed to the users that steps run as.
    with tempfile.TemporaryDirectory(prefix="obuilder-examples.", dir="/var/tmp") as store:
        ended = subprocess.run(
            [sys.executable, "-c", BUILD_TWICE, store, str(EXAMPLES / example)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith(output)


def test_every_example_is_tested_and_listed() -> None:
    found = {path.parent.name for path in EXAMPLES.glob("*/obuilder.spec")}
    assert found == {"hello", "multi-stage"}
    text = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}`" in text for name in found)
