"""`obuilder shell`."""

import argparse

from obuilder.cli.options import add_id, add_limits, add_sandbox, add_store, settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_id(parser)
    parser.add_argument(
        "command", nargs="*", default=[], metavar="COMMAND",
        help="what to run there; /bin/sh if not given",
    )  # fmt: skip
    add_store(parser)
    add_sandbox(parser)
    add_limits(parser)


def run(args: argparse.Namespace) -> int:
    """Enter; the exit status is the command's. What is changed inside is dropped."""

    async def enter(builder: Builder) -> int:
        return await builder.shell(args.id, tuple(args.command) or ("/bin/sh",))

    return in_session(settings(args), enter)
