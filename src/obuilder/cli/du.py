"""`obuilder du`."""

import argparse
import sys

from obuilder.cli.options import add_sandbox, add_store, settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """Print bytes of each result, the largest first, and the file system's free space."""

    async def measure(builder: Builder) -> list[str]:
        sizes = [(await builder.size(record.key), record) for record in builder.records()]
        sizes.sort(key=lambda pair: -pair[0])
        lines = [
            f"{size:>14}  {record.key[:12]}  {record.heading.partition(chr(10))[0]}"
            for size, record in sizes
        ]
        usage = await builder.usage()
        total = sum(size for size, _ in sizes)
        lines.append(f"{total:>14}  in {len(sizes)} results; {usage.free} of {usage.total} free")
        return lines

    for line in in_session(settings(args), measure):
        sys.stdout.buffer.write(f"{line}\n".encode("utf-8", "surrogateescape"))
    return 0
