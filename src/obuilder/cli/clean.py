"""`obuilder clean`."""

import argparse

from obuilder.cli.options import add_sandbox, add_store
from obuilder.cli.prune import pruned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """Delete every result that nothing holds; cache volumes and images stay."""
    return pruned(args, before=None, limit=None, dry_run=False)
