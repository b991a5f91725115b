"""`obuilder spec`: a Dockerfile as a spec."""

import argparse
import sys

from obuilder.cli.options import add_images, add_store
from obuilder.cli.specs import add_spec, chosen, settings_of_build
from obuilder.spec.encode import print_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("dockerfile", nargs="?", help="the Dockerfile, in place of -f")
    add_spec(parser, context=False)
    parser.add_argument(
        "--build-context", action="append", default=[], metavar="NAME=DIR", help="as for a build"
    )
    parser.add_argument("--target", metavar="NAME", help="that stage, and what it needs")
    add_images(parser, spec=True)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Print the spec, as `obuilder build` would build it."""
    args.file = args.file or args.dockerfile
    spec = chosen(args, settings_of_build(args)).spec
    sys.stdout.buffer.write(print_spec(spec).encode("utf-8", "surrogateescape"))
    return 0
