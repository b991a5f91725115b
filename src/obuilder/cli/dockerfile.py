"""`obuilder dockerfile`."""

import argparse
import sys

from obuilder.cli.options import add_store
from obuilder.cli.specs import add_spec, chosen
from obuilder.spec.to_dockerfile import to_dockerfile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_spec(parser, context=False)
    parser.add_argument("--buildkit", action="store_true", help="use BuildKit's RUN --mount")
    parser.add_argument("--escape", choices=("unix", "windows"), default="unix")
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print the Dockerfile; what it can't say goes to standard error."""
    text, warnings = to_dockerfile(chosen(args).spec, buildkit=args.buildkit, escape=args.escape)
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    for warning in warnings:
        sys.stderr.write(f"warning: {warning.encode('utf-8', 'replace').decode()}\n")
    return 0
