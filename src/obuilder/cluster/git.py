"""Contexts out of git: commits of a repository, several of them merged, on a worker.

Every URL has a bare clone that is kept from one job to the next, so that a commit is fetched once. A
job's files are checked out of it into a directory of its own: a killed worker leaves nothing that
is in the way of the next. git runs without hooks, filters, credentials of anybody, or questions
(`backends.fetchers.git.command`), also for submodules.
"""

import hashlib
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from obuilder.backends.fetchers.git import check_url, command
from obuilder.cluster.messages import GitContext
from obuilder.errors import BadImage, NotFound, StoreError, Unreachable, UsageError
from obuilder.system.files import remove_tree
from obuilder.system.linux import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from obuilder.system.process import run

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REFS = (
    "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", "+refs/pull/*:refs/pull/*",
    "+refs/merge-requests/*:refs/merge-requests/*",
)  # fmt: skip
"""Branches, tags, and what GitHub and GitLab (and those who do as they) have of requests to merge."""
_SAID = 64 << 10
_WHO = (
    "GIT_AUTHOR_NAME=obuilder", "GIT_AUTHOR_EMAIL=obuilder@localhost",
    "GIT_COMMITTER_NAME=obuilder", "GIT_COMMITTER_EMAIL=obuilder@localhost",
    "GIT_AUTHOR_DATE=2000-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2000-01-01T00:00:00Z",
)  # fmt: skip
"""Merges are the same commits wherever and whenever they are made."""

Tell = Callable[[str], None]


class Repositories:
    """Clones below a directory that no other process uses."""

    def __init__(self, directory: str) -> None:
        self._clones = os.path.join(directory, "clones")
        self._trees = os.path.join(directory, "trees")
        self._locks = defaultdict[str, anyio.Lock](anyio.Lock)
        for path in (self._clones, self._trees):
            os.makedirs(path, mode=0o700, exist_ok=True)
        for name in os.listdir(self._trees):  # of a worker that was killed
            remove_tree(os.path.join(self._trees, name))

    @asynccontextmanager
    async def files(self, context: GitContext, tell: Tell) -> AsyncIterator[str]:
        """A directory with the files of a context, until the `async with` ends.

        NotFound for a commit that is not there, UsageError for commits that can't be merged,
        Unreachable, BadImage, StoreError.
        """
        check_url(context.url)
        if not context.commits:
            raise UsageError("a git context names no commit", hint="give at least one")
        if bad := [commit for commit in context.commits if not _COMMIT.fullmatch(commit)]:
            raise UsageError(
                f"{bad[0]!r} is no whole id of a commit", hint="`git rev-parse REF` tells it"
            )
        tree = os.path.join(self._trees, os.urandom(8).hex())
        try:
            async with self._locks[context.url]:
                clone = await self._fetched(context, tell)
            await self._check_out(context, clone, tree, tell)
            yield _within(tree, context.directory)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_discard, tree)

    def trim(self, unused: float) -> int:
        """Remove clones that were not used for so many seconds. How many."""
        since, gone = time.time() - unused, 0
        for name in os.listdir(self._clones):
            clone = os.path.join(self._clones, name)
            if os.stat(clone).st_mtime < since:
                remove_tree(clone)
                gone += 1
        return gone

    # --- clones ----------------------------------------------------------------------------------

    async def _fetched(self, context: GitContext, tell: Tell) -> str:
        """The clone of a URL, with all the commits."""
        name = re.sub(r"[^\w.-]", "", os.path.basename(context.url.rstrip("/")))[:40]
        digest = hashlib.sha256(os.fsencode(context.url)).hexdigest()[:32]
        clone = os.path.join(self._clones, f"{name}-{digest}")
        if os.path.isdir(clone):
            os.utime(clone)
            await anyio.to_thread.run_sync(_unlock, clone)
        lacking = await self._lacking(clone, context.commits)
        if not lacking:
            tell("all commits are here already")
            return clone
        if not os.path.isdir(clone):
            kind = "sha1" if len(context.commits[0]) == 40 else "sha256"
            await _must("init", "-q", "--bare", f"--object-format={kind}", clone)
        tell(f"fetching {context.url}")
        # First what is asked for alone, which most servers give; else all there is.
        tries = (lacking, list(_REFS))
        status, said = 0, ""
        for wanted in tries:
            status, said = await _git(
                "fetch", "-q", "--no-tags", "--force", "--", context.url, *wanted, at=clone
            )
            lacking = await self._lacking(clone, context.commits)
            if not lacking:
                return clone
        if status != 0:
            raise Unreachable(f"can't fetch {context.url}: {_last(said)}")
        raise NotFound(
            f"{context.url} has no commit {lacking[0]}",
            hint="push it first: a branch, a tag or a request to merge has to hold it",
        )

    async def _lacking(self, clone: str, commits: tuple[str, ...]) -> list[str]:
        if not os.path.isdir(clone):
            return list(commits)
        return [
            commit
            for commit in commits
            if (await _git("cat-file", "-e", f"{commit}^{{commit}}", at=clone))[0] != 0
        ]

    # --- files -----------------------------------------------------------------------------------

    async def _check_out(self, context: GitContext, clone: str, tree: str, tell: Tell) -> None:
        first, *others = context.commits
        kind = "sha1" if len(first) == 40 else "sha256"
        await _must("init", "-q", f"--object-format={kind}", tree)
        os.chmod(tree, 0o700)
        with open(os.path.join(tree, ".git/objects/info/alternates"), "w") as file:
            file.write(f"{clone}/objects\n")
        await _must("remote", "add", "origin", context.url, at=tree)  # what submodules are near to
        await _must("checkout", "-q", "--detach", first, at=tree)
        for commit in others:
            status, said = await _git(
                "merge", "-q", "--no-edit", "--no-gpg-sign", "-m", f"merge {commit}", commit,
                at=tree, env=_WHO,
            )  # fmt: skip
            if status != 0:
                why = next((line for line in said.splitlines() if "CONFLICT" in line), _last(said))
                raise UsageError(
                    f"{commit[:12]} can't be merged into {first[:12]}: {why}",
                    hint="merge or rebase by hand, and build what comes of it",
                )
        if context.submodules and os.path.exists(os.path.join(tree, ".gitmodules")):
            tell("fetching submodules")
            await _must("submodule", "update", "-q", "--init", "--recursive", at=tree)
        if context.include_git:
            await _must("repack", "-a", "-d", "-q", at=tree)
            os.unlink(os.path.join(tree, ".git/objects/info/alternates"))
        else:
            await anyio.to_thread.run_sync(_drop_git, tree)


