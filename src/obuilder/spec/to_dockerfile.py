"""Spec to Dockerfile: OBuilder's lines where they are right, the right ones where they are not.

What a Dockerfile can't say is told in the second part of the answer, a line each. Nothing in a spec
adds a line or an instruction: what Docker would take for one is written as a JSON array, or changed.
"""

import re
from collections.abc import Iterator

import msgspec

from obuilder.spec.model import (
    Cache,
    Comment,
    Copy,
    Env,
    Op,
    Run,
    Secret,
    SetUser,
    Shell,
    Spec,
    Workdir,
)  # fmt: skip
from obuilder.spec.stages import Stage, whole
from obuilder.values import ROOT, Limits, OpPath, UnixUser, User

_SHELLS = {"unix": ("/bin/sh", "-c"), "windows": ("cmd", "/S", "/C")}
"""Docker's own, for a RUN that no SHELL stands before."""
_NO_LINE = re.compile(r"[\0-\x1f\x7f]|\A\s*(\Z|\[|--)|<<")
"""A command that Docker would not take as it stands: as a flag, an array, a here-document."""
_PLAIN = re.compile(r"(?!--|.*<<)[^\s\"'$\\`]+")
"""A word that Docker takes as it stands: it is no flag, begins no here-document."""
_MODES = {"locked": "sharing=locked", "shared": "sharing=shared", "read-only": "readonly"}


def to_dockerfile(spec: Spec, *, buildkit: bool, escape: str) -> tuple[str, list[str]]:
    """The Dockerfile and what it could not say. `escape` is unix or windows."""
    writer = _Writer(spec, buildkit, escape)
    header = "#escape=`\n" if escape == "windows" else ""
    writer.stage(whole(spec), None)
    return header + "\n\n".join(writer.stages) + "\n", list(dict.fromkeys(writer.warnings))


def _bases(spec: Spec) -> Iterator[str]:
    for _, child in spec.children:
        yield from _bases(child)
    yield spec.base


