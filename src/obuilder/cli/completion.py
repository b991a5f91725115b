"""`obuilder completion`."""

import argparse
import sys
from importlib import import_module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def whole_parser() -> argparse.ArgumentParser:
    """All verbs in one parser: for completion, and for the reference in the docs."""
    from obuilder.cli.verbs import VERBS

    parser = argparse.ArgumentParser(prog="obuilder")
    verbs = parser.add_subparsers(dest="verb")
    for name, summary in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary)
        import_module(f"obuilder.cli.{name}").add_arguments(sub)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    sys.stdout.write(shtab.complete(whole_parser(), args.shell) + "\n")
    return 0
