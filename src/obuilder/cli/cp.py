"""`obuilder cp`."""

import argparse
import os

from obuilder.cli.options import add_store, settings
from obuilder.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("source", metavar="ID:PATH", help="a result, and what to copy out of it")
    parser.add_argument(
        "target", metavar="DEST", help="what it is to become, or a directory to put it into"
    )
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Copy."""
    result, colon, path = args.source.partition(":")
    if not colon or not result or not path:
        raise UsageError(f"{args.source!r} names no file of a result", hint="write ID:/PATH")
    from obuilder.cli.session import in_session
    from obuilder.engine.builder import Builder
    from obuilder.engine.takeout import take_out

    async def copy(builder: Builder) -> None:
        await take_out(builder, result, path, os.path.abspath(args.target))

    in_session(settings(args), copy)
    return 0
