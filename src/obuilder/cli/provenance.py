"""`obuilder provenance`: the predicate alone, for who signs statements of their own."""

import argparse

from obuilder.cli.options import add_id, add_store
from obuilder.cli.outputs import add_builder_id, builder_id
from obuilder.engine.outputs import Wishes

TYPE_CHECKING = False
if TYPE_CHECKING:  # the help needs no engine
    from obuilder.engine.builder import Builder
    from obuilder.values import Key


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
    from obuilder.cli.papers import show
    from obuilder.engine.papers import provenance

    async def tell(builder: "Builder", key: "Key") -> bytes:
        return provenance(builder, key, builder.layers(lambda _: None).final(key), wanted)

    return show(args, tell)
