"""`obuilder store`."""

import argparse
import sys

import msgspec

from obuilder.cli.options import add_verb, settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.engine.index import Record
from obuilder.engine.settings import Settings
from obuilder.errors import UsageError
from obuilder.spec.encode import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="copy")
    copy = add_verb(verbs, "copy", "bring results, cache volumes and images to another store")
    copy.add_argument("source", metavar="FROM", help="KIND:PLACE, or - for what standard input has")
    copy.add_argument("target", metavar="TO", help="KIND:PLACE, or - for standard output")
    copy.add_argument("-q", "--quiet", action="store_true", help="tell no single result")


def run(args: argparse.Namespace) -> int:
    """Copy; what the other store has is left out, so that one that was interrupted goes on."""
    chosen, places = settings(args), [args.source, args.target]
    for place in places:
        if place != "-":
            _at(chosen, place).directory  # noqa: B018 # says what is wrong with the name
    if places[0] == places[1]:
        raise UsageError("both stores are the same", hint="name the one to copy to")

    def tell(record: Record) -> None:
        if not args.quiet:
            line = f"{record.key[:12]}  {one_line(record.heading)}\n"
            sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape"))
            sys.stdout.buffer.flush()

    async def into(target: Builder) -> int:
        if args.source == "-":
            return await target.unpack(sys.stdin.buffer)
        async with Builder.open(_at(chosen, args.source)) as source:
            return await source.copy_to(target, tell=tell)

    async def out(source: Builder) -> int:
        return await source.pack(sys.stdout.buffer)

    if args.target == "-":
        in_session(_at(chosen, args.source), out)
    else:
        count = in_session(_at(chosen, args.target), into)
        sys.stdout.write(f"copied {count}\n")
    return 0


def _at(chosen: Settings, place: str) -> Settings:
    return msgspec.structs.replace(chosen, store=place)
