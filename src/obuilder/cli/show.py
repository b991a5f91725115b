"""`obuilder show`."""

import argparse
import os
import sys

from obuilder.cli.options import add_id, add_store, human, settings
from obuilder.cli.results import find, opened, when
from obuilder.engine.index import Record
from obuilder.engine.logs import log_size
from obuilder.ui.jsonl import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_id(parser)
    parser.add_argument("--json", action="store_true", help="the record, for programs")
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is known of a result."""
    chosen = settings(args)
    with opened(chosen) as index:
        record = find(index, args.id)
    if args.json:
        sys.stdout.buffer.write(as_json(record, indent=2) + b"\n")
        return 0
    lines = _lines(record, log_size(chosen.directory, record.key))
    sys.stdout.buffer.write(os.fsencode("".join(f"{name:8} {text}\n" for name, text in lines)))
    return 0


def _lines(record: Record, log: int | None) -> list[tuple[str, str]]:
    first, *rest = record.heading.split("\n")
    return [
        ("key", record.key),
        ("kind", record.kind + (", pinned" if record.pinned else "")),
        ("step", first),
        *(("", line) for line in rest),
        ("stage", record.stage or "the last"),
        ("made on", record.base or "nothing"),
        ("made at", f"{when(record.created)}, in {record.seconds:.2f} s"),
        ("used at", when(record.used)),
        ("log", "none" if log is None else human(log)),
    ]
