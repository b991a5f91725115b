"""`obuilder dockerfile`."""

import argparse
import sys

from obuilder.cli.options import add_images, add_store
from obuilder.cli.specs import add_spec, chosen, settings_of_build
from obuilder.spec.to_dockerfile import to_dockerfile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_spec(parser, context=False)
    parser.add_argument(
        "--buildkit", action="store_true", help="use BuildKit's RUN --mount for caches and secrets"
    )
    parser.add_argument(
        "--escape", choices=("unix", "windows"), default="unix",
        help="what escapes a line end: \\ or, for Windows, `",
    )  # fmt: skip
    add_images(parser, spec=True)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print the Dockerfile; what it can't say goes to standard error."""
    spec = chosen(args, settings_of_build(args)).spec
    text, warnings = to_dockerfile(spec, buildkit=args.buildkit, escape=args.escape)
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    for warning in warnings:
        sys.stderr.write(f"warning: {warning.encode('utf-8', 'replace').decode()}\n")
    return 0
