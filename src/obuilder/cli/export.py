"""`obuilder export`."""

import argparse
import os
import sys

from obuilder.cli.options import add_sandbox, add_store, settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("id", help="a result, as `obuilder ls` lists them")
    parser.add_argument(
        "output", help="directory:DIR (missing or empty), tar:FILE, or - for a tar to the pipe"
    )
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """Write the result out."""
    kind, colon, path = args.output.partition(":")
    if args.output != "-" and (kind not in ("directory", "tar") or not colon or not path):
        raise UsageError(
            f"can't export to {args.output!r}", hint="write directory:DIR, tar:FILE or -"
        )

    async def export(builder: Builder) -> None:
        from obuilder.engine.export import export_directory, export_tar

        if kind == "directory":
            await export_directory(builder, args.id, os.path.abspath(path))
        elif kind == "tar":
            with open(path, "wb") as file:  # nothing else runs in this loop
                await export_tar(builder, args.id, file)
        else:
            await export_tar(builder, args.id, sys.stdout.buffer)

    in_session(settings(args), export)
    return 0
