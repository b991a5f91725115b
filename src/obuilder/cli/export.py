"""`obuilder export`."""

import argparse

from obuilder.cli.options import add_store, is_quiet, settings
from obuilder.cli.outputs import Teller, add_wishes, wishes
from obuilder.cli.session import in_session
from obuilder.engine.outputs import FORMS, check, parse_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "id",
        metavar="ID",
        help="a result, as `obuilder ls` lists them; several with commas, of one platform each",
    )
    parser.add_argument("output", metavar="OUTPUT", help=FORMS)
    add_wishes(parser)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Write the result out."""
    output, wanted, results = parse_output(args.output), wishes(args), args.id.split(",")
    check([output], wanted, platforms=len(results))
    from obuilder.engine.builder import Builder
    from obuilder.engine.export import export

    teller = Teller(quiet=is_quiet(args))

    async def write(builder: Builder) -> None:
        await export(builder, results, output, wanted, sink=teller.tell)

    in_session(settings(args), write)
    return 0
