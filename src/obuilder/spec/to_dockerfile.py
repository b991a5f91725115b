"""Spec to Dockerfile: OBuilder's lines where they are right, the right ones where they are not.

What a Dockerfile can't say is told in the second part of the answer, a line each.
"""

import msgspec

from obuilder.spec.model import (
    Comment,
    Copy,
    Env,
    Op,
    Run,
    SetUser,
    Shell,
    Spec,
    Workdir,
)  # fmt: skip
from obuilder.spec.stages import Stage, whole
from obuilder.values import ROOT, OpPath, UnixUser, User


def to_dockerfile(spec: Spec, *, buildkit: bool, escape: str) -> tuple[str, list[str]]:
    """The Dockerfile and what it could not say. `escape` is unix or windows."""
    writer = _Writer(buildkit, "`" if escape == "windows" else "\\")
    header = "#escape=`\n" if escape == "windows" else ""
    writer.stage(whole(spec), None)
    return header + "\n\n".join(writer.stages) + "\n", writer.warnings


class _Writer:
    def __init__(self, buildkit: bool, escape: str) -> None:
        self.buildkit, self.escape = buildkit, escape
        self.stages: list[str] = []
        self.warnings: list[str] = []
        self.names: dict[str, int] = {}
        self.name_of: dict[OpPath, str] = {}

    def stage(self, stage: Stage, name: str | None) -> None:
        spec = stage.spec
        for index in range(len(spec.children)):
            child = stage.child(index)
            unique = self.name_of[child.path] = self.unique(child.name)
            self.stage(child, unique)
        lines = [f"FROM {self.word(spec.base)}" + (f" as {name}" if name else "")]
        user: User = ROOT
        for op in spec.ops:
            if isinstance(op, SetUser):
                user = op.user
            lines.append(self.op(op, user, stage))
        self.stages.append("\n".join(lines))

    def unique(self, name: str) -> str:
        """A stage name Docker takes; builds of one name in different scopes get different ones."""
        clean = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
        if not clean or not clean[0].isalpha():
            clean = "s" + clean
        clean = clean.lower() if clean != name else clean
        found = clean
        while found in self.names:
            self.names[clean] += 1
            found = f"{clean}-{self.names[clean]}"
        self.names[found] = 1
        return found

    def word(self, text: str) -> str:
        if any(character in text for character in " \t\r\n"):
            self.warnings.append(f"{text!r} has blanks, which Docker does not take there")
        return "".join(text.split())

    def op(self, op: Op, user: User, stage: Stage) -> str:
        match op:
            case Comment(text):
                return "\n".join(f"# {line}" for line in text.splitlines() or [""])
            case Workdir(path):
                return f"WORKDIR {self.path(path)}"
            case Shell(argv):
                return f"SHELL {_array(argv)}"
            case SetUser(UnixUser(uid, gid)):
                return f"USER {uid}:{gid}"
            case SetUser():
                return f"USER {self.path(getattr(op.user, 'name', ''))}"
            case Env(name, value):
                return f"ENV {self.word(name)}={self.quoted(value)}"
            case Run():
                return self.run(op, user)
            case Copy():
                return self.copy(op, user, stage)

    def escaped(self, text: str, signs: str) -> str:
        return "".join(self.escape + sign if sign in signs else sign for sign in text)

    def path(self, text: str) -> str:
        """A path on a line of its own: no expansion, no end of line."""
        if "\n" in text or "\r" in text:
            self.warnings.append(f"{text!r} has an end of line, which a Dockerfile can't hold")
            text = text.replace("\r", " ").replace("\n", " ")
        return self.escaped(text, "$")

    def quoted(self, text: str) -> str:
        if "\n" in text or "\r" in text:
            self.warnings.append("an end of line in an ENV value is lost in a Dockerfile")
            text = text.replace("\r", " ").replace("\n", " ")
        return '"' + self.escaped(text, '"$' + self.escape) + '"'

    def run(self, op: Run, user: User) -> str:
        flags = ""
        if op.network:
            flags += "--network=host " if op.network == ("host",) and self.buildkit else ""
            if not self.buildkit:
                self.warnings.append("without BuildKit, a step's network can't be said")
        if (op.cache or op.secrets) and not self.buildkit:
            self.warnings.append("without BuildKit, caches and secrets are left out")
        if self.buildkit:
            flags += "".join(
                self.mount("secret", s.id, s.target, s.buildkit_options, user) for s in op.secrets
            )
            flags += "".join(
                self.mount("cache", c.id, c.target, c.buildkit_options, user) for c in op.cache
            )
        if op.limits != type(op.limits)():
            self.warnings.append("limits of a step can't be said in a Dockerfile")
        lines = [line.strip() for line in op.shell.split("\n")]
        body = f" {self.escape}\n    ".join(lines)
        return f"RUN {flags}{body}"

    def mount(
        self, kind: str, name: str, target: str, options: tuple[tuple[str, str], ...], user: User
    ) -> str:
        fields = [("type", kind), ("id", name), ("target", target)]
        if isinstance(user, UnixUser):
            fields.append(("uid", str(user.uid)))
        fields.extend(options)
        csv = ",".join(_csv(f"{key}={value}") for key, value in fields)
        if any(sign in csv for sign in " \t\r\n"):
            self.warnings.append(f"the mount of {name!r} has blanks, which Docker does not take")
            csv = "".join(csv.split())
        return f"--mount={csv} "

    def copy(self, op: Copy, user: User, stage: Stage) -> str:
        flags = ""
        if isinstance(user, UnixUser) and user != ROOT:
            flags += f"--chown={user.uid}:{user.gid} "
        if op.build is not None:
            flags += f"--from={self.name_of[stage.find(op.build).path]} "
        if op.exclude:
            self.warnings.append(
                "exclude needs a .dockerignore with: " + " ".join(f"**/{n}" for n in op.exclude)
            )
        paths = (*op.src, op.dst)
        if any(sign in path for path in paths for sign in ' \t\r\n"$[]*?\\'):
            return f"COPY {flags}{_array(tuple(self.escaped(p, '$') for p in paths))}"
        return f"COPY {flags}{' '.join(paths)}"


def _array(words: tuple[str, ...]) -> str:
    if not words:
        return "[]"
    quoted = ", ".join(
        msgspec.json.encode(word.encode("utf-8", "replace").decode()).decode() for word in words
    )
    return f"[ {quoted} ]"


def _csv(field: str) -> str:
    if any(sign in field for sign in ',"\n\r'):
        return '"' + field.replace('"', '""') + '"'
    return field
