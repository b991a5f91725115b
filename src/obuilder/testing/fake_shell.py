r"""The little of a shell's language that the fake sandbox understands, run inside this process.

Words with '…', "…", \c, $NAME, ${NAME}, $$ and $?; NAME=VALUE; `;`, newline, `&`, `&&`, `||` and
comments; `<`, `>`, `>>`, `>&1` and `>&2`, with the number of a descriptor before them or without. An
expansion is one word, whatever is in it. All else is a SandboxError, so that nothing passes by
chance. Commands are those of `COMMANDS` and whatever the sandbox was given besides.
"""

import errno
import os
import posixpath
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple, TypeVarTuple, Unpack

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from obuilder.backends.protocols import Command, HostDir, Mount
from obuilder.errors import SandboxError
from obuilder.values import UnixUser

_TOKEN = re.compile(
    r"""(?P<blank> [ \t]+ | \#[^\n]* | \\\n )
      | (?P<redirect> \d?(?: >&[12] | >> | > | < ) )
      | (?P<operator> && | \|\| | [;&\n] )
      | (?P<word> (?: '[^']*' | "(?:\\.|[^"\\])*" | \\. | [^\s;&|<>()*`'"\\] )+ )""",
    re.VERBOSE | re.DOTALL,
)
_PART = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^'"\\]+)""", re.DOTALL)
_EXPANSION = re.compile(r"""\\([$"\\])|\$(?:(\w+)|\{(\w+)\}|([$?]))""")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_MODES = {"<": "rb", ">": "wb", ">>": "ab"}
_PID = "1"

Parts = TypeVarTuple("Parts")


class Files:
    """A root's files by the paths a step knows them by: symlinks stay inside, mounts cover."""

    def __init__(self, root: str, mounts: tuple[Mount, ...]) -> None:
        self._root = root
        self._mounts = {posixpath.normpath(mount.target): mount for mount in mounts}

    def host(self, path: str, *, write: bool = False) -> str:
        """Where the file is on the host. OSError: too many symlinks, or `write` in what is not."""
        ahead, found, hops = path.split("/")[::-1], list[str](), 0
        while ahead:
            part = ahead.pop()
            if part == "..":
                found = found[:-1]
            elif part not in ("", "."):
                place, _ = self._covered([*found, part])
                if not os.path.islink(place):
                    found.append(part)
                    continue
                hops += 1
                if hops > 40:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(place)
                found = [] if target.startswith("/") else found
                ahead.extend(target.split("/")[::-1])
        place, readonly = self._covered(found)
        if write and readonly:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return place

    def _covered(self, parts: list[str]) -> tuple[str, bool]:
        for size in range(len(parts), 0, -1):
            mount = self._mounts.get("/" + "/".join(parts[:size]))
            if mount is not None:
                assert isinstance(mount.source, HostDir)
                return os.path.join(mount.source.path, *parts[size:]), mount.readonly
        return os.path.join(self._root, *parts), False


class Call(NamedTuple):
    """One command that runs: its words, its standard streams, and the shell it runs in."""

    argv: list[str]
    stdin: bytes
    write: Callable[[bytes], object]
    complain: Callable[[bytes], object]
    shell: "FakeShell"


Program = Callable[[Call], Awaitable[int]]
"""Runs a command in place of a program: returns its status; an OSError is status 1 and told."""


class _Ended(Exception):  # no error: how `exit` and `kill` leave a script
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Simple(NamedTuple):
    words: list[str]
    redirects: list[tuple[int, str, str]]


class _List(NamedTuple):
    commands: list[tuple[str, _Simple]]
    background: bool


