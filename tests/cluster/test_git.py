"""Contexts out of git, from a real server on the loopback."""

import os
import socket
import subprocess
from collections.abc import Iterator

import anyio
import pytest

from obuilder.cluster.git import Repositories
from obuilder.cluster.messages import GitContext
from obuilder.errors import BadImage, NotFound, Unreachable, UsageError
from repositories import Served, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def served(tmp_path) -> Iterator[Served]:
    directory = str(tmp_path / "served")
    os.mkdir(directory)
    with serving(directory) as ready:
        yield ready


def _read(*parts: str) -> str:
    with open(os.path.join(*parts)) as file:
        return file.read()


def _head(tree: str) -> bytes:
    argv = ["git", "-C", tree, "-c", "safe.directory=*", "rev-parse", "HEAD"]
    return subprocess.run(argv, capture_output=True, check=True).stdout


async def test_commits_are_fetched_once_and_merged(served, tmp_path) -> None:
    base = served.commit("r", a="a\n")
    served.git("r", "checkout", "-q", "-b", "left")
    left = served.commit("r", left="left\n")
    served.git("r", "checkout", "-q", "-b", "right", base)
    right = served.commit("r", right="right\n")
    served.git("r", "checkout", "-q", "-b", "other", base)
    clash = served.commit("r", left="another\n")
    # A request to merge, on no branch: fetched all the same.
    served.git("r", "update-ref", "refs/pull/7/head", clash)
    served.git("r", "checkout", "-q", "main")
    served.git("r", "branch", "-q", "-D", "other")
    repositories, said = Repositories(str(tmp_path / "state")), list[str]()
    url = served.url("r")
    async with repositories.files(GitContext(url, (left, right)), said.append) as tree:
        assert sorted(os.listdir(tree)) == ["a", "left", "right"]
        kept = tree
    assert not os.path.exists(kept)
    assert said[-1].startswith("fetching")
    async with repositories.files(GitContext(url, (clash,)), said.append) as tree:
        assert _read(tree, "left") == "another\n"
    # A killed git left its lock; all is there already, and what a merge gives is ever the same.
    (clone,) = os.scandir(tmp_path / "state" / "clones")
    open(os.path.join(clone.path, "shallow.lock"), "w").close()
    commits = []
    for _ in range(2):
        context = GitContext(url, (left, right), include_git=True)
        async with repositories.files(context, said.append) as tree:
            commits.append(_head(tree))
            assert not os.path.exists(f"{tree}/.git/objects/info/alternates")
    assert said[-1].startswith("all commits")
    assert commits[0] == commits[1]
    with pytest.raises(UsageError, match=r"can't be merged.*CONFLICT"):
        async with repositories.files(GitContext(url, (left, clash)), said.append):
            pass
    with pytest.raises(NotFound, match="has no commit"):
        async with repositories.files(GitContext(url, ("0" * 39 + "1",)), said.append):
            pass
    assert os.listdir(tmp_path / "state" / "trees") == []
    # Clones that nobody asks for go, and are made again.
    assert repositories.trim(60) == 0
    os.utime(clone.path, (0, 0))
    assert repositories.trim(60) == 1
    async with repositories.files(GitContext(url, (left,), directory="."), said.append) as tree:
        assert _read(tree, "left") == "left\n"
    assert said[-1].startswith("fetching")
    os.symlink("/etc", os.path.join(served.directory, "r", "etc"))
    linked = served.commit("r")
    with pytest.raises(NotFound, match="no directory etc"):
        async with repositories.files(GitContext(url, (linked,), directory="etc"), said.append):
            pass


async def test_submodules_come_along_and_hooks_and_files_do_not(served, tmp_path) -> None:
    served.commit("sub", inner="inner\n")
    served.commit("r", a="a\n")
    served.git("r", "submodule", "add", "-q", served.url("sub"), "lib")
    # Names of others' own: a filter, and a submodule that is a directory of this machine.
    first = served.commit("r", **{".gitattributes": "a filter=evil\n"})
    served.git(
        "r", "config", "-f", ".gitmodules", "submodule.lib.url", f"file://{served.directory}/sub"
    )
    second = served.commit("r")
    repositories = Repositories(str(tmp_path / "state"))
    async with repositories.files(GitContext(served.url("r"), (first,)), lambda _: None) as tree:
        assert _read(tree, "lib", "inner") == "inner\n"
        assert not os.path.lexists(f"{tree}/lib/.git")
    plain = GitContext(served.url("r"), (first,), submodules=False)
    async with repositories.files(plain, lambda _: None) as tree:
        assert os.listdir(f"{tree}/lib") == []
    with pytest.raises(BadImage, match=r"transport 'file' not allowed|submodule"):
        async with repositories.files(GitContext(served.url("r"), (second,)), lambda _: None):
            pass


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("file:///etc", NotFound), ("ext::sh -c true", NotFound), ("/etc", NotFound),
        ("--upload-pack=x", NotFound), ("git://127.0.0.1:1/none", Unreachable),
    ],
)  # fmt: skip
async def test_what_is_no_repository_is_refused(url, error, tmp_path) -> None:
    repositories = Repositories(str(tmp_path))
    with pytest.raises(error):
        async with repositories.files(GitContext(url, ("0" * 40,)), lambda _: None):
            pass


async def test_branches_are_no_commits_and_fetches_can_be_cancelled(tmp_path) -> None:
    repositories = Repositories(str(tmp_path))
    with pytest.raises(UsageError, match="no whole id"):
        async with repositories.files(GitContext("git://h/x", ("main",)), lambda _: None):
            pass
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"git://127.0.0.1:{silent.getsockname()[1]}/x"
        with anyio.move_on_after(0.5) as scope:
            async with repositories.files(GitContext(url, ("0" * 40,)), lambda _: None):
                pass
        assert scope.cancelled_caught
