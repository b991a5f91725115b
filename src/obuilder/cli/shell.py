"""`obuilder shell`."""

import argparse

from obuilder.cli.options import add_sandbox, add_store, settings
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("id", help="a result or a kept failed step, as `obuilder ls` lists them")
    parser.add_argument("command", nargs="*", help="/bin/sh if not given")
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """Enter; the exit status is the command's. What is changed inside is dropped."""

    async def enter(builder: Builder) -> int:
        return await builder.shell(args.id, tuple(args.command) or ("/bin/sh",))

    return in_session(settings(args), enter)
