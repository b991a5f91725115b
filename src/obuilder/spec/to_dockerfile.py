"""Spec to Dockerfile: OBuilder's lines where they are right, the right ones where they are not.

What a Dockerfile can't say is told in the second part of the answer, a line each. What came from a
Dockerfile (`from_dockerfile`) goes back into one that means the same.
"""

import re
from collections.abc import Iterable

import msgspec

from obuilder.errors import SpecErrors
from obuilder.spec.dockerfile import parse
from obuilder.spec.dockerfile_copy import is_remote
from obuilder.spec.dockerfile_run import csv
from obuilder.spec.encode import duration
from obuilder.spec.model import (
    NO_NETWORK,
    Add,
    Ambient,
    Arg,
    Author,
    Built,
    Cmd,
    Comment,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Inherit,
    Label,
    Mkdir,
    Onbuild,
    Op,
    Run,
    Setting,
    SetUser,
    Shell,
    Spec,
    StopSignal,
    Volume,
    Workdir,
)
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
            if is_remote(child.spec):
                continue  # an ADD fetches it
            unique = self.name_of[child.path] = self.unique(child.name)
            self.stage(child, unique)
        base = spec.base
        source = (
            self.name_of[stage.find(base.name).path] if isinstance(base, Built) else self.word(base)
        )
        lines = [f"FROM {source}" + (f" as {name}" if name else "")]
        user: User = ROOT
        made = None
        for op in spec.ops:
            if isinstance(op, SetUser):
                user = op.user
            if isinstance(op, Inherit | Ambient) or (isinstance(op, Mkdir) and op.path == made):
                # The first is what FROM does, the second --build-arg; the third WORKDIR has done.
                continue
            made = op.path if isinstance(op, Workdir) else None
            lines.append(self.op(op, user, stage))
        self.stages.append("\n".join(lines))

    def unique(self, name: str) -> str:
        """A stage name Docker takes; builds of one name in different scopes get different ones."""
        clean = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
        if not clean or not clean[0].isalpha():
            clean = "s" + clean
        clean = clean.lower() if clean != name else clean
        found = clean
        while found.lower() in self.names:
            self.names[clean.lower()] += 1
            found = f"{clean}-{self.names[clean.lower()]}"
        self.names[found.lower()] = 1
        return found

    def word(self, text: str) -> str:
        if any(map(str.isspace, text)):
            self.warnings.append(f"{text!r} has blanks, which Docker does not take there")
        return self.literal("".join(text.split()))

    def op(self, op: Op, user: User, stage: Stage) -> str:
        match op:
            case Comment(text):
                return "\n".join(f"# {line}" for line in text.splitlines() or [""])
            case Workdir(path):
                return f"WORKDIR {self.path(path)}"
            case Mkdir(path):
                self.warnings.append(f"a directory alone, {path!r}, is a WORKDIR in a Dockerfile")
                return f"WORKDIR {self.path(path)}"
            case Shell(argv):
                return f"SHELL {_array(argv)}"
            case SetUser(found):
                return f"USER {self.user(found)}"
            case Env(name, value):
                return f"ENV {self.word(name)}={self.quoted(value)}"
            case Arg(name, value):
                return f"ARG {self.word(name)}={self.quoted(value)}"
            case Run():
                return self.run(op, user, stage)
            case Copy():
                return self.copy(op, user, stage)
            case Add():
                return self.add(op, stage)
            case Inherit() | Ambient():
                return ""
            case _:
                return self.setting(op)

    def setting(self, op: Setting) -> str:
        match op:
            case Entrypoint(argv):
                return f"ENTRYPOINT {_array(argv)}"
            case Cmd(argv):
                return f"CMD {_array(argv)}"
            case Label(name, value):
                return f"LABEL {self.quoted(name)}={self.quoted(value)}"
            case Expose(ports):
                return "EXPOSE " + " ".join(ports)
            case Volume(paths):
                return f"VOLUME {_array(tuple(map(self.literal, paths)))}"
            case StopSignal(signal):
                return f"STOPSIGNAL {signal}"
            case Healthcheck():
                return self.healthcheck(op)
            case Onbuild(instruction):
                if "\n" in instruction and "<<" not in instruction:
                    self.warnings.append("an end of line in an ONBUILD is lost in a Dockerfile")
                    instruction = self.one_line(instruction)
                return f"ONBUILD {instruction}"
            case Author(name):
                return f"MAINTAINER {self.one_line(name)}"

    def healthcheck(self, op: Healthcheck) -> str:
        head, *words = op.test
        if head == "NONE":
            return "HEALTHCHECK NONE"
        waits = (
            ("interval", op.interval), ("timeout", op.timeout),
            ("start-period", op.start_period), ("start-interval", op.start_interval),
        )  # fmt: skip
        flags = "".join(f"--{name}={duration(value)} " for name, value in waits if value)
        if op.retries:
            flags += f"--retries={op.retries} "
        command = _array(tuple(words)) if head == "CMD" else self.one_line(words[0])
        return f"HEALTHCHECK {flags}CMD {command}"

    def escaped(self, text: str, signs: str) -> str:
        return "".join(self.escape + sign if sign in signs else sign for sign in text)

    def one_line(self, text: str) -> str:
        if "\n" in text or "\r" in text:
            self.warnings.append(f"{text!r} has an end of line, which a Dockerfile can't hold")
            text = text.replace("\r", " ").replace("\n", " ")
        return text

    def path(self, text: str) -> str:
        """A path on a line of its own: no expansion, no end of line."""
        text = self.one_line(text)
        if text != text.strip() or any(sign in text for sign in "'\"" + self.escape):
            return self.quoted(text)
        return self.escaped(text, "$")

    def user(self, user: User) -> str:
        return f"{user.uid}:{user.gid}" if isinstance(user, UnixUser) else self.path(user.name)

    def person(self, user: User) -> str:
        """A user as a word that solves to it."""
        if isinstance(user, UnixUser):
            return f"{user.uid}:{user.gid}"
        return self.literal(user.name)

    def quoted(self, text: str) -> str:
        if "\n" in text or "\r" in text:
            self.warnings.append("an end of line in an ENV value is lost in a Dockerfile")
            text = text.replace("\r", " ").replace("\n", " ")
        return '"' + self.escaped(text, '"$' + self.escape) + '"'

    # --- run ---------------------------------------------------------------------------------

    def run(self, op: Run, user: User, stage: Stage) -> str:
        flags = ""
        if op.network == NO_NETWORK and self.buildkit:
            flags += "--network=none "
        elif op.network == NO_NETWORK:
            self.warnings.append(
                "that a step has no network needs BuildKit; without it, it has one"
            )
        if (op.cache or op.secrets) and not self.buildkit:
            self.warnings.append("without BuildKit, caches and secrets are left out")
        if (op.binds or op.tmpfs or op.ssh or op.insecure) and not self.buildkit:
            self.warnings.append("without BuildKit, a run sees no builds, memory or agents")
        if self.buildkit:
            flags += "".join(self.mount(fields) for fields in _mounts(op, user))
            for bind in op.binds:
                name = self.name_of.get(stage.find(bind.build).path, bind.build)
                fields = [("type", "bind"), ("from", name), ("source", bind.source)]
                fields += [("target", bind.target)] + ([("rw", "true")] if bind.writable else [])
                flags += self.mount(fields)
            flags += "--security=insecure " if op.insecure else ""
        if op.limits != type(op.limits)():
            self.warnings.append("limits of a step can't be said in a Dockerfile")
        if op.exec:
            return f"RUN {flags}{_array(op.exec)}"
        if "<<" in op.shell and "\n" in op.shell and self.is_kept(op.shell):
            return f"RUN {flags}{op.shell}"
        if self.is_document(op.shell):
            return f"RUN {flags}{self.document(op.shell)}"
        lines = [line.strip() for line in op.shell.split("\n")]
        body = f" {self.escape}\n    ".join(lines)
        return f"RUN {flags}{body}"

    def is_kept(self, command: str) -> bool:
        """Whether a command's own here-documents are those that a Dockerfile would find in it."""
        try:
            text = f"RUN {command}\n".encode("utf-8", "surrogateescape")
            found = parse(text, file="").instructions
        except SpecErrors:
            return False
        return self.buildkit and len(found) == 1 and found[0].text == f"RUN {command}"

    def is_document(self, command: str) -> bool:
        """Whether a command must be a here-document, and can: lines of it would not stay lines."""
        if not self.buildkit or command.startswith("#!"):
            return False
        return "\n" in command and (command.endswith("\n") or "<<" in command)

    def document(self, command: str) -> str:
        """A command of several lines as a here-document, whose end stands in no line of it."""
        name = "EOF"
        while name in command.split("\n"):
            name += "_"
        return f"<<{name}\n{command}" + ("" if command.endswith("\n") else "\n") + name

    def mount(self, fields: Iterable[tuple[str, str]]) -> str:
        found = [(key, self.literal(value)) for key, value in fields]
        return f"--mount={self.in_flag(csv(found))} "

    def literal(self, text: str) -> str:
        """A word that solves to the text itself."""
        return self.escaped(text, "$'\"" + self.escape)

    def in_flag(self, text: str) -> str:
        """A text as part of a flag, whose quotes and blanks are solved once before all else."""
        text = self.one_line(text)
        return "".join(
            self.escape + sign if sign.isspace() or sign in "'\"" + self.escape else sign
            for sign in text
        )

    # --- copies ------------------------------------------------------------------------------

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
        into = op.dst.endswith("/") or not op.dst
        for path in op.src if into else ():
            name = path.rstrip("/").rpartition("/")[2]
            if name and "." not in name:  # what has an ending is hardly a directory
                self.warnings.append(
                    f"if {path!r} is a directory, a Dockerfile copies what is in it, not itself"
                )
        named = (re.sub(r"([*?\[\\])", r"\\\1", path) for path in op.src)  # not patterns here
        return f"COPY {flags}{self.sources((*named, op.dst))}"

    def sources(self, paths: tuple[str, ...]) -> str:
        if any(sign.isspace() or sign in "\"'$[]*?\\`<" for path in paths for sign in path):
            return _array(tuple(map(self.literal, paths)))
        return " ".join(paths)

    def add(self, op: Add, stage: Stage) -> str:
        flags, end, src = "", "", op.src
        if op.owner is not None:
            flags += f"--chown={self.in_flag(self.person(op.owner))} "
        if op.permissions:
            flags += f"--chmod={op.permissions} "
        name = "ADD" if op.unpack else "COPY"
        if op.build is not None:
            source = stage.find(op.build)
            if is_remote(source.spec):
                name, sources, checksum = "ADD", *_fetched(str(source.spec.base))
                src = (sources,)
                flags += f"--checksum={checksum} " if checksum else ""
                flags += "--unpack=true " if op.unpack else ""
            else:
                flags += f"--from={self.name_of[source.path]} "
        elif op.context is not None:
            self.warnings.append(f"give the build --build-context {op.context}=DIR")
            flags += f"--from={self.in_flag(op.context)} "
        flags += "".join(
            f"--exclude={self.in_flag(self.literal(pattern))} " for pattern in op.exclude
        )
        flags += ("--parents " if op.parents else "") + ("--link " if op.link else "")
        words = []
        for file, content in op.files:
            if not content.endswith("\n"):
                self.warnings.append(f"the text {file!r} gets an end of line in a Dockerfile")
                content += "\n"  # noqa: PLW2901 - what is written
            if file in content.split("\n") or any(
                sign.isspace() or sign in "'\"<" for sign in file
            ):
                self.warnings.append(f"the text {file!r} can't be a here-document of that name")
            words.append(f"<<'{file}'")
            end += f"\n{content}{file}"
        if not words:
            return f"{name} {flags}{self.sources((*src, op.dst))}"
        for path in (*src, op.dst):
            if any(map(str.isspace, path)):
                self.warnings.append(f"{path!r} has blanks, which no line with texts can hold")
        paths = [*map(self.literal, src), *words, self.literal(op.dst)]
        return f"{name} {flags}{' '.join(paths)}{end}"


