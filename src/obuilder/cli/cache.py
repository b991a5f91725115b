"""`obuilder cache`."""

import argparse
import sys

from obuilder.cli.options import add_store, add_verb, settings
from obuilder.cli.results import opened, show, when
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.errors import UsageError
from obuilder.ui.jsonl import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ls|rm")
    listing = add_verb(verbs, "ls", "list cache volumes, with their last use")
    listing.add_argument("--json", action="store_true", help="an array, for programs")
    remove = add_verb(verbs, "rm", "delete cache volumes and all that is in them")
    remove.add_argument("names", nargs="+", metavar="NAME", help="as `obuilder cache ls` lists it")
    for sub in (listing, remove):
        add_store(sub)


def run(args: argparse.Namespace) -> int:
    """List or delete cache volumes."""
    chosen = settings(args)
    if args.action == "ls":
        with opened(chosen) as index:
            volumes = index.volumes()
        if args.json:
            found = [{"name": name, "content": key, "used": used} for _, name, key, used in volumes]
            sys.stdout.buffer.write(as_json(found) + b"\n")
        else:
            show(
                f"{(key or 'shared')[:12]:12}  {when(used)}  {name}"
                for _, name, key, used in volumes
            )
        return 0

    async def delete(builder: Builder) -> list[str]:
        return [name for name in args.names if not await builder.delete_volume(name)]

    missing = in_session(chosen, delete, to_delete=True)
    if missing:
        raise UsageError(
            f"there is no volume {missing[0]!r}", hint="`obuilder cache ls` lists them"
        )
    return 0
