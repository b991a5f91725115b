"""`obuilder lock`: what the names of base images stand for, written down beside the spec."""

import argparse
import os
import sys

import msgspec

from obuilder.cli.options import add_images, add_store, settings
from obuilder.cli.plan import place
from obuilder.cli.specs import add_spec, chosen, spec_path
from obuilder.engine.cached import resolve
from obuilder.engine.lockfile import lock_path, write_lock
from obuilder.errors import UsageError
from obuilder.spec.stages import bases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("spec", nargs="?", help="the spec, in place of -f")
    add_spec(parser, context=False)
    add_images(parser, spec=False)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Ask registries anew, and write the lock file."""
    args.context = "."
    place(args)
    path = spec_path(args)
    if path == "-":
        raise UsageError("a spec from standard input has nothing beside it", hint="name its file")
    given = settings(args)
    images = msgspec.structs.replace(given.images, pull="always", lock=None)
    setup = msgspec.structs.replace(given, images=images)
    names = bases(chosen(args, setup).spec)
    found = resolve(dict.fromkeys(names, ""), setup, images)
    write_lock(lock_path(path), {name: base.digest for name, base in found.items()})
    for name, base in sorted(found.items()):
        sys.stdout.buffer.write(os.fsencode(f"{name}  {base.digest}\n"))
    return 0
