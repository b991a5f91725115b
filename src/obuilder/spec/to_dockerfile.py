"""Spec to Dockerfile: OBuilder's lines where they are right, the right ones where they are not.

What a Dockerfile can't say is told in the second part of the answer, a line each. Nothing in a spec
adds a line or an instruction: what Docker would take for one is written as a JSON array, or changed.
What came from a Dockerfile (`from_dockerfile`) goes back into one that means the same.
"""

import re
from collections.abc import Iterable, Iterator

import msgspec

from obuilder.errors import SpecErrors
from obuilder.spec.dockerfile import json_words, parse
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
    Cache,
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
from obuilder.values import ROOT, Limits, OpPath, UnixUser, User

_SHELLS = {"unix": ("/bin/sh", "-c"), "windows": ("cmd", "/S", "/C")}
"""Docker's own, for a RUN that no SHELL stands before."""
_PLAIN = re.compile(r"(?!--|.*<<)[^\s\"'$\\`]+")
"""A word that Docker takes as it stands: it is no flag, begins no here-document."""


def to_dockerfile(spec: Spec, *, buildkit: bool, escape: str) -> tuple[str, list[str]]:
    """The Dockerfile and what it could not say. `escape` is unix or windows."""
    writer = _Writer(spec, buildkit, escape)
    header = "#escape=`\n" if escape == "windows" else ""
    writer.stage(whole(spec), None)
    return header + "\n\n".join(writer.stages) + "\n", list(dict.fromkeys(writer.warnings))


