"""`obuilder delete`."""

import argparse
import sys

from obuilder.cli.options import add_id, add_store, settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_id(parser)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Delete a result and all that was made from it."""

    async def delete(builder: Builder) -> int:
        return await builder.delete(args.id)

    sys.stdout.write(f"deleted {in_session(settings(args), delete, to_delete=True)}\n")
    return 0
