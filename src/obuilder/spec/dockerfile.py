"""Dockerfile text to instructions, as BuildKit reads lines: directives, comments, continuations,
flags and here-documents, every piece with its place. Expands no variable and knows no stage.
"""

import re

import msgspec
from msgspec import Struct

from obuilder.errors import SpecErrors
from obuilder.spec.dockerfile_words import bare, quoted_words
from obuilder.spec.sexp import Source

INSTRUCTIONS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
    "MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_DIRECTIVES = ("syntax", "escape", "check")
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.*?)\s*$")
_HEREDOC = re.compile(r"(\d*)<<(-?)\s*([^<]*)")
_BLANKS = " \t\v\f\r"
_FRONT_ENDS = re.compile(
    r"(docker\.io/)?docker/dockerfile(-upstream)?(:[\w.-]+)?(@sha256:[0-9a-f]{64})?"
)


class Stretch:
    """A piece of a logical line: its text, and where in the file each character stands."""

    def __init__(self, text: str, places: list[int]) -> None:
        self.text, self.places = text, places

    def part(self, start: int, end: int) -> "Stretch":
        """The characters [start, end)."""
        return Stretch(self.text[start:end], self.places[start : end + 1])

    def strip(self) -> "Stretch":
        """Without blanks at both ends."""
        left = len(self.text) - len(self.text.lstrip())
        return self.part(left, max(left, len(self.text.rstrip())))

    @property
    def start(self) -> int:
        """Where it begins in the file."""
        return self.places[0]

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.places[-1]


class Heredoc(Struct, frozen=True):
    """A here-document: `expand` says that its delimiter was not quoted."""

    name: str
    content: str
    expand: bool
    chomp: bool


class Instruction(Struct, frozen=True):
    """One instruction: its name in capitals, its flags (with their dashes), and what follows."""

    name: str
    flags: tuple[Stretch, ...]
    rest: Stretch
    heredocs: tuple[Heredoc, ...]
    whole: Stretch

    @property
    def text(self) -> str:
        """The instruction as it was written, continuations joined, here-documents at its end."""
        bodies = "".join(f"\n{doc.content}{doc.name}" for doc in self.heredocs)
        return self.whole.text + bodies


class Dockerfile(Struct, frozen=True):
    """A file's instructions in order; `escape` is its escape character."""

    source: Source
    escape: str
    instructions: tuple[Instruction, ...]


def parse(text: bytes, *, file: str) -> Dockerfile:
    """The instructions in `text`. SpecErrors, with the first fault: lines after it may mislead."""
    return _Lines(Source(text, file)).read()


def fault(source: Source, at: Stretch, message: str, *, hint: str | None = None) -> SpecErrors:
    """An error at a place, to be raised."""
    return SpecErrors([source.error(message, at.start, max(at.end, at.start), hint=hint)])


def place(source: Source, at: Stretch) -> str:
    """Where it stands, for messages."""
    span = source.span(at.start, at.end)
    return f"{source.file}:{span.line}:{span.column}"


