"""`obuilder check`."""

import argparse
import sys

from obuilder.cli.options import read_file
from obuilder.errors import UsageError
from obuilder.spec.decode import parse
from obuilder.ui.messages import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "files", nargs="*", default=["obuilder.spec"], metavar="FILE", help="- is standard input"
    )


def run(args: argparse.Namespace) -> int:
    """Report all faults of all files."""
    status = 0
    for path in args.files:
        try:
            parse(read_file(path), file=path)
        except UsageError as error:
            complain(error)
            status = error.exit_status
        else:
            sys.stdout.write(f"{path}: ok\n")
    return status
