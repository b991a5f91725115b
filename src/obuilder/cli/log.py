"""`obuilder log`."""

import argparse
import sys

from obuilder.cli.options import add_store, settings
from obuilder.cli.results import find, opened
from obuilder.engine.index import Index, Record
from obuilder.engine.logs import read_log
from obuilder.engine.settings import Settings
from obuilder.errors import UsageError
from obuilder.ui.terminal import neutral


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "id", metavar="ID", nargs="?",
        help="a key, or as much of it as tells it from the others; the newest if not given",
    )  # fmt: skip
    parser.add_argument(
        "-a", "--all", action="store_true", help="of all steps up to it, each with its heading"
    )
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print the log as it was stored; a terminal is kept from its control bytes."""
    chosen = settings(args)
    with opened(chosen) as index:
        last = _newest(index) if args.id is None else find(index, args.id)
        records = _line_of(index, last) if args.all else [last]
        for record in records:
            if record.kind == "remote" and read_log(chosen.directory, record.key) is None:
                _fetch(chosen, index, record)
    for record in records:
        log = read_log(chosen.directory, record.key)
        if args.all:
            _put(f"{record.heading}\n".encode("utf-8", "surrogateescape"))
            _put(log if log is None or log.endswith(b"\n") or not log else log + b"\n")
        elif log is None:
            raise UsageError(f"{record.key} has no log")
        else:
            _put(log)
    return 0


def _fetch(chosen: Settings, index: Index, record: Record) -> None:
    from obuilder.cli.session import in_loop
    from obuilder.engine.remote_cache import fetch_log

    in_loop(lambda: fetch_log(chosen, index, record.key))


def _put(data: bytes | None) -> None:
    if data:
        sys.stdout.buffer.write(neutral(data) if sys.stdout.isatty() else data)


def _newest(index: Index) -> Record:
    for record in index.records():
        if record.kind in ("run", "remote", "failed"):
            return record
    raise UsageError("no command has been run yet", hint="`obuilder build` runs some")


def _line_of(index: Index, record: Record | None) -> list[Record]:
    """A result and what it was made from, the first first."""
    found: list[Record] = []
    while record is not None:
        found.insert(0, record)
        above = index.record(record.base) if record.base else []
        record = above[0] if above else None
    return found
