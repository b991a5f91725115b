"""The cached path's modules import little: a build with nothing to do is over at once."""

import subprocess  # each import needs an interpreter of its own
import sys

import pytest

CACHED_PATH = [
    "obuilder.values",
    "obuilder.errors",
    "obuilder.events",
    "obuilder.spec.decode",
    "obuilder.spec.encode",
    "obuilder.spec.from_dockerfile",
    "obuilder.spec.ignore",
    "obuilder.plan.lower",
    "obuilder.plan.keys",
    "obuilder.cli.specs",
    "obuilder.cli.tracing",
    "obuilder.engine.dockerfiles",
    "obuilder.engine.index",
    "obuilder.engine.database",
    "obuilder.engine.settings",
    "obuilder.system.picking",
    "obuilder.engine.lockfile",
    "obuilder.engine.cached",
    "obuilder.backends.fetchers.remote",
    "obuilder.system.tree",
]
HEAVY = [
    "anyio",
    "asyncio",
    "rich",
    "httpx2",
    "ssl",
    "dataclasses",
    "pathlib",
    "tempfile",
    "shutil",
    "logging",
]


@pytest.mark.parametrize("module", CACHED_PATH)
def test_a_module_of_the_cached_path_imports_nothing_heavy(module: str) -> None:
    program = (
        f"import sys; before = set(sys.modules); import {module};"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules and name not in before])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == []
