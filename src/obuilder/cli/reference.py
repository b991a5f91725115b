"""The command-line page of the reference, made from the parsers: `python -m obuilder.cli.reference`."""

import argparse
import sys
from importlib import import_module

from obuilder.cli.options import explained, parser_for, sentence
from obuilder.cli.verbs import VERBS

_HEAD = """# The command line

Made from the program's own parsers by `python -m obuilder.cli.reference`; a test holds it to them.

Exit statuses: 0 done, 1 a step failed, 2 the request or the spec is wrong, 3 a back end can't work
here, 4 the store or the sandbox failed, 5 a base image could not be had, 6 the cluster did not do its
part, 130 cancelled.

Settings come from `/etc/obuilder/config.toml`, `$XDG_CONFIG_HOME/obuilder/config.toml` (or the one
file that `OBUILDER_CONFIG` names), `OBUILDER_*` variables and options; the later wins.
"""


def markdown() -> str:
    """The page."""
    lines = [_HEAD]
    for verb, summary in VERBS.items():
        parser = parser_for(verb, import_module(f"obuilder.cli.{verb}"))
        lines += [f"## obuilder {verb}", "", sentence(summary), "", *_table(parser)]
        for action in parser._actions:  # noqa: SLF001 # argparse tells them no other way
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 # the same
                helps = {choice.dest: choice.help for choice in action._choices_actions}  # noqa: SLF001 # the same
                for name, sub in action.choices.items():
                    lines += [f"### obuilder {verb} {name}", "", sentence(helps[name] or ""), ""]
                    lines += _table(sub)
    return "\n".join(lines).rstrip("\n") + "\n"


def _table(parser: argparse.ArgumentParser) -> list[str]:
    actions = [
        action
        for action in parser._actions  # noqa: SLF001 # argparse tells them no other way
        if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)  # noqa: SLF001 # the same
    ]
    if not actions:
        return []
    return ["| option | meaning |", "|---|---|", *map(_row, actions), ""]


def _row(action: argparse.Action) -> str:
    value = ""
    if action.nargs != 0:
        value = str(action.metavar or "")
        if not value and action.choices is not None:
            value = ",".join(map(str, action.choices))
        value = value or action.dest.upper()
    if not action.option_strings:
        names = f"`{value}`"
    else:
        names = ", ".join(
            f"`{name} {value}`" if value else f"`{name}`" for name in action.option_strings
        )
    return f"| {names} | {explained(action).replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    sys.stdout.write(markdown())
