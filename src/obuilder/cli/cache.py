"""`obuilder cache`."""

import argparse
import sys
import time

from obuilder.cli.options import add_sandbox, add_store, settings
from obuilder.cli.results import opened
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("action", choices=("ls", "rm"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="volumes to delete")
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """List or delete cache volumes."""
    chosen = settings(args)
    if args.action == "ls":
        with opened(chosen) as index:
            for _, name, generation, used in index.volumes():
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(used))
                line = f"{when}  {(generation or 'shared')[:12]:12}  {name}\n"
                sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape"))
        return 0
    if not args.names:
        raise UsageError("name the volumes to delete", hint="`obuilder cache ls` lists them")

    async def delete(builder: Builder) -> list[str]:
        return [name for name in args.names if not await builder.delete_volume(name)]

    missing = in_session(chosen, delete)
    if missing:
        raise UsageError(f"there is no volume {missing[0]!r}")
    return 0