class _Writer:
    def __init__(self, spec: Spec, buildkit: bool, escape: str) -> None:
        self.buildkit = buildkit
        self.escape = "`" if escape == "windows" else "\\"
        self.shell = _SHELLS[escape]
        self.stages: list[str] = []
        self.warnings: list[str] = []
        # A stage must not be called as an image that a FROM means.
        self.taken = {base.lower() for base in _bases(spec)}
        self.numbers: dict[str, int] = {}
        self.name_of: dict[OpPath, str] = {}

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    # --- stages -------------------------------------------------------------------------------

    def stage(self, stage: Stage, name: str | None) -> None:
        spec = stage.spec
        for index in range(len(spec.children)):
            child = stage.child(index)
            unique = self.name_of[child.path] = self.unique(child.name)
            self.stage(child, unique)
        lines = [f"FROM {self.word(spec.base)}" + (f" as {name}" if name else "")]
        user: User = ROOT
        shell = self.shell
        for op in spec.ops:
            if isinstance(op, SetUser):
                user = op.user
            elif isinstance(op, Shell):
                shell = op.argv
            lines.append(self.op(op, user, shell, stage))
        self.stages.append("\n".join(lines))

    def unique(self, name: str) -> str:
        """A stage name Docker takes; builds of one name in different scopes get different ones."""
        clean = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
        if not clean[:1].isalpha():
            clean = "s" + clean
        clean = clean if clean == name else clean.lower()
        found = clean
        while found.lower() in self.taken:
            self.numbers[clean] = self.numbers.get(clean, 1) + 1
            found = f"{clean}-{self.numbers[clean]}"
        self.taken.add(found.lower())
        return found

    def op(self, op: Op, user: User, shell: tuple[str, ...], stage: Stage) -> str:
        match op:
            case Comment(text):
                return "\n".join(f"# {line}" for line in text.splitlines() or [""])
            case Workdir(path):
                return f"WORKDIR {self.argument(path)}"
            case Shell(argv):
                return f"SHELL {self.array(argv)}"
            case SetUser(UnixUser(uid, gid)):
                return f"USER {uid}:{gid}"
            case SetUser():
                return f"USER {self.argument(getattr(op.user, 'name', ''))}"
            case Env(name, value):
                return f"ENV {self.word(name)}={self.quoted(value)}"
            case Run():
                return self.run(op, user, shell)
            case Copy():
                return self.copy(op, user, stage)

    # --- words --------------------------------------------------------------------------------

    def word(self, text: str) -> str:
        """A name that Docker takes as it is, or not at all."""
        if any(sign.isspace() for sign in text):
            self.warn(f"{text!r} has blanks, which Docker does not take there")
        return "".join(text.split())

    def argument(self, text: str) -> str:
        """All that follows an instruction's name: Docker takes quotes off and puts variables in."""
        return text if _PLAIN.fullmatch(text) else self.quoted(text)

    def quoted(self, text: str) -> str:
        return '"' + self.escaped(self.one_line(text), '"$' + self.escape) + '"'

    def one_line(self, text: str) -> str:
        if "\n" in text or "\r" in text:
            self.warn(f"{text!r} has an end of line, which a Dockerfile can't hold there")
        return text.replace("\r", " ").replace("\n", " ")

    def escaped(self, text: str, signs: str) -> str:
        return "".join(self.escape + sign if sign in signs else sign for sign in text)

    def array(self, words: tuple[str, ...]) -> str:
        if not words:
            return "[]"
        return f"[ {', '.join(map(self.json, words))} ]"

    def json(self, word: str) -> str:
        try:
            return msgspec.json.encode(word).decode()
        except UnicodeEncodeError:
            self.warn(f"{word!r} has bytes that are no text, which a JSON array can't hold")
            return msgspec.json.encode(word.encode("utf-8", "replace").decode()).decode()

    # --- run ----------------------------------------------------------------------------------

    def run(self, op: Run, user: User, shell: tuple[str, ...]) -> str:
        if op.limits != Limits():
            self.warn("the limits of steps can't be said in a Dockerfile")
        flags = ""
        if self.buildkit:
            flags += "".join(self.mount("secret", secret, user) for secret in op.secrets)
            flags += "".join(self.mount("cache", cache, user) for cache in op.cache)
        elif op.cache or op.secrets:
            self.warn("caches and secrets need BuildKit; without it they are left out")
        command = op.shell.strip(" \t\n")
        one_line = command.replace("\\\n", "") if self.continued(command) else command
        if _NO_LINE.search(one_line) or one_line.endswith(self.escape):
            return f"RUN {flags}{self.array((*shell, op.shell))}"
        return f"RUN {flags}{command}"

    def continued(self, command: str) -> bool:
        """Whether Docker joins the lines of a command just as a shell does."""
        lines = command.split("\n")
        return (
            self.escape == "\\"
            and "'" not in command
            and all(line.endswith("\\") and not line.endswith("\\\\") for line in lines[:-1])
            and all(line.strip(" \t\\") and not line.lstrip().startswith("#") for line in lines)
        )

    def mount(self, kind: str, mount: Cache | Secret, user: User) -> str:
        fields = [f"type={kind}", f"id={mount.id}", f"target={mount.target}"]
        if isinstance(user, UnixUser):
            fields.append(f"uid={user.uid}")
        mode = _MODES.get(mount.mode, "") if isinstance(mount, Cache) else ""
        if mode and mode.partition("=")[0] not in dict(mount.buildkit_options):
            fields.append(mode)
        fields.extend(f"{key}={value}" for key, value in mount.buildkit_options)
        csv = ",".join(map(_csv, fields))
        if any(sign.isspace() for sign in csv):
            self.warn(f"the mount of {mount.id!r} has blanks, which Docker does not take")
            csv = "".join(csv.split())
        return f"--mount={csv} "

    # --- copy ---------------------------------------------------------------------------------

    def copy(self, op: Copy, user: User, stage: Stage) -> str:
        flags = ""
        if isinstance(user, UnixUser) and user != ROOT:
            flags += f"--chown={user.uid}:{user.gid} "
        if op.build is not None:
            flags += f"--from={self.name_of[stage.find(op.build).path]} "
        if op.exclude:
            names = " ".join(f"**/{name}" for name in op.exclude)
            self.warn(f"exclude needs a .dockerignore with: {names}")
        named = [path for path in op.src if set(path.split("/")) - {"", "."}]
        if named and op.dst.endswith("/"):
            self.warn(
                f"of a directory, COPY puts what is in it into {op.dst!r}, not itself;"
                f" look what is one of: {' '.join(map(repr, named))}"
            )
        paths = (*op.src, op.dst)
        if all(_PLAIN.fullmatch(path) and not set(path) & set("[]*?") for path in paths):
            return f"COPY {flags}{' '.join(paths)}"
        # Docker puts variables into the words of an array as well, and takes sources for patterns.
        signs = "\"'$" + self.escape
        src = [self.escaped(re.sub(r"[\[*?]", r"[\g<0>]", path), signs) for path in op.src]
        return f"COPY {flags}{self.array((*src, self.escaped(op.dst, signs)))}"


def _csv(field: str) -> str:
    if any(sign in field for sign in ',"\n\r'):
        return '"' + field.replace('"', '""') + '"'
    return field
