"""`obuilder clean`."""

import argparse

from obuilder.cli.options import add_store
from obuilder.cli.prune import pruned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--everything",
        action="store_true",
        help="images and cache volumes too: what is left of the store is yours to remove",
    )
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Delete every result that nothing holds; cache volumes and images stay if not named."""
    return pruned(args, everything=args.everything)