class _Lines:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.escape = "\\"
        self.at = 0
        self.seen: set[str] = set()
        if b"\0" in source.text:
            at = source.text.index(b"\0")
            raise SpecErrors([source.error("a Dockerfile can't hold NUL", at, at + 1)])

    def read(self) -> Dockerfile:
        found: list[Instruction] = []
        self.directives()
        while (line := self.line()) is not None:
            text = line.text.lstrip()
            if text and not text.startswith("#"):
                found.append(self.instruction(self.joined(line)))
        if not found:
            raise SpecErrors([self.source.error("the Dockerfile has no instructions", 0, 0)])
        return Dockerfile(self.source, self.escape, tuple(found))

    def line(self) -> Stretch | None:
        """The next line, without its end."""
        data = self.source.text
        if self.at >= len(data):
            return None
        start = self.at
        end = data.find(b"\n", start)
        self.at = len(data) if end < 0 else end + 1
        raw = data[start : len(data) if end < 0 else end].rstrip(b"\r")
        text = raw.decode("utf-8", "surrogateescape")
        if raw.isascii():
            return Stretch(text, list(range(start, start + len(raw) + 1)))
        places, place = [], start
        for sign in text:
            places.append(place)
            place += len(sign.encode("utf-8", "surrogateescape"))
        return Stretch(text, [*places, place])

    def directives(self) -> None:
        """Parser directives: only at the very top, each once."""
        while True:
            before = self.at
            line = self.line()
            found = None if line is None else _DIRECTIVE.fullmatch(line.text.strip())
            if line is None or found is None or found.group(1).lower() not in _DIRECTIVES:
                self.at = before
                return
            name, value = found.group(1).lower(), found.group(2)
            if name in self.seen:
                raise fault(self.source, line, f"a second directive {name}")
            self.seen.add(name)
            self.directive(line, name, value)

    def directive(self, line: Stretch, name: str, value: str) -> None:
        if name == "escape":
            if value not in ("\\", "`"):
                raise fault(self.source, line, f"escape must be \\ or `, not {value!r}")
            self.escape = value
        elif name == "syntax":
            if not _FRONT_ENDS.fullmatch(value.split(" ", maxsplit=1)[0]):
                raise fault(
                    self.source, line, f"the front end {value!r} can't be run here",
                    hint="obuilder reads what docker/dockerfile reads, with its own parser",
                )  # fmt: skip
        else:
            for option in value.split(";"):
                key, _, setting = option.partition("=")
                if key.strip() not in ("skip", "error"):
                    raise fault(self.source, line, f"check has no option {key.strip()!r}")
                if key.strip() == "error" and setting.strip().lower() == "true":
                    raise fault(
                        self.source, line, "check=error=true needs BuildKit's checks",
                        hint="they are not made here; leave it out",
                    )  # fmt: skip

    def joined(self, first: Stretch) -> Stretch:
        """A logical line: continued lines joined, comments and empty lines between left out."""
        text, places, line = "", [], first.strip()
        while True:
            kept = _continued(line.text, self.escape)
            text += line.text if kept is None else line.text[:kept]
            places += line.places[: -1 if kept is None else kept]
            end = line.places[-1]
            if kept is None:
                break
            following = self.line()
            while following is not None and (
                not following.text.strip() or following.text.lstrip().startswith("#")
            ):
                following = self.line()
            if following is None:
                break
            line = following
        return Stretch(text, [*places, end]).strip()

    def instruction(self, line: Stretch) -> Instruction:
        name, rest = _split(line)
        upper = name.text.upper()
        if upper not in INSTRUCTIONS:
            from difflib import get_close_matches

            close = get_close_matches(upper, INSTRUCTIONS, n=1)
            raise fault(
                self.source, name, f"unknown instruction {name.text[:40]!r}",
                hint=f"did you mean {close[0]}?" if close else None,
            )  # fmt: skip
        flags, rest = self.flags(rest)
        inner = upper
        if upper == "ONBUILD":
            inner = _split(rest)[0].text.upper()
        docs: list[Heredoc] = []
        if inner in ("ADD", "COPY", "RUN") and "<<" in line.text:
            for word in quoted_words(line.text, self.escape):
                doc = heredoc(word, self.escape)
                if doc is not None:
                    docs.append(self.document(line, doc))
        return Instruction(upper, tuple(flags), rest, tuple(docs), line)

    def flags(self, rest: Stretch) -> tuple[list[Stretch], Stretch]:
        """The words that begin with -- before all others; quotes and escapes in them are solved."""
        found: list[Stretch] = []
        at, text = 0, rest.text
        while text.startswith("--", at):
            start, word, places, quote = at, "", [], ""
            while at < len(text) and (quote or not text[at].isspace()):
                sign = text[at]
                if sign == self.escape and at + 1 < len(text):
                    at += 1
                    sign = text[at]
                elif sign == quote:
                    sign, quote = "", ""
                elif not quote and sign in "'\"":
                    sign, quote = "", sign
                if sign:
                    word += sign
                    places.append(rest.places[at])
                at += 1
            if quote:
                raise fault(self.source, rest.part(start, at), f"this {quote} is never closed")
            while at < len(text) and text[at].isspace():
                at += 1
            if word == "--":
                break
            found.append(Stretch(word, [*places, rest.places[at]]))
        return found, rest.part(at, len(text)).strip()

    def document(self, line: Stretch, doc: Heredoc) -> Heredoc:
        """The body of a here-document, read from the lines that follow."""
        lines: list[str] = []
        while True:
            before = self.at
            found = self.line()
            if found is None:
                raise fault(
                    self.source, line, f"the here-document {doc.name!r} is never closed",
                    hint=f"end it with a line that is {doc.name}",
                )  # fmt: skip
            text = found.text.lstrip("\t") if doc.chomp else found.text
            if text == doc.name:
                return msgspec.structs.replace(doc, content="".join(lines))
            raw = self.source.text[before : self.at]
            lines.append(raw.decode("utf-8", "surrogateescape"))


def heredoc(word: str, escape: str) -> Heredoc | None:
    """The here-document that a word announces, without its content; None if it is another word."""
    found = _HEREDOC.fullmatch(word)
    if found is None or not found.group(3).strip():
        return None
    name, quoted = bare(found.group(3), escape)
    if not name or len(quoted_words(found.group(3), escape)) != 1:
        return None
    return Heredoc(name, "", expand=not quoted, chomp=found.group(2) == "-")


def chomped(content: str) -> str:
    """A here-document's content without the tabs that its lines begin with."""
    return re.sub(r"(?m)^\t+", "", content)


def _split(line: Stretch) -> tuple[Stretch, Stretch]:
    """The first word of a line, and the rest."""
    end = 0
    while end < len(line.text) and line.text[end] not in _BLANKS:
        end += 1
    return line.part(0, end), line.part(end, len(line.text)).strip()


def _continued(line: str, escape: str) -> int | None:
    """How much of a line stands before the escape character that continues it; None if none does."""
    text = line.rstrip(" \t")
    if not text.endswith(escape) or text.endswith(escape * 2):
        return None
    return len(text) - 1


def json_words(rest: Stretch) -> tuple[str, ...] | None:
    """The words of a JSON array of strings; None if the text is none. ValueError: other items."""
    if not rest.text.startswith("["):
        return None
    try:
        found = msgspec.json.decode(rest.text.encode("utf-8", "surrogateescape"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ValueError
    return tuple(found)
