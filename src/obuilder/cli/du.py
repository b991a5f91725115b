"""`obuilder du`."""

import argparse
import sys

from obuilder.backends.protocols import Usage
from obuilder.cli.options import add_store, human, settings
from obuilder.cli.results import row, show
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.engine.index import Record
from obuilder.ui.jsonl import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--json", action="store_true", help="sizes by key, and the space, in bytes")
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print what each result adds to the store, the largest first, and the free space."""

    async def measure(builder: Builder) -> tuple[list[tuple[int, Record]], Usage]:
        sizes = [(await builder.size(record.key), record) for record in builder.records()]
        return sorted(sizes, key=lambda pair: -pair[0]), await builder.usage()

    sizes, usage = in_session(settings(args), measure)
    total = sum(size for size, _ in sizes)
    if args.json:
        found = {"results": {r.key: size for size, r in sizes}, "total": total, "disk": usage}
        sys.stdout.buffer.write(as_json(found) + b"\n")
        return 0
    lines = [f"{human(size):>10}  {row(record)}" for size, record in sizes]
    free, whole = human(usage.free), human(usage.total)
    show([*lines, f"{human(total):>10}  in {len(sizes)} results; {free} of {whole} free"])
    return 0
