"""COPY and ADD: sources of a context, of a build, of the text itself, of a URL or a git repository."""

import re

from obuilder.spec.dockerfile import Heredoc, Instruction, Stretch, chomped, heredoc
from obuilder.spec.dockerfile_stage import Stage
from obuilder.spec.dockerfile_words import as_pattern
from obuilder.spec.model import Add, Spec
from obuilder.spec.modes import is_mode
from obuilder.values import User

_GIT = re.compile(r"(git://|git@|ssh://|https?://[^?#]+\.git(#|$)|(git|file)\+)")
_URL = re.compile(r"https?://")


def copy(stage: Stage, it: Instruction) -> None:
    """Take in a COPY or an ADD."""
    known = ["chown=", "chmod=", "link", "exclude=="]
    known += ["from=", "parents"] if it.name == "COPY" else ["keep-git-dir", "checksum=", "unpack"]
    owner: User | None = None
    permissions, checksum, unpack = "", "", it.name == "ADD"
    exclude: list[str] = []
    origin: Stretch | None = None
    parents = link = remote_unpack = False
    for name, value, at in stage.flags(it, known):
        solved = stage.expand(at, value)
        match name:
            case "chown":
                owner = stage.user(at, solved or "0:0", group=True)
            case "chmod":
                if not is_mode(solved):
                    raise stage.fault(at, f"{solved!r} is no mode", hint="as 0644 or u=rwX,go=rX")
                permissions = solved
            case "link":
                link = value == "true"
            case "exclude":
                exclude.append(solved)
            case "parents":
                parents = value == "true"
            case "from":
                if "$" in value:
                    raise stage.fault(
                        at, "--from takes no variable",
                        hint="name the image in a FROM of its own, and that stage here",
                    )  # fmt: skip
                origin = at.part(len("--from="), len(at.text))
            case "keep-git-dir":
                if value == "true":
                    raise stage.fault(at, "a repository's .git is never kept here")
            case "checksum":
                checksum = solved
            case _:
                unpack = remote_unpack = value == "true"
    words = stage.plain(it.rest)
    if len(words) < 2:
        raise stage.fault(it.whole, f"{it.name} needs a source and a destination")
    *sources, last = words
    if heredoc(last.text, "\\") is not None:
        raise stage.fault(last, "the destination can't be a here-document")
    dst = stage.expand(last)
    if dst in (".", "..") or dst.endswith(("/.", "/..")):
        dst += "/"  # only a directory can be called that
    if len(sources) > 1 and not dst.endswith("/"):
        raise stage.fault(
            last, "with several sources, the destination must end with /",
            hint=f"write {last.text}/",
        )  # fmt: skip
    dst = stage.path(dst).rstrip("/") + ("/" if dst.endswith("/") or not dst else "") or "/"
    documents = {doc.name: doc for doc in it.heredocs}
    files: list[tuple[str, str]] = []
    local: list[str] = []
    remote: list[tuple[Stretch, str]] = []
    for word in sources:
        doc = heredoc(word.text, "\\")
        if doc is not None and doc.name in documents:
            files.append(_file(stage, word, documents[doc.name]))
            continue
        source = stage.expand(word)
        if _GIT.match(source) or _URL.match(source):
            if it.name == "COPY":
                raise stage.fault(word, "COPY takes no URL", hint="ADD does")
            remote.append((word, source))
        elif ".." in source.split("/") and stage.path("/" + source) != "/" + source:
            # What leads above the top stays at the top, as in a root.
            local.append(stage.path("/" + source))
        else:
            local.append(source or "/")
    if checksum and (len(remote) != 1 or len(sources) != 1):
        raise stage.fault(it.whole, "--checksum is for one source, a URL or a git repository")
    if parents and files:
        raise stage.fault(it.whole, "--parents is for files that are somewhere")
    if local or files:
        stage.put(
            Add(
                tuple(local), dst, None if origin is None else stage.built(origin), None,
                tuple(files), owner, permissions, tuple(exclude), parents, link,
                unpack and bool(local),
            )
        )  # fmt: skip
    for at, source in remote:
        base, name = _remote(stage, at, source, checksum)
        build = stage.beside("git" if name == "/" else "url", (), base)
        take = remote_unpack and name != "/"
        stage.put(
            Add((name,), dst, build, owner=owner, permissions=permissions, exclude=tuple(exclude),
                link=link, unpack=take)
        )  # fmt: skip


def is_remote(spec: Spec) -> bool:
    """Whether a build is nothing but what an ADD fetches."""
    base = spec.base
    return (
        isinstance(base, str)
        and base.startswith(("git:", "http://", "https://"))
        and not spec.ops
        and not spec.children
    )


def _file(stage: Stage, at: Stretch, doc: Heredoc) -> tuple[str, str]:
    content = chomped(doc.content) if doc.chomp else doc.content
    if "/" in doc.name or doc.name in (".", ".."):
        raise stage.fault(at, f"a file can't be called {doc.name!r}")
    return doc.name, stage.expand_document(at, content) if doc.expand else content


def _remote(stage: Stage, at: Stretch, source: str, checksum: str) -> tuple[str, str]:
    """The base that a URL is fetched as, and the pattern that finds it there."""
    if _GIT.match(source):
        if checksum and not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", checksum):
            raise stage.fault(at, "--checksum of a repository is the whole name of a commit")
        if "\n" in source:
            raise stage.fault(at, "a URL can't hold an end of line")
        return f"git:{source}" + (f"@{checksum}" if checksum else ""), "/"
    if checksum and not re.fullmatch(r"sha256:[0-9a-f]{64}", checksum):
        raise stage.fault(at, "--checksum is sha256: and 64 hexadecimal digits")
    path = re.sub(r"[?#].*", "", source.partition("://")[2]).rstrip("/")
    name = path.rpartition("/")[2] if "/" in path else ""
    return source + (f"@{checksum}" if checksum else ""), as_pattern(name or "__unnamed__")
