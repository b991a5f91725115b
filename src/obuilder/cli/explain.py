"""`obuilder explain`: which input made a key differ from the last build of the same spec."""

import argparse
import sys

from obuilder.cli.options import (
    add_images,
    add_sandbox_kind,
    add_spec,
    add_store,
    document,
    settings_of_build,
    spec_name,
)
from obuilder.cli.plan import place
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
    chosen = settings_of_build(args)
    spec = document(args).spec
    plan, _ = look(spec, args.context, chosen)
    old = last_build(chosen, args.context, spec_name(args))
    if old is None:
        raise UsageError(
            "this spec was not built from this directory before", hint="`obuilder build` first"
        )
    lines = explain(old, plan)
    for line in lines or ["nothing differs from the last build"]:
        sys.stdout.buffer.write(f"{line}\n".encode("utf-8", "surrogateescape"))
    return 0
