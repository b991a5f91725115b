"""`obuilder show`."""

import argparse
import sys

import msgspec

from obuilder.cli.options import add_store, settings
from obuilder.cli.results import find, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("id", help="a key, or as much of it as tells it from the others")
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print the record as JSON."""
    with opened(settings(args)) as index:
        record = find(index, args.id)
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return 0