def _bases(spec: Spec) -> Iterator[str]:
    for _, child in spec.children:
        yield from _bases(child)
    if isinstance(spec.base, str):
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
        self.left: dict[OpPath, tuple[str, ...]] = {}
        """The shell of each stage's end."""

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    # --- stages -------------------------------------------------------------------------------

    def stage(self, stage: Stage, name: str | None) -> None:
        spec = stage.spec
        for index in range(len(spec.children)):
            child = stage.child(index)
            if is_remote(child.spec):
                continue  # an ADD fetches it
            unique = self.name_of[child.path] = self.unique(child.name)
            self.stage(child, unique)
        shell, source = self.shell, ""
        if isinstance(spec.base, Built):
            before = stage.find(spec.base.name).path
            shell, source = self.left[before], self.name_of[before]
        lines = [f"FROM {source or self.word(str(spec.base))}" + (f" as {name}" if name else "")]
        user: User = ROOT
        made = None
        for op in spec.ops:
            if isinstance(op, SetUser):
                user = op.user
            elif isinstance(op, Shell):
                shell = op.argv
            if isinstance(op, Inherit | Ambient) or (isinstance(op, Mkdir) and op.path == made):
                # The first is what FROM does, the second --build-arg; the third WORKDIR has done.
                continue
            if isinstance(op, Onbuild) and name:
                continue  # what it had to do stands in the stages that begin from this one
            made = op.path if isinstance(op, Workdir) else None
            lines.append(self.op(op, user, shell, stage))
        self.left[stage.path] = shell
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
            case Mkdir(path):
                self.warn(f"a directory alone, {path!r}, is a WORKDIR in a Dockerfile")
                return f"WORKDIR {self.argument(path)}"
            case Shell(argv):
                return f"SHELL {self.array(argv)}"
            case SetUser(found):
                return f"USER {self.user(found)}"
            case Env(name, value):
                return f"ENV {self.word(name)}={self.quoted(value)}"
            case Arg(name, value):
                return f"ARG {self.word(name)}={self.quoted(value)}"
            case Run():
                return self.run(op, user, shell, stage)
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
                return f"ENTRYPOINT {self.array(argv)}"
            case Cmd(argv):
                return f"CMD {self.array(argv)}"
            case Label(name, value):
                return f"LABEL {self.quoted(name)}={self.quoted(value)}"
            case Expose(ports):
                return "EXPOSE " + " ".join(ports)
            case Volume(paths):
                return f"VOLUME {self.array(tuple(map(self.literal, paths)))}"
            case StopSignal(signal):
                return f"STOPSIGNAL {signal}"
            case Healthcheck():
                return self.healthcheck(op)
            case Onbuild(instruction):
                if "\n" in instruction and "<<" not in instruction:
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
        command = self.array(tuple(words)) if head == "CMD" else self.one_line(words[0])
        return f"HEALTHCHECK {flags}CMD {command}"

    # --- words --------------------------------------------------------------------------------

    def word(self, text: str) -> str:
        """A name that Docker takes as it is, or not at all."""
        if any(map(str.isspace, text)):
            self.warn(f"{text!r} has blanks, which Docker does not take there")
        return self.literal("".join(text.split()))

    def argument(self, text: str) -> str:
        """All that follows an instruction's name: Docker takes quotes off and puts variables in."""
        return text if _PLAIN.fullmatch(text) else self.quoted(text)

    def quoted(self, text: str) -> str:
        return '"' + self.escaped(self.one_line(text), '"$' + self.escape) + '"'

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

    def one_line(self, text: str) -> str:
        if "\n" in text or "\r" in text:
            self.warn(f"{text!r} has an end of line, which a Dockerfile can't hold there")
        return text.replace("\r", " ").replace("\n", " ")

    def escaped(self, text: str, signs: str) -> str:
        return "".join(self.escape + sign if sign in signs else sign for sign in text)

    def user(self, user: User) -> str:
        return f"{user.uid}:{user.gid}" if isinstance(user, UnixUser) else self.argument(user.name)

    def person(self, user: User) -> str:
        """A user as a word that solves to it."""
        return f"{user.uid}:{user.gid}" if isinstance(user, UnixUser) else self.literal(user.name)

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

    # --- run ---------------------------------------------------------------------------------

    def run(self, op: Run, user: User, shell: tuple[str, ...], stage: Stage) -> str:
        if op.limits != Limits():
            self.warn("the limits of steps can't be said in a Dockerfile")
        flags = ""
        if self.buildkit:
            flags += "--network=none " if op.network == NO_NETWORK else ""
            flags += "".join(self.mount(fields) for fields in self.mounts(op, user, stage))
            flags += "--security=insecure " if op.insecure else ""
        else:
            if op.network == NO_NETWORK:
                self.warn("that a step has no network needs BuildKit; without it, it has one")
            if op.cache or op.secrets:
                self.warn("caches and secrets need BuildKit; without it they are left out")
            if op.binds or op.tmpfs or op.ssh or op.insecure:
                self.warn("without BuildKit, a run sees no builds, memory or agents")
        if op.exec:
            return f"RUN {flags}{self.array(op.exec)}"
        if self.buildkit and op.shell.endswith("\n") and not op.shell.startswith("#!"):
            return f"RUN {flags}{self.document(op.shell)}"
        command = op.shell.strip(" \t\n")
        if self.continued(command) or self.is_kept(command):
            return f"RUN {flags}{command}"
        return f"RUN {flags}{self.array((*shell, op.shell))}"

    def continued(self, command: str) -> bool:
        """Whether Docker joins the lines of a command just as a shell does."""
        lines = command.split("\n")
        return (
            self.escape == "\\"
            and len(lines) > 1
            and "'" not in command
            and all(line.endswith("\\") and not line.endswith("\\\\") for line in lines[:-1])
            and all(line.strip(" \t\\") and not line.lstrip().startswith("#") for line in lines)
            and self.is_kept(command.replace("\\\n", ""))
        )

    def is_kept(self, command: str) -> bool:
        """Whether a RUN of the command, as it stands, means the command for the shell."""
        if "<<" in command and not self.buildkit:
            return False
        text = f"# escape={self.escape}\nRUN {command}\n".encode("utf-8", "surrogateescape")
        try:
            found = parse(text, file="").instructions
            words = json_words(found[0].rest)
        except (SpecErrors, ValueError):
            return False
        return (
            len(found) == 1
            and found[0].text == f"RUN {command}"
            and not found[0].flags
            and words is None
        )

    def document(self, command: str) -> str:
        """A command of whole lines as a here-document, whose end stands in no line of it."""
        name = "EOF"
        while name in command.split("\n"):
            name += "_"
        return f"<<{name}\n{command}{name}"

    def mount(self, fields: Iterable[tuple[str, str]]) -> str:
        found = [(key, self.literal(value)) for key, value in fields]
        return f"--mount={self.in_flag(csv(found))} "

    def mounts(self, op: Run, user: User, stage: Stage) -> Iterator[list[tuple[str, str]]]:
        """Secrets, then caches, as OBuilder prints them; then memory, agents and builds."""
        step = [("uid", str(user.uid))] if isinstance(user, UnixUser) else []
        for secret in op.secrets:
            fields = [("type", "secret"), ("id", secret.id)]
            fields += [("target", secret.target)] if secret.target else []
            fields += [("env", secret.env)] if secret.env else []
            fields += _file(secret.owner, secret.permissions, 0o400) or step
            if secret.owner is not None or secret.permissions is not None or not secret.required:
                fields += [("required", "true")] if secret.required else []
            yield [*fields, *secret.buildkit_options]
        for cache in op.cache:
            fields = [("type", "cache"), ("id", cache.id), ("target", cache.target)]
            own = cache.owner is not None or cache.permissions is not None
            fields += _file(cache.owner, cache.permissions, 0o755) if own else step
            yield [*fields, *self.sharing(cache, said=own), *cache.buildkit_options]
        for tmpfs in op.tmpfs:
            size = [("size", str(tmpfs.size))] if tmpfs.size else []
            yield [("type", "tmpfs"), ("target", tmpfs.target), *size]
        for ssh in op.ssh:
            fields = [("type", "ssh"), ("id", ssh.id), ("target", ssh.target)]
            fields += _file(ssh.owner, ssh.permissions, 0o600)
            yield fields + ([("required", "true")] if ssh.required else [])
        for bind in op.binds:
            name = self.name_of.get(stage.find(bind.build).path, bind.build)
            fields = [("type", "bind"), ("from", name), ("source", bind.source)]
            yield [*fields, ("target", bind.target), *([("rw", "true")] if bind.writable else [])]

    def sharing(self, cache: Cache, *, said: bool) -> list[tuple[str, str]]:
        """A cache's mode; OBuilder says none of the usual one. `said`: this cache says all it is."""
        if {"sharing", "readonly", "ro"} & dict(cache.buildkit_options).keys():
            return []
        if cache.mode == "read-only":
            return [("readonly", "true")]
        if cache.mode == "append":
            self.warn("BuildKit has no cache of the mode append")
            return []
        return [("sharing", cache.mode)] if said or cache.mode != "private" else []

    # --- copies ------------------------------------------------------------------------------

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
        # Docker takes sources for patterns.
        patterns = (re.sub(r"[\[*?\\]", _as_itself, path) for path in op.src)
        return f"COPY {flags}{self.sources((*patterns, op.dst))}"

    def sources(self, paths: tuple[str, ...]) -> str:
        # Variables are put into the words of an array as well.
        if all(_PLAIN.fullmatch(path) and not set(path) & set("[]*?") for path in paths):
            return " ".join(paths)
        return self.array(tuple(map(self.literal, paths)))

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
            self.warn(f"give the build --build-context {op.context}=DIR")
            flags += f"--from={self.in_flag(op.context)} "
        flags += "".join(
            f"--exclude={self.in_flag(self.literal(pattern))} " for pattern in op.exclude
        )
        flags += ("--parents " if op.parents else "") + ("--link " if op.link else "")
        words = []
        for file, content in op.files:
            if content and not content.endswith("\n"):
                self.warn(f"the text {file!r} gets an end of line in a Dockerfile")
                content += "\n"  # noqa: PLW2901 - what is written
            if file in content.split("\n") or any(
                sign.isspace() or sign in "'\"<" for sign in file
            ):
                self.warn(f"the text {file!r} can't be a here-document of that name")
            words.append(f"<<'{file}'")
            end += f"\n{content}{file}"
        if not words:
            return f"{name} {flags}{self.sources((*src, op.dst))}"
        for path in (*src, op.dst):
            if any(map(str.isspace, path)):
                self.warn(f"{path!r} has blanks, which no line with texts can hold")
        paths = [*map(self.literal, src), *words, self.literal(op.dst)]
        return f"{name} {flags}{' '.join(paths)}{end}"


def _as_itself(sign: "re.Match[str]") -> str:
    return "\\\\" if sign.group() == "\\" else f"[{sign.group()}]"


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
