"""`obuilder explain`: which input made a key differ from the last build of the same spec."""

import argparse
import os
import sys

from obuilder.cli.options import add_images, add_sandbox_kind, add_store
from obuilder.cli.plan import place
from obuilder.cli.specs import add_spec, chosen, settings_of_build
from obuilder.engine.cached import explanation
from obuilder.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("spec", nargs="?", metavar="SPEC", help="in place of -f")
    add_spec(parser, context=True)
    add_images(parser, spec=True)
    add_store(parser)
    add_sandbox_kind(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line for each cause; where there is none, those of the last build."""
    place(args)
    setup = settings_of_build(args)
    wanted = chosen(args, setup)
    why = explanation(wanted.spec, wanted.contexts, setup, name=wanted.name)
    if why.changes is None:
        raise UsageError(
            "this spec was not built from this directory before", hint="`obuilder build` first"
        )
    lines = why.changes + [
        f"{title}: as before, but it has no result: it failed, or was deleted" for title in why.lost
    ]
    if not lines:
        lines = ["nothing differs from the last build"]
        if why.last_changes:
            lines.append("the last build differed from the one before:")
            lines += [f"  {line}" for line in why.last_changes]
    sys.stdout.buffer.write(os.fsencode("".join(f"{line}\n" for line in lines)))
    return 0