class FakeShell:
    """Runs one command of the sandbox's, a shell's script or any other."""

    def __init__(
        self,
        command: Command,
        files: Files,
        output: Callable[[bytes], object],
        *,
        programs: Mapping[str, Program],
        stdin: bytes = b"",
    ) -> None:
        self.command, self.files, self.cwd = command, files, command.cwd
        self.variables = dict(command.env)
        self._output, self._stdin = output, stdin
        self._programs = {**COMMANDS, **programs}
        self._status = 0

    async def run(self) -> int:
        """The status it ends with; what still runs in the background then is ended."""
        argv = list(self.command.argv)
        if posixpath.basename(argv[0]) not in ("sh", "bash"):
            return await self._until_exit(self._call, argv, self._stdin, self._output, self._output)
        lists = _parse(argv[2] if argv[1:2] == ["-c"] else os.fsdecode(self._stdin))
        try:
            async with anyio.create_task_group() as tasks:
                status = await self._until_exit(self._script, lists, tasks)
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return status

    async def _until_exit(
        self, work: Callable[[Unpack[Parts]], Awaitable[int]], *parts: *Parts
    ) -> int:
        try:
            return await work(*parts)
        except _Ended as end:
            return end.status

    async def _script(self, lists: list[_List], tasks: TaskGroup) -> int:
        for each in lists:
            if each.background:
                tasks.start_soon(self._until_exit, self._and_or, each)
                self._status = 0
            else:
                self._status = await self._and_or(each)
        return self._status

    async def _and_or(self, each: _List) -> int:
        status = 0
        for joint, simple in each.commands:
            if joint == "" or (joint == "&&") == (status == 0):
                self._status = status = await self._simple(simple)
        return status

    async def _simple(self, simple: _Simple) -> int:
        argv = [self._expand(word) for word in simple.words]
        assigned = _ASSIGNMENT.fullmatch(argv[0]) if argv else None
        if assigned is not None:
            if len(argv) > 1:
                raise SandboxError("the fake shell has no variables for one command alone")
            self.variables[assigned[1]] = assigned[2]
            return 0
        streams: dict[int, Callable[[bytes], object]] = {1: self._output, 2: self._output}
        stdin = self._stdin
        with ExitStack() as stack:
            for number, kind, word in simple.redirects:
                if kind == ">&":
                    streams[number] = streams[int(word)]
                    continue
                target = self._expand(word)
                try:
                    place = self.path(target, write=kind != "<")
                    file = stack.enter_context(open(place, _MODES[kind], buffering=0))
                except OSError as error:
                    streams[2](os.fsencode(f"sh: {target}: {error.strerror}\n"))
                    return 1
                if kind == "<":
                    stdin = file.read()
                else:
                    streams[number] = file.write
            return await self._call(argv, stdin, streams[1], streams[2]) if argv else 0

    async def _call(
        self,
        argv: list[str],
        stdin: bytes,
        write: Callable[[bytes], object],
        complain: Callable[[bytes], object],
    ) -> int:
        await anyio.lowlevel.checkpoint()
        program = self._programs.get(posixpath.basename(argv[0]))
        if program is None:
            complain(os.fsencode(f"{argv[0]}: not found\n"))
            return 127
        try:
            return await program(Call(argv, stdin, write, complain, self))
        except OSError as error:
            complain(os.fsencode(f"{' '.join(argv)}: {error.strerror}\n"))
            return 1
        except (LookupError, ValueError):
            raise SandboxError(f"the fake shell does not understand {' '.join(argv)!r}") from None

    def path(self, path: str, *, write: bool = False) -> str:
        """Where a file is on the host, from the directory the shell is in."""
        return self.files.host(posixpath.join(self.cwd, path), write=write)

    def _expand(self, word: str) -> str:
        def value(found: re.Match[str]) -> str:
            escaped, name, braced, special = found.groups()
            if escaped is not None:
                return str(escaped)
            if special is not None:
                return _PID if special == "$" else str(self._status)
            return self.variables.get(name or braced, "")

        pieces = []
        for single, double, escaped, plain in _PART.findall(word):
            text = double or plain
            if "$(" in text or "`" in double:
                raise SandboxError(f"the fake shell does not understand {word!r}")
            pieces.append(single + escaped + _EXPANSION.sub(value, text))
        return "".join(pieces)


