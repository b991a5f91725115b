"""`obuilder ls`."""

import argparse
import sys
import time

from obuilder.cli.options import add_store, settings
from obuilder.cli.results import opened
from obuilder.spec.encode import one_line
from obuilder.ui.jsonl import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--json", action="store_true", help="an array of records, for programs")
    parser.add_argument(
        "-a", "--all", action="store_true", help="the content of cache volumes as well"
    )
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """List results, the newest first."""
    with opened(settings(args)) as index:
        records = [r for r in index.records() if args.all or r.kind != "volume"]
    if args.json:
        sys.stdout.buffer.write(as_json(records) + b"\n")
        return 0
    for record in records:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        heading = one_line(record.heading)
        line = f"{record.key[:12]}  {made}  {record.kind:6}  {heading}\n"
        sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape"))
    return 0
