"""Contexts out of git, from a real server on the loopback."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator

import anyio
import pytest

from obuilder.cluster.git import Repositories
from obuilder.cluster.messages import GitContext
from obuilder.errors import NotFound, Unreachable, UsageError

pytestmark = pytest.mark.anyio


class Served:
    """Repositories below a directory, served by git's own daemon."""

    def __init__(self, directory: str, port: int) -> None:
        self.directory, self._port = directory, port

    def url(self, name: str) -> str:
        return f"git://127.0.0.1:{self._port}/{name}"

    def git(self, name: str, *words: str) -> str:
        place = os.path.join(self.directory, name)
        os.makedirs(place, exist_ok=True)
        env = {
            **os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
        }  # fmt: skip
        options = ("-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main")
        done = subprocess.run(
            ["git", "-C", place, *options, *words], env=env, capture_output=True, check=True
        )
        return done.stdout.decode().strip()

    def commit(self, name: str, **files: str) -> str:
        """Commit files; the commit's id."""
        if not os.path.isdir(os.path.join(self.directory, name, ".git")):
            self.git(name, "init", "-q")
        for path, text in files.items():
            with open(os.path.join(self.directory, name, path), "w") as file:
                file.write(text)
        self.git(name, "add", "-A")
        self.git(name, "commit", "-q", "-m", "a commit")
        return self.git(name, "rev-parse", "HEAD")


@pytest.fixture
def served(tmp_path) -> Iterator[Served]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    directory = str(tmp_path / "served")
    os.mkdir(directory)
    core = subprocess.run(["git", "--exec-path"], capture_output=True, check=True).stdout.decode()
    daemon = subprocess.Popen(
        [f"{core.strip()}/git-daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}",
         "--export-all", f"--base-path={directory}", directory],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < until
            time.sleep(0.02)
        yield Served(directory, port)
    finally:
        daemon.terminate()
        daemon.wait()


def _read(*parts: str) -> str:
    with open(os.path.join(*parts)) as file:
        return file.read()


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
            done = subprocess.run(
                ["git", "-C", tree, "-c", "safe.directory=*", "rev-parse", "HEAD"],
                capture_output=True, check=True,
            )  # fmt: skip
            commits.append(done.stdout)
            assert not os.path.exists(f"{tree}/.git/objects/info/alternates")
    assert said[-1].startswith("all commits")
    assert commits[0] == commits[1]
    with pytest.raises(UsageError, match="can't be merged.*CONFLICT"):
        async with repositories.files(GitContext(url, (left, clash)), said.append):
            pass
    with pytest.raises(NotFound, match="has no commit"):
        async with repositories.files(GitContext(url, ("0" * 39 + "1",)), said.append):
            pass
    assert os.listdir(tmp_path / "state" / "trees") == []


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
    with pytest.raises(Exception, match="transport 'file' not allowed|submodule"):
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
