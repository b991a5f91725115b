"""`obuilder ls`."""

import argparse
import sys

from obuilder.cli.options import add_store, is_quiet, settings
from obuilder.cli.results import opened, row, show, when
from obuilder.ui.jsonl import as_json

_KINDS = ("run", "copy", "layer", "remote", "failed", "volume")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--json", action="store_true", help="an array of records, for programs")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "-a", "--all", action="store_true", help="the content of cache volumes as well"
    )
    chosen.add_argument(
        "--kind", choices=_KINDS, action="append", help="only these; may be given again"
    )
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """List results, the newest first; quietly, their keys alone."""
    kinds = _KINDS if args.all else args.kind or _KINDS[:-1]
    with opened(settings(args)) as index:
        records = [record for record in index.records() if record.kind in kinds]
    if args.json:
        sys.stdout.buffer.write(as_json(records) + b"\n")
    elif is_quiet(args):
        show(record.key for record in records)
    else:
        show(row(record, when(record.created)) for record in records)
    return 0