def _mounts(op: Run, user: User) -> list[list[tuple[str, str]]]:
    """Secrets, then caches, as OBuilder prints them; then memory and agents."""
    step = [("uid", str(user.uid))] if isinstance(user, UnixUser) else []
    found: list[list[tuple[str, str]]] = []
    for secret in op.secrets:
        fields = [("type", "secret"), ("id", secret.id)]
        fields += [("target", secret.target)] if secret.target else []
        fields += [("env", secret.env)] if secret.env else []
        fields += _file(secret.owner, secret.permissions, 0o400) or step
        if secret.owner is not None or secret.permissions is not None or not secret.required:
            fields += [("required", "true")] if secret.required else []
        found.append([*fields, *secret.buildkit_options])
    for cache in op.cache:
        fields = [("type", "cache"), ("id", cache.id), ("target", cache.target)]
        if cache.owner is not None or cache.permissions is not None:
            fields += _file(cache.owner, cache.permissions, 0o755)
            shares = "readonly" if cache.mode == "read-only" else "sharing"
            fields.append((shares, "true" if shares == "readonly" else cache.mode))
        else:
            fields += step
        found.append([*fields, *cache.buildkit_options])
    for tmpfs in op.tmpfs:
        size = [("size", str(tmpfs.size))] if tmpfs.size else []
        found.append([("type", "tmpfs"), ("target", tmpfs.target), *size])
    for ssh in op.ssh:
        fields = [("type", "ssh"), ("id", ssh.id), ("target", ssh.target)]
        fields += _file(ssh.owner, ssh.permissions, 0o600)
        found.append(fields + ([("required", "true")] if ssh.required else []))
    return found


def _file(owner: UnixUser | None, permissions: int | None, usual: int) -> list[tuple[str, str]]:
    fields = []
    if owner is not None and owner != ROOT:
        fields += [("uid", str(owner.uid)), ("gid", str(owner.gid))]
    elif owner is not None:
        fields += [("uid", "0")]
    if permissions is not None and permissions != usual:
        fields.append(("mode", f"{permissions:04o}"))
    return fields


def _fetched(base: str) -> tuple[str, str]:
    """What an ADD fetches, and the checksum that it is told."""
    source, sign, checksum = base.removeprefix("git:").rpartition("@")
    hexadecimal = set(checksum.removeprefix("sha256:")) <= set("0123456789abcdef")
    if sign and hexadecimal and len(checksum.removeprefix("sha256:")) in (40, 64):
        return source, checksum
    return base.removeprefix("git:"), ""


def _array(words: tuple[str, ...]) -> str:
    if not words:
        return "[]"
    quoted = ", ".join(
        msgspec.json.encode(word.encode("utf-8", "replace").decode()).decode() for word in words
    )
    return f"[ {quoted} ]"
