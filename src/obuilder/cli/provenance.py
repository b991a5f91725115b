"""`obuilder provenance`: the predicate alone, for who signs statements of their own."""

import argparse
import sys

from obuilder.cli.options import add_id, add_store, settings
from obuilder.cli.outputs import add_builder_id, builder_id
from obuilder.cli.session import in_session
from obuilder.engine.outputs import Wishes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_id(parser)
    parser.add_argument(
        "--reproducible", action="store_true",
        help="without what another build of the same would tell differently: times, logs",
    )  # fmt: skip
    add_builder_id(parser)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    wanted = Wishes(builder_id=builder_id(args), reproducible=args.reproducible)
    from obuilder.engine.builder import Builder
    from obuilder.engine.papers import provenance

    async def tell(builder: Builder) -> bytes:
        key = builder.record(args.id).key
        final = builder.layers(lambda _: None).final(key)
        with builder.held(key):
            return provenance(builder, key, final, wanted)

    sys.stdout.buffer.write(in_session(settings(args), tell) + b"\n")
    return 0
