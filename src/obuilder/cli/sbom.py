"""`obuilder sbom`."""

import argparse

from obuilder.cli.options import add_id, add_store
from obuilder.cli.outputs import epoch
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
        help="made at SOURCE_DATE_EPOCH (1970 if not set), and not when the result was",
    )  # fmt: skip
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    wanted = Wishes(epoch=epoch(), reproducible=args.reproducible)
    from obuilder.cli.papers import show
    from obuilder.engine.papers import sbom

    async def tell(builder: "Builder", key: "Key") -> bytes:
        return await sbom(builder, key, wanted)

    return show(args, tell)