def _parse(script: str) -> list[_List]:
    lists: list[_List] = []
    commands: list[tuple[str, _Simple]] = []
    joint, simple, redirect = "", _Simple([], []), ""

    def ended() -> None:
        nonlocal simple
        if redirect:
            raise SandboxError(f"a file is missing after {redirect}")
        if simple.words or simple.redirects:
            commands.append((joint, simple))
            simple = _Simple([], [])

    at = 0
    while at < len(script):
        found = _TOKEN.match(script, at)
        if found is None:
            raise SandboxError(f"the fake shell does not understand {script[at : at + 20]!r}")
        at, kind, text = found.end(), found.lastgroup, found[0]
        if kind == "redirect" and "&" in text:
            simple.redirects.append((int(text[:-3] or 1), ">&", text[-1]))
        elif kind == "redirect":
            redirect = text
        elif kind == "word" and redirect:
            operator = redirect.lstrip("0123456789")
            number = int(redirect.removesuffix(operator) or operator != "<")
            simple.redirects.append((number, operator, text))
            redirect = ""
        elif kind == "word":
            simple.words.append(text)
        elif kind == "operator":
            ended()
            joint = text if text in ("&&", "||") else ""
            if not joint and commands:
                lists.append(_List(commands, background=text == "&"))
                commands = []
    ended()
    return [*lists, _List(commands, background=False)] if commands else lists


# --- commands ------------------------------------------------------------------------------------


async def _echo(call: Call) -> int:
    plain = call.argv[1:2] == ["-n"]
    call.write(os.fsencode(" ".join(call.argv[1 + plain :]) + ("" if plain else "\n")))
    return 0


async def _printf(call: Call) -> int:
    text, values = call.argv[1], iter(call.argv[2:])
    text = re.sub(r"%([sd%])", lambda m: "%" if m[1] == "%" else next(values, ""), text)
    known = {"n": b"\n", "t": b"\t", "\\": b"\\"}

    def escape(found: re.Match[bytes]) -> bytes:
        name = found[1].decode()
        return known[name] if name in known else bytes([int(name, 8)])

    call.write(re.sub(rb"\\([0-7]{1,3}|[nt\\])", escape, os.fsencode(text)))
    return 0


async def _cat(call: Call) -> int:
    for name in call.argv[1:]:
        with open(call.shell.path(name), "rb") as file:
            call.write(file.read())
    if len(call.argv) == 1:
        call.write(call.stdin)
    return 0


async def _exit(call: Call) -> int:
    raise _Ended(int(call.argv[1]) if len(call.argv) > 1 else 0)


async def _kill(call: Call) -> int:
    _, signal, pid = call.argv
    if pid != _PID:
        call.complain(os.fsencode(f"kill: {pid}: no such process\n"))
        return 1
    raise _Ended(128 - int(signal))


async def _sleep(call: Call) -> int:
    await anyio.sleep(float(call.argv[1]))
    return 0


async def _true(call: Call) -> int:
    return 0


async def _false(call: Call) -> int:
    return 1


async def _pwd(call: Call) -> int:
    call.write(os.fsencode(call.shell.cwd + "\n"))
    return 0


async def _id(call: Call) -> int:
    user = call.shell.command.user
    assert isinstance(user, UnixUser)
    call.write(b"%d\n" % {"-u": user.uid, "-g": user.gid}[call.argv[1]])
    return 0


async def _env(call: Call) -> int:
    for name, _ in call.shell.command.env:
        call.write(os.fsencode(f"{name}={call.shell.variables[name]}\n"))
    return 0


async def _ls(call: Call) -> int:
    for name in sorted(os.listdir(call.shell.path("".join(call.argv[1:])))):
        call.write(os.fsencode(name + "\n"))
    return 0


async def _mkdir(call: Call) -> int:
    for name in [word for word in call.argv[1:] if word != "-p"]:
        os.makedirs(call.shell.path(name, write=True), exist_ok="-p" in call.argv)
    return 0


async def _rm(call: Call) -> int:
    for name in call.argv[1:]:
        os.unlink(call.shell.path(name, write=True))
    return 0


COMMANDS: dict[str, Program] = {
    "cat": _cat, "echo": _echo, "env": _env, "exit": _exit, "false": _false,
    "id": _id, "kill": _kill, "ls": _ls, "mkdir": _mkdir, "printf": _printf, "pwd": _pwd,
    "rm": _rm, "sleep": _sleep, "trap": _true, "true": _true,
}  # fmt: skip
