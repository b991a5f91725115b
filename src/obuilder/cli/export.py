"""`obuilder export`."""

import argparse

from obuilder.cli.options import add_store, settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.engine.export import FORMS, check_output, export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("id", help="a result, as `obuilder ls` lists them")
    parser.add_argument("output", help=FORMS)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Write the result out."""
    check_output(args.output)

    async def write(builder: Builder) -> None:
        await export(builder, args.id, args.output)

    in_session(settings(args), write)
    return 0
