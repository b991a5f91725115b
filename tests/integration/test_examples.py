"""The examples build, and the second time everything comes from the cache."""

import configparser
import shutil
import subprocess  # pip is no part of the program
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from places import scratch
from program import REPO, Done, obuilder

EXAMPLES = REPO / "examples"
OUTPUTS = {
    "hello": "Hello, world\n",
    "dockerfile": "5 notes",
    "website": "index.html: history.html is there\n",
    "c-program": "    13  what\n    10  the\n",
    "python-project": "4 passed",
}
"""By the example's name: something that its steps print."""

pytestmark = [pytest.mark.needs("root", "overlay"), pytest.mark.xdist_group("debian")]


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """One store for all of them, as somebody has who tries them one after the other."""
    with scratch() as place:
        yield f"overlayfs:{place}/store"


@pytest.fixture(scope="module")
def pip_conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pip.conf that says which package index this machine uses."""
    found = configparser.ConfigParser(interpolation=None)
    found["global"] = {}
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in ("index-url", "trusted-host"):
            found["global"][option] = value.strip("'")
    path = tmp_path_factory.mktemp("pip") / "pip.conf"
    with path.open("w") as file:
        found.write(file)
    return path


@pytest.fixture(scope="module")
def debian_12(debian: str, store: str) -> str:
    """The name that the specs give to the Debian base, imported into the store."""
    done = obuilder("image", "import", "debian:12", f"tar:{debian}", cwd=REPO, OBUILDER_STORE=store)
    assert done.status == 0, done.err
    return "debian:12"


def built(context: Path, store: str, *options: str) -> Done:
    done = obuilder("build", *options, str(context), cwd=REPO, OBUILDER_STORE=store)
    assert done.status == 0, done.out + done.err
    return done


def builds_and_is_cached(example: str, store: str, *options: str) -> None:
    first = built(EXAMPLES / example, store, *options).out
    again = built(EXAMPLES / example, store, *options).out
    assert OUTPUTS[example] in first
    assert OUTPUTS[example] in again
    assert "saved as" in first
    assert "saved as" not in again
    assert again.count("from cache") == first.count("---> ")
    assert again.splitlines()[-1] == first.splitlines()[-1]


@pytest.mark.parametrize("example", ["hello", "website", "dockerfile"])
def test_an_example_needs_nothing_but_busybox(example: str, store: str) -> None:
    builds_and_is_cached(example, store)


@pytest.mark.needs("mmdebstrap")
def test_a_c_program_is_compiled_tested_and_runs_in_an_empty_root(
    store: str, debian_12: str, tmp_path: Path
) -> None:
    builds_and_is_cached("c-program", store)
    key = built(EXAMPLES / "c-program", store, "--progress=quiet").out.strip()
    archive = tmp_path / "result.tar"
    done = obuilder("export", key, f"tar:{archive}", cwd=REPO, OBUILDER_STORE=store)
    assert done.status == 0, done.err
    with tarfile.open(archive) as tar:
        files = {member.name for member in tar if member.isfile()}
    assert files == {"bin/tally", "poem.txt"}, "nothing else is in the second stage"


@pytest.mark.needs("mmdebstrap")
def test_a_python_project_takes_its_dependencies_from_the_index_once(
    store: str, debian_12: str, pip_conf: Path, tmp_path: Path
) -> None:
    secret = ("--secret", f"pip.conf:{pip_conf}")
    builds_and_is_cached("python-project", store, *secret)

    changed = tmp_path / "changed"
    shutil.copytree(EXAMPLES / "python-project", changed)
    with (changed / "requirements.txt").open("a") as file:
        file.write("# a change that needs nothing new\n")
    out = built(changed, store, *secret).out
    assert "File was already downloaded /wheels/pytest" in out
    assert "Downloading" not in out, "the cache volume has kept it all"


def test_every_example_is_tested_and_listed() -> None:
    names = ("obuilder.spec", "Dockerfile")
    found = {path.parent.name for name in names for path in EXAMPLES.glob(f"*/{name}")}
    assert found == set(OUTPUTS)
    text = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}`" in text for name in found)
