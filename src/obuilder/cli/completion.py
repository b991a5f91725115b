"""`obuilder completion`: scripts for shells, which ask the program itself what could stand there."""

import argparse
import os
import sys
from collections.abc import Iterator
from importlib import import_module

from obuilder.cli.options import parser_for
from obuilder.cli.results import opened
from obuilder.cli.verbs import VERBS
from obuilder.config import FileConfig, load
from obuilder.engine.index import Index
from obuilder.errors import ObuilderError
from obuilder.spec.encode import one_line

_SCRIPTS = {
    # To bash, = and : end a word: words are taken from the line itself, and what stands before the
    # last of these signs is there already.
    "bash": r"""_obuilder() {
    local line=${COMP_LINE:0:COMP_POINT} last
    local -a words
    IFS=$' \t' read -ra words <<< "$line"
    [[ $line == *[[:blank:]] ]] && words+=("")
    last=${words[-1]}
    mapfile -t COMPREPLY < <(obuilder completion words -- "${words[@]:1}" 2>/dev/null | cut -f1)
    COMPREPLY=("${COMPREPLY[@]#"${last%"${last##*[=:]}"}"}")
}
complete -o default -F _obuilder obuilder
""",
    "zsh": r"""#compdef obuilder
_obuilder() {
    local -a lines
    lines=("${(@f)$(obuilder completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -z ${lines[1]} ]]; then
        _files
    else
        compadd -l -d lines -- "${(@)lines%%$'\t'*}"
    fi
}
if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
    _obuilder
else
    compdef _obuilder obuilder
fi
""",
    "fish": r"""function __obuilder_words
    set -l words (commandline -opc) (commandline -ct)
    set -l found (obuilder completion words -- $words[2..-1] 2>/dev/null)
    if test (count $found) -eq 0
        __fish_complete_path (commandline -ct)
    else
        printf '%s\n' $found
    end
end
complete -c obuilder -f -a '(__obuilder_words)'
""",
}
_SHOWN = 50
"""So many results are offered, the newest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "shell", choices=(*_SCRIPTS, "words"),
        help="words: for the scripts, what could stand for the last WORD of a line",
    )  # fmt: skip
    parser.add_argument("words", nargs="*", default=[], metavar="WORD", help="of such a line")


def run(args: argparse.Namespace) -> int:
    """Print the script; or, for it, what a line could go on with, with what that means."""
    if args.shell != "words":
        sys.stdout.write(_SCRIPTS[args.shell])
        return 0
    *before, last = [*_split(args.words[:-1]), *args.words[-1:]] or [""]
    option, sign, value = last.partition("=")
    if option.startswith("--") and sign:
        found = [(f"{option}={word}", text) for word, text in _candidates([*before, option], value)]
    else:
        found = list(_candidates(before, last))
    for word, meaning in found:
        if word.startswith(last):
            sys.stdout.buffer.write(os.fsencode(f"{word}\t{meaning}\n"))
    return 0


def _split(words: list[str]) -> Iterator[str]:
    """The words, with `--option=value` as two."""
    for word in words:
        option, sign, value = word.partition("=")
        yield from (option, value) if option.startswith("--") and sign else (word,)


def _candidates(before: list[str], last: str) -> Iterator[tuple[str, str]]:
    """What could stand behind the words `before`. Nothing: the name of a file."""
    if not before:
        yield from VERBS.items()
        return
    verb = before[0]
    if verb not in VERBS:
        return
    parser: argparse.ArgumentParser = parser_for(verb, import_module(f"obuilder.cli.{verb}"))
    given: list[str] = []
    pending: argparse.Action | None = None
    for word in before[1:]:
        if pending is not None:
            pending = None
        elif word.startswith("-"):
            action = parser._option_string_actions.get(word)  # noqa: SLF001 # argparse tells them no other way
            pending = action if action is not None and action.nargs != 0 else None
        else:
            below = _verbs(parser)
            if word in below:
                parser, given = below[word], []
            else:
                given.append(word)
    if pending is not None:
        yield from _values(pending, before)
    elif last.startswith("-"):
        for action in parser._actions:  # noqa: SLF001 # the same
            yield from ((name, action.help or "") for name in action.option_strings)
    elif below := _verbs(parser):
        yield from ((name, sub.description or "") for name, sub in below.items())
    else:
        places = [action for action in parser._actions if not action.option_strings]  # noqa: SLF001 # the same
        repeated = places and places[-1].nargs in ("*", "+")
        if len(given) < len(places) or repeated:
            yield from _values(places[min(len(given), len(places) - 1)], before)


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:  # noqa: SLF001 # argparse tells them no other way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 # the same
            return dict(action.choices)
    return {}


def _values(action: argparse.Action, before: list[str]) -> Iterator[tuple[str, str]]:
    if action.choices is not None:
        yield from ((str(choice), "") for choice in action.choices)
    elif action.dest == "id" or (action.dest, before[0]) in (
        ("names", "image"),
        ("names", "cache"),
    ):
        try:
            store = next(
                (before[at + 1] for at, word in enumerate(before) if word == "--store"), None
            )
            with opened(load(FileConfig(store=store))) as index:
                yield from _named(index, "results" if action.dest == "id" else before[0])
        except (ObuilderError, IndexError):
            return


def _named(index: Index, what: str) -> Iterator[tuple[str, str]]:
    if what == "image":
        yield from ((name, base.name) for name, base in index.images().items())
    elif what == "cache":
        yield from ((name, "") for _, name, _, _ in index.volumes())
    else:
        records = [record for record in index.records() if record.kind != "volume"]
        for record in records[:_SHOWN]:
            yield record.key[:12], f"{record.kind} {one_line(record.heading)[:60]}"
