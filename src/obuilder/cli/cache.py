"""`obuilder cache`."""

import argparse
import sys
import time

from obuilder.cli.options import add_store, settings
from obuilder.cli.results import opened
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ls|rm")
    listing = verbs.add_parser("ls", help="list cache volumes, with their last use")
    remove = verbs.add_parser("rm", help="delete cache volumes and all that is in them")
    remove.add_argument("names", nargs="+", metavar="NAME", help="as `obuilder cache ls` lists it")
    for sub in (listing, remove):
        add_store(sub)


def run(args: argparse.Namespace) -> int:
    """List or delete cache volumes."""
    chosen = settings(args)
    if args.action == "ls":
        with opened(chosen) as index:
            for _, name, generation, used in index.volumes():
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(used))
                line = f"{(generation or 'shared')[:12]:12}  {when}  {name}\n"
                sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape"))
        return 0

    async def delete(builder: Builder) -> list[str]:
        return [name for name in args.names if not await builder.delete_volume(name)]

    missing = in_session(chosen, delete, to_delete=True)
    if missing:
        raise UsageError(
            f"there is no volume {missing[0]!r}", hint="`obuilder cache ls` lists them"
        )
    return 0
