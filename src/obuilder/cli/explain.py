"""`obuilder explain`: which input made a key differ from the last build of the same spec."""

import argparse
import sys

from obuilder.cli.options import add_images, add_sandbox_kind, add_store
from obuilder.cli.plan import place
from obuilder.cli.specs import add_spec, chosen, settings_of_build
from obuilder.engine.cached import last_build, look
from obuilder.errors import UsageError
from obuilder.plan.explain import explain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("spec", nargs="?", help="the spec, in place of -f")
    add_spec(parser, context=True)
    add_images(parser, spec=True)
    add_store(parser)
    add_sandbox_kind(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line for each cause."""
    place(args)
    setup = settings_of_build(args)
    wanted = chosen(args, setup)
    plan, _ = look(wanted.spec, wanted.contexts, setup)
    old = last_build(setup, wanted.contexts.directory, wanted.name)
    if old is None:
        raise UsageError(
            "this spec was not built from this directory before", hint="`obuilder build` first"
        )
    lines = explain(old, plan)
    for line in lines or ["nothing differs from the last build"]:
        sys.stdout.buffer.write(f"{line}\n".encode("utf-8", "surrogateescape"))
    return 0
