"""`obuilder log`."""

import argparse
import sys

from obuilder.cli.options import add_id, add_store, settings
from obuilder.cli.results import find, opened
from obuilder.engine.logs import read_log
from obuilder.errors import UsageError
from obuilder.ui.terminal import neutral


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_id(parser)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print the log as it was stored; a terminal is kept from its control bytes."""
    chosen = settings(args)
    with opened(chosen) as index:
        key = find(index, args.id).key
    log = read_log(chosen.directory, key)
    if log is None:
        raise UsageError(f"{key} has no log")
    sys.stdout.buffer.write(neutral(log) if sys.stdout.isatty() else log)
    return 0
