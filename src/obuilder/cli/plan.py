"""`obuilder plan`: what a build would do. Nothing is run and nothing is made."""

import argparse
import os
import sys
from typing import Literal

import msgspec

from obuilder.cli.options import add_images, add_sandbox_kind, add_store
from obuilder.cli.specs import Chosen, add_spec, chosen, settings_of_build
from obuilder.engine.cached import look
from obuilder.engine.settings import Settings
from obuilder.plan.render import mermaid, text
from obuilder.ui.jsonl import as_json

Form = Literal["text", "json", "mermaid"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("spec", nargs="?", metavar="SPEC", help="in place of -f")
    add_spec(parser, context=True)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="every step with all that is in its key")
    form.add_argument("--mermaid", action="store_true", help="a graph in Mermaid's syntax")
    add_images(parser, spec=True)
    add_store(parser)
    add_sandbox_kind(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    place(args)
    setup = settings_of_build(args)
    form: Form = "json" if args.json else "mermaid" if args.mermaid else "text"
    return show(chosen(args, setup), setup, form=form)


def show(wanted: Chosen, setup: Settings, *, form: Form = "text") -> int:
    """Print what a build would do."""
    plan, found = look(wanted.spec, wanted.contexts, setup)
    if form == "json":
        steps = [
            {"cached": step.key in found, **msgspec.to_builtins(step)}
            for step in plan.steps.values()
        ]
        config = msgspec.to_builtins(plan.contexts[plan.result].config)
        found_all = {"version": 1, "result": plan.result, "config": config, "steps": steps}
        sys.stdout.buffer.write(as_json(found_all, indent=2) + b"\n")
        return 0
    lines = mermaid(plan, found) if form == "mermaid" else text(plan, found)
    sys.stdout.buffer.write("".join(f"{x}\n" for x in lines).encode("utf-8", "surrogateescape"))
    return 0


def place(args: argparse.Namespace) -> None:
    """Take `plan FILE DIR` as well as `plan -f FILE DIR` and `plan DIR`."""
    if args.spec is None:
        return
    if args.file is None and os.path.isfile(args.spec):
        args.file = args.spec
    else:
        args.context = args.spec
