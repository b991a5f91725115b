"""`obuilder clean`."""

import argparse

from obuilder.cli.options import add_sandbox, add_store
from obuilder.cli.prune import pruned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--everything",
        action="store_true",
        help="images and cache volumes too: what is left of the store is yours to remove",
    )
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """Delete every result that nothing holds; cache volumes and images stay if not named."""
    return pruned(args, before=None, limit=None, dry_run=False, everything=args.everything)
