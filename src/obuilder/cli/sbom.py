"""`obuilder sbom`."""

import argparse
import sys

from obuilder.cli.options import add_id, add_store, settings
from obuilder.cli.outputs import epoch
from obuilder.cli.session import in_session
from obuilder.engine.outputs import Wishes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_id(parser)
    parser.add_argument(
        "--reproducible", action="store_true",
        help="made at SOURCE_DATE_EPOCH (1970 if not set), and not when the result was",
    )  # fmt: skip

    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    wanted = Wishes(epoch=epoch(), reproducible=args.reproducible)
    from obuilder.engine.builder import Builder
    from obuilder.engine.papers import sbom

    async def tell(builder: Builder) -> bytes:
        key = builder.record(args.id).key

        with builder.held(key):
            return await sbom(builder, key, wanted)

    sys.stdout.buffer.write(in_session(settings(args), tell) + b"\n")
    return 0