def _within(tree: str, directory: str) -> str:
    """A directory of the files of commits, whatever links are on the way. NotFound."""
    if not directory:
        return tree
    top = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        fd = openat2(directory, flags, at=top, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except OSError as error:
        raise NotFound(f"the commits have no directory {directory}: {error.strerror}") from error
    finally:
        os.close(top)
    os.close(fd)
    return os.path.join(tree, directory)


def _unlock(clone: str) -> None:
    """Remove locks that a killed git left: nobody else uses the clone."""
    for folder, _, files in os.walk(clone):
        for name in files:
            if name.endswith(".lock"):
                os.unlink(os.path.join(folder, name))


def _drop_git(tree: str) -> None:
    """Remove git's own from a checkout and from the submodules in it."""
    shutil.rmtree(os.path.join(tree, ".git"))
    for folder, folders, files in os.walk(tree):
        if ".git" in files:
            os.unlink(os.path.join(folder, ".git"))
        if ".git" in folders:
            folders.remove(".git")
            shutil.rmtree(os.path.join(folder, ".git"))


def _discard(tree: str) -> None:
    if os.path.isdir(tree):
        remove_tree(tree)


async def _git(*words: str, at: str | None = None, env: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run git to its end; cancelling ends it. Its status and the end of what it said. StoreError."""
    said = bytearray()

    def hear(data: bytes) -> None:
        said.extend(data)
        del said[:-_SAID]

    try:
        ended = await run(command(*words, at=at, env=env), output=hear)
    except OSError as error:
        raise StoreError(f"can't run git: {error.strerror}") from error
    if ended.status == 127:
        raise StoreError("there is no git on this worker", hint="install the package git")
    return ended.status, said.decode(errors="replace").strip()


async def _must(*words: str, at: str | None = None) -> None:
    status, said = await _git(*words, at=at)
    if status != 0:
        raise BadImage(f"git {words[0]} failed: {_last(said)}")


def _last(said: str) -> str:
    lines = said.splitlines()
    fatal = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return (fatal or lines or ["git said nothing"])[-1]
