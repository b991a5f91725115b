"""One stage of a Dockerfile: its instructions to ops, with variables as they stand at each."""

import re
from collections.abc import Callable, Iterable

from obuilder.errors import SpecErrors
from obuilder.spec.decode_settings import PORT, SIGNAL
from obuilder.spec.dockerfile import (
    Dockerfile,
    Instruction,
    Stretch,
    fault,
    json_words,
    place,
)
from obuilder.spec.dockerfile_words import BadWord, expand, expand_raw, expand_words, word_places
from obuilder.spec.image import DEFAULT_PATH, SHELL, ImageConfig, changed
from obuilder.spec.model import (
    Ambient,
    Arg,
    Author,
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Inherit,
    Label,
    Mkdir,
    Onbuild,
    Op,
    SetUser,
    Shell,
    StopSignal,
    Volume,
    Workdir,
)
from obuilder.spec.sexp import Source
from obuilder.values import NamedUser, UnixUser, User

PROXIES = frozenset(
    name
    for word in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (word, word.upper())
)
"""Arguments that every stage has without asking; they are in no key."""
_NO_VARIABLE = frozenset({"SOURCE_DATE_EPOCH"})
_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
_ID = re.compile(r"\d{1,10}")


class Stage:
    """The ops of one stage so far, and what they leave for the next instruction.

    `built`: gives the name of a build for what a `--from` names. `given`: the build arguments,
    `globally`: what was set before the first FROM.
    """

    def __init__(
        self,
        dockerfile: Dockerfile,
        config: ImageConfig,
        *,
        given: dict[str, str],
        globally: dict[str, str],
        network: tuple[str, ...],
        built: Callable[[Stretch], str],
        beside: Callable[[str, str, tuple[Op, ...], str], str],
    ) -> None:
        self.source: Source = dockerfile.source
        self.escape = dockerfile.escape
        self.config, self.given, self.globally = config, given, globally
        self.network, self.built, self._beside = network, built, beside
        self.ops: list[Op] = []
        self.places: list[str] = []
        """Where the instruction of each op stands."""
        self.place = ""
        self.asked: set[str] = set()
        """The build arguments that were asked for."""
        self.own_cmd = False
        self.cwd = config.workdir or "/"
        self.env = {"PATH": DEFAULT_PATH, **dict(config.env)}

    def beside(self, name: str, ops: tuple[Op, ...], base: str) -> str:
        """The name of a build that is no stage, for the instruction that is read."""
        return self._beside(self.place, name, ops, base)

    def begin(self, *, inherit: bool) -> None:
        """What stands before the first instruction."""
        if inherit:
            self.add(Inherit())
        for name, value in self.given.items():
            if name in PROXIES:
                self.add(Ambient(name, value))

    def put(self, op: Op) -> None:
        """Take in an op, with what it changes."""
        self.add(op)
        self.config = changed(self.config, op, own_cmd=self.own_cmd, cwd=self.cwd)
        if isinstance(op, Env | Arg):
            self.env[op.name] = op.value
        elif isinstance(op, Cmd):
            self.own_cmd = True

    def add(self, op: Op) -> None:
        """Put an op behind the others, at the place of the instruction that is read."""
        self.ops.append(op)
        self.places.append(self.place)

    # --- reading -----------------------------------------------------------------------------

    def fault(self, at: Stretch, message: str, *, hint: str | None = None) -> SpecErrors:
        """An error at a place, to be raised."""
        return fault(self.source, at, message, hint=hint)

    def expand(self, at: Stretch, text: str | None = None) -> str:
        """A word, solved; `text` if it is not what stands in the file there."""
        try:
            return expand(at.text if text is None else text, self.env, self.escape)
        except BadWord as error:
            raise self.fault(at, str(error)) from None

    def expand_document(self, at: Stretch, text: str) -> str:
        """A here-document's content, solved."""
        try:
            return expand_raw(text, self.env)
        except BadWord as error:
            raise self.fault(at, str(error)) from None

    def words(self, rest: Stretch) -> list[Stretch]:
        """The words of a line, quotes left in them."""
        return [rest.part(*place) for place in word_places(rest.text, self.escape)]

    def listed(self, rest: Stretch) -> list[Stretch] | None:
        """The words of a JSON array, each with the array's place; None if there is none."""
        try:
            found = json_words(rest)
        except ValueError:
            raise self.fault(rest, "only strings can stand in such a list") from None
        if found is None:
            return None
        return [Stretch(word, [rest.start] * len(word) + [rest.end]) for word in found]

    def plain(self, rest: Stretch) -> list[Stretch]:
        """A JSON array's words, or those that blanks part."""
        found = self.listed(rest)
        if found is None:
            places = [match.span() for match in re.finditer(r"[^\t\v\f\r ]+", rest.text)]
            found = [rest.part(*place) for place in places]
        return found

    def no_flags(self, it: Instruction) -> None:
        """Refuse every flag."""
        self.flags(it, ())

    def flags(self, it: Instruction, known: Iterable[str]) -> list[tuple[str, str, Stretch]]:
        """The flags by name, with their values and places; `name=` is known for one with a value,
        and twice (`name==`) for one that may stand more than once.
        """
        found: list[tuple[str, str, Stretch]] = []
        names = {name.rstrip("="): name.count("=") for name in known}
        for flag in it.flags:
            name, sign, value = flag.text[2:].partition("=")
            if name not in names:
                raise self.fault(
                    flag, f"{it.name} has no flag --{name[:40]}",
                    hint="it has: " + ", ".join(f"--{n}" for n in names) if names else None,
                )  # fmt: skip
            kinds = names[name]
            if kinds and not sign:
                raise self.fault(flag, f"--{name} needs a value: --{name}=…")
            if not kinds:
                value = value.lower() if sign else "true"
                if value not in ("true", "false"):
                    raise self.fault(flag, f"--{name} is true or false, not {value!r}")
            if kinds < 2 and any(other == name for other, _, _ in found):
                raise self.fault(flag, f"a second --{name}")
            found.append((name, value, flag))
        return found

    def one(self, it: Instruction) -> Stretch:
        """The one argument."""
        self.no_flags(it)
        if not it.rest.text:
            raise self.fault(it.whole, f"{it.name} needs an argument")
        return it.rest

    def user(self, at: Stretch, text: str, *, group: bool) -> User:
        """A user as USER and --chown have it. `group`: a number stands for its group as well."""
        if len(text.split(":")) > 2:
            raise self.fault(at, f"{text!r} is no user: write USER or USER:GROUP")
        name, sign, team = text.partition(":")
        if _ID.fullmatch(name) and (_ID.fullmatch(team) or (group and not sign)):
            found = UnixUser(int(name), int(team or name))
            if max(found.uid, found.gid) >= (1 << 32) - 1:
                raise self.fault(at, "ids are from 0 to 4294967294")
            return found
        if not name or (sign and not team):
            raise self.fault(at, f"{text!r} is no user: write USER or USER:GROUP")
        return NamedUser(text)

    def path(self, text: str) -> str:
        """An absolute path without `.`, `..` and doubled slashes; relative ones start at the cwd."""
        parts: list[str] = []
        for part in (text if text.startswith("/") else f"{self.cwd}/{text}").split("/"):
            if part == "..":
                parts = parts[:-1]
            elif part not in ("", "."):
                parts.append(part)
        return "/" + "/".join(parts)

    # --- instructions ------------------------------------------------------------------------

    def take(self, it: Instruction) -> None:
        """Take in one instruction. SpecErrors."""
        from obuilder.spec.dockerfile_copy import copy
        from obuilder.spec.dockerfile_run import run

        readers: dict[str, Callable[[Instruction], None]] = {
            "ENV": self.env_, "LABEL": self.label, "ARG": self.arg, "WORKDIR": self.workdir,
            "USER": self.user_, "SHELL": self.shell, "CMD": self.cmd, "VOLUME": self.volume,
            "ENTRYPOINT": self.entrypoint, "EXPOSE": self.expose, "STOPSIGNAL": self.stopsignal,
            "HEALTHCHECK": self.healthcheck, "ONBUILD": self.onbuild, "MAINTAINER": self.author,
            "RUN": lambda it: run(self, it), "COPY": lambda it: copy(self, it),
            "ADD": lambda it: copy(self, it),
        }  # fmt: skip
        self.place = place(self.source, it.whole)
        readers[it.name](it)

    def pairs(self, it: Instruction) -> list[tuple[str, str]]:
        """NAME=VALUE …, or the older NAME VALUE; all solved before any of them is set."""
        self.no_flags(it)
        words = self.words(it.rest)
        if not words:
            raise self.fault(it.whole, f"{it.name} needs NAME=VALUE")
        if "=" not in words[0].text:
            if len(words) < 2:
                raise self.fault(it.rest, f"{it.name} needs NAME=VALUE")
            value = it.rest.part(len(words[0].text), len(it.rest.text)).strip()
            return [(self.expand(words[0]), self.expand(value))]
        found = []
        for word in words:
            name, sign, _ = word.text.partition("=")
            if not sign:
                raise self.fault(word, f"{word.text[:40]!r} has no =", hint="write NAME=VALUE")
            if not name:
                raise self.fault(word, "a name can't be empty")
            value = word.part(len(name) + 1, len(word.text))
            found.append((self.expand(word.part(0, len(name))), self.expand(value)))
        return found

    def env_(self, it: Instruction) -> None:
        """ENV."""
        for name, value in self.pairs(it):
            if not name or "=" in name:
                raise self.fault(it.rest, "the name of a variable can't be empty or hold =")
            self.put(Env(name, value))

    def label(self, it: Instruction) -> None:
        """LABEL."""
        for name, value in self.pairs(it):
            if not name:
                raise self.fault(it.rest, "the name of a label can't be empty")
            self.put(Label(name, value))

    def arg(self, it: Instruction) -> None:
        """ARG: a value given, its default, or the one from before the first FROM."""
        self.no_flags(it)
        words = self.words(it.rest)
        if not words:
            raise self.fault(it.whole, "ARG needs a name")
        for word in words:
            name, sign, _ = word.text.partition("=")
            if not name:
                raise self.fault(word, "a name can't be empty")
            self.asked.add(name)
            value = self.given.get(name)
            if value is None and sign:
                value = self.expand(word.part(len(name) + 1, len(word.text)))
            elif value is None:
                value = self.globally.get(name)
            if value is not None and name not in _NO_VARIABLE:
                self.put(Arg(name, value))

    def workdir(self, it: Instruction) -> None:
        """WORKDIR, which makes the directory."""
        path = self.expand(self.one(it))
        if not path:
            raise self.fault(it.rest, "the path is empty")
        self.cwd = self.path(path)
        self.put(Workdir(self.cwd))
        if self.cwd != "/":
            self.put(Mkdir(self.cwd))

    def user_(self, it: Instruction) -> None:
        """USER."""
        text = self.expand(self.one(it))
        self.put(SetUser(self.user(it.rest, text or "0:0", group=False)))

    def shell(self, it: Instruction) -> None:
        """SHELL."""
        self.no_flags(it)
        words = self.listed(it.rest)
        if not words:
            raise self.fault(
                it.whole, "SHELL takes a list of words", hint='as SHELL ["/bin/bash", "-c"]'
            )
        self.put(Shell(tuple(word.text for word in words)))

    def line(self, it: Instruction, rest: Stretch) -> tuple[str, ...]:
        """A command's words; a line for the shell goes behind the shell's own."""
        words = self.listed(rest)
        if words is not None:
            return tuple(word.text for word in words)
        if not rest.text:
            raise self.fault(it.whole, f"{it.name} needs a command")
        return (*(self.config.shell or SHELL), rest.text)

    def cmd(self, it: Instruction) -> None:
        """CMD."""
        self.no_flags(it)
        self.put(Cmd(self.line(it, it.rest)))

    def entrypoint(self, it: Instruction) -> None:
        """ENTRYPOINT."""
        self.no_flags(it)
        self.put(Entrypoint(self.line(it, it.rest)))

    def expose(self, it: Instruction) -> None:
        """EXPOSE."""
        self.no_flags(it)
        found: list[str] = []
        for word in self.plain(it.rest):
            try:
                solved = expand_words(word.text, self.env, self.escape)
            except BadWord as error:
                raise self.fault(word, str(error)) from None
            for port in solved:
                found.extend(self.ports(word, port))
        if not found:
            raise self.fault(it.whole, "EXPOSE needs a port")
        self.put(Expose(tuple(dict.fromkeys(found))))

    def ports(self, at: Stretch, text: str) -> list[str]:
        """One port, or each of a range."""
        port = text.lower() if "/" in text else f"{text}/tcp"
        first, _, kind = port.partition("/")
        start, _, end = first.partition("-")
        if not PORT.fullmatch(port):
            raise self.fault(
                at, f"{text[:40]!r} is no port of a container",
                hint="write NUMBER, NUMBER-NUMBER, or either with /tcp, /udp or /sctp",
            )  # fmt: skip
        low, high = int(start), int(end or start)
        if not low <= high <= 65535:
            raise self.fault(at, f"{text[:40]!r} is no range of ports up to 65535")
        return [f"{number}/{kind}" for number in range(low, high + 1)]

    def volume(self, it: Instruction) -> None:
        """VOLUME."""
        self.no_flags(it)
        paths = [self.expand(word).strip() for word in self.plain(it.rest)]
        if not paths or "" in paths:
            raise self.fault(it.whole, "VOLUME needs paths that are not empty")
        self.put(Volume(tuple(paths)))

    def stopsignal(self, it: Instruction) -> None:
        """STOPSIGNAL."""
        signal = self.expand(self.one(it))
        if not SIGNAL.fullmatch(signal):
            raise self.fault(it.rest, f"{signal[:40]!r} is no signal")
        self.put(StopSignal(signal))

    def healthcheck(self, it: Instruction) -> None:
        """HEALTHCHECK."""
        waits = ("interval", "timeout", "start-period", "start-interval")
        flags = self.flags(it, [*(f"{name}=" for name in waits), "retries="])
        head, rest = self.head(it)
        if head.text.upper() == "NONE":
            if rest.text or flags:
                raise self.fault(it.whole, "HEALTHCHECK NONE takes nothing more")
            self.put(Healthcheck(("NONE",)))
            return
        if head.text.upper() != "CMD":
            raise self.fault(it.whole, "HEALTHCHECK takes CMD with a command, or NONE")
        words = self.listed(rest)
        test: tuple[str, ...]
        if words is None and rest.text:
            test = ("CMD-SHELL", rest.text)
        elif words:
            test = ("CMD", *(word.text for word in words))
        else:
            raise self.fault(it.whole, "HEALTHCHECK CMD needs a command")
        given: dict[str, int] = {}
        for name, value, at in flags:
            if name == "retries":
                if not value.isascii() or not value.isdecimal() or len(value) > 9:
                    raise self.fault(at, "--retries is a whole number")
                given["retries"] = int(value)
            else:
                given[name.replace("-", "_")] = self.time(at, value)
        self.put(Healthcheck(test, **given))

    def head(self, it: Instruction) -> tuple[Stretch, Stretch]:
        """The first word after the flags, and what follows it."""
        size = len(it.rest.text.split(None, 1)[0]) if it.rest.text else 0
        return it.rest.part(0, size), it.rest.part(size, len(it.rest.text)).strip()

    def time(self, at: Stretch, text: str) -> int:
        """A time in nanoseconds: `1h30m`, `1.5s`, `0`."""
        if text == "0":
            return 0
        parts = _TIME.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text or len(text) > 40:
            raise self.fault(at, f"{text[:40]!r} is no time", hint="write 30s, 1m30s or 500ms")
        found = round(sum(float(number) * _UNITS[unit] for number, unit in parts))
        if 0 < found < 10**6:
            raise self.fault(at, "a time can't be less than a millisecond")
        return found

    def onbuild(self, it: Instruction) -> None:
        """ONBUILD: kept as it stands."""
        self.no_flags(it)
        head, _ = self.head(it)
        trigger = head.text.upper()
        if not trigger or trigger in ("ONBUILD", "FROM", "MAINTAINER"):
            raise self.fault(it.whole, f"ONBUILD can't hold {trigger or 'nothing'}")
        text = re.sub(r"(?i)^\s*ONBUILD\s*", "", it.text)
        self.put(Onbuild(text))

    def author(self, it: Instruction) -> None:
        """MAINTAINER."""
        self.put(Author(self.one(it).text))
