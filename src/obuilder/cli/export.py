"""`obuilder export`."""

import argparse

from obuilder.cli.options import add_id, add_store, settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.engine.export import FORMS, check_output, export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_id(parser)
    parser.add_argument("output", metavar="OUTPUT", help=FORMS)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Write the result out."""
    check_output(args.output)

    async def write(builder: Builder) -> None:
        await export(builder, args.id, args.output)

    in_session(settings(args), write)
    return 0
