"""`obuilder clean`."""

import argparse

from obuilder.cli.options import add_sandbox, add_store, settings
from obuilder.cli.prune import pruned
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--everything",
        action="store_true",
        help="images and cache volumes too: what is left of the store is yours to remove",
    )
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """Delete every result that nothing holds; cache volumes and images stay if not named."""

    async def release(builder: Builder) -> None:
        for name in builder.images():
            builder.remove_image(name)
        for _, name, _, _ in builder.volumes():
            await builder.delete_volume(name)

    if args.everything:
        in_session(settings(args), release)
    return pruned(args, before=None, limit=None, dry_run=False)
