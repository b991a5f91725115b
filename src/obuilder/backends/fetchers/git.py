"""A commit of a git repository as a root: what a Dockerfile's ADD of a repository copies from.

`git:URL[#REF[:DIRECTORY]]`, or the same with `@COMMIT` behind it, which says what must come. git runs
with a configuration of its own, no hooks, and none of the repository's filters.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable

from obuilder.backends.fetchers import LocalFetcher, directory_of, in_thread
from obuilder.backends.protocols import Progress, Root
from obuilder.errors import BadImage, DigestMismatch, NotFound, Unreachable
from obuilder.plan.model import Base, Layer
from obuilder.system.files import copy_tree, remove_tree
from obuilder.system.linux import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from obuilder.system.process import capture
from obuilder.values import IdMap, Platform

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
SCHEMES = ("http", "https", "ssh", "git")
"""Of URLs that are fetched. Never a file: what asks may not be who runs this."""
_PATIENCE = 600.0
_OPTIONS = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "protocol.allow=never",
    *(f"protocol.{scheme}.allow=always" for scheme in SCHEMES),
    "credential.helper=", "core.askPass=", "filter.lfs.smudge=", "filter.lfs.required=false",
    "core.attributesFile=/dev/null", "submodule.recurse=false", "gc.auto=0", "maintenance.auto=false",
)  # fmt: skip
_ENVIRONMENT = (
    "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0",
    "GIT_ATTR_NOSYSTEM=1",
)  # fmt: skip


class GitFetcher(LocalFetcher):
    """See `Fetcher`."""

    async def resolve(self, name: str, platform: Platform) -> Base:
        """The commit that the name stands for; git is asked unless the name says it whole."""
        url, ref, directory, commit = split(name)
        if not commit:
            commit = commit_of(url, ref)
        layer = hashlib.sha256(f"{commit}\0{directory}".encode("utf-8", "surrogateescape"))
        source = f"git:{url}#{ref}:{directory}@{commit}"
        return Base(
            name, f"git:{commit}", platform, (Layer(f"sha256:{layer.hexdigest()}", source),)
        )

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: Root,
        idmap: IdMap,
        output: Callable[[bytes], None],
        progress: Progress | None = None,
    ) -> None:
        """Fetch and check out. BadImage, DigestMismatch, Unreachable."""
        source, root = base.layers[index].source, directory_of(into)
        await in_thread(lambda _: _check_out(source, root, idmap), output)


def split(name: str) -> tuple[str, str, str, str]:
    """The URL, the ref (or nothing), the directory and the commit of a name. NotFound."""
    text = name.removeprefix("git:")
    before, _, commit = text.rpartition("@")
    if before and _COMMIT.fullmatch(commit):
        text = before
    else:
        commit = ""
    url, _, fragment = text.partition("#")
    ref, _, directory = fragment.partition(":")
    check_url(url)
    if ref.startswith("-"):
        raise NotFound(f"{ref!r} is no name of a commit")
    return url, ref, directory.strip("/"), commit


def command(*words: str, at: str | None = None, env: tuple[str, ...] = ()) -> list[str]:
    """How git is run on what somebody else wrote, in the directory `at`; `env` is NAME=VALUE."""
    options = [word for option in _OPTIONS for word in ("-c", option)]
    place = ["-C", at] if at else []
    shell = ["sh", "-c", 'umask 022; exec git "$@"', "git"]
    return ["env", *_ENVIRONMENT, *env, *shell, *options, *place, *words]


def check_url(url: str) -> None:
    """NotFound: that is no repository that can be fetched."""
    scheme = url.partition("://")[0]
    if (scheme not in SCHEMES and not re.match(r"[\w.-]+@[\w.-]+:", url)) or url.startswith("-"):
        raise NotFound(
            f"{url!r} is no repository that can be fetched",
            hint="it can be " + ", ".join(f"{scheme}://…" for scheme in SCHEMES),
        )


def _git(*words: str, at: str | None = None) -> tuple[int, str]:
    status, said = capture(command(*words, at=at), timeout=_PATIENCE)
    return status, said.decode(errors="replace").strip()


def commit_of(url: str, ref: str) -> str:
    """The commit that a ref of a repository stands for: a whole id for itself, HEAD for nothing.

    NotFound, Unreachable.
    """
    check_url(url)
    if _COMMIT.fullmatch(ref):
        return ref
    if ref.startswith("-"):
        raise NotFound(f"{ref!r} is no name of a commit")
    status, said = _git("ls-remote", "--", url, ref or "HEAD")
    if status != 0:
        raise Unreachable(f"can't ask {url} for {ref or 'HEAD'}: {_last(said)}")
    rows = [line.split("\t") for line in said.splitlines() if "\t" in line]
    found = {name: commit for commit, name in rows if _COMMIT.fullmatch(commit)}
    places = (f"refs/tags/{ref}^{{}}", f"refs/heads/{ref}", f"refs/tags/{ref}", f"refs/{ref}")
    for name in (ref or "HEAD", *places):
        if name in found:
            return found[name]
    raise NotFound(f"{url} has no branch or tag {ref!r}", hint="or give a whole commit")


def _check_out(source: str, root: str, idmap: IdMap) -> None:
    url, ref, directory, commit = split(source)
    with tempfile.TemporaryDirectory() as place:
        tree = os.path.join(place, "tree")
        os.mkdir(tree, 0o755)
        kind = "sha1" if len(commit) == 40 else "sha256"
        _must(url, "init", "-q", f"--object-format={kind}", tree)
        status, said = 0, ""
        for depth, wanted in (("--depth=1", commit), ("--depth=1", ref), ("", ref)):
            words = ["fetch", "-q", *([depth] if depth else []), "--", url]
            words += [wanted] if wanted else (["HEAD"] if depth else ["+refs/*:refs/fetched/*"])
            status, said = _git(*words, at=tree)
            if status == 0 and _git("cat-file", "-e", f"{commit}^{{commit}}", at=tree)[0] == 0:
                break
        else:
            if status != 0:
                raise Unreachable(f"can't fetch {url}: {_last(said)}")
            raise DigestMismatch(f"{url} has no commit {commit} at {ref or 'HEAD'}")
        _must(url, "checkout", "-q", "--detach", commit, at=tree)
        if os.path.exists(os.path.join(tree, ".gitmodules")):
            raise BadImage(f"{url} has submodules, which can't be fetched here")
        remove_tree(os.path.join(tree, ".git"))
        top = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
            fd = openat2(directory or ".", os.O_RDONLY | os.O_DIRECTORY, at=top, resolve=resolve)
        except OSError as error:
            raise NotFound(f"{url} has no directory {directory!r}") from error
        finally:
            os.close(top)
        try:
            copy_tree(os.readlink(f"/proc/self/fd/{fd}"), root, onto=idmap, existing="keep")
        finally:
            os.close(fd)


def _must(url: str, *words: str, at: str | None = None) -> None:
    status, said = _git(*words, at=at)
    if status != 0:
        raise BadImage(f"git can't check out {url}: {_last(said)}")


def _last(said: str) -> str:
    return said.splitlines()[-1] if said else "git said nothing"
