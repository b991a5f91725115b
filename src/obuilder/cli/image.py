"""`obuilder image`."""

import argparse
import sys

from obuilder import events
from obuilder.backends.fetchers import FORMS
from obuilder.cli.options import add_images, add_store, settings
from obuilder.cli.results import opened
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.engine.settings import Images
from obuilder.plan.model import Base


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="import|ls|rm")
    add = verbs.add_parser("import", help="give a name to an image that specs can use")
    add.add_argument("name", help="what specs call it")
    add.add_argument("source", help=", ".join(FORMS))
    listing = verbs.add_parser("ls", help="list imported images")
    remove = verbs.add_parser("rm", help="take a name away")
    remove.add_argument("name", help="as `obuilder image ls` lists it")
    for sub in (add, listing, remove):
        add_store(sub)
    add_images(add, spec=False)


def run(args: argparse.Namespace) -> int:
    """Import, list or remove images."""
    chosen = settings(args)
    if args.action == "ls":
        with opened(chosen) as index:
            for name, base in index.images().items():
                line = f"{name}  {base.digest}  {base.platform}  from {base.name}\n"
                sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape"))
        return 0
    if args.action == "rm":

        async def remove(builder: Builder) -> None:
            builder.remove_image(args.name)

        in_session(chosen, remove, to_delete=True)
        return 0

    def tell(event: events.Event) -> None:
        if isinstance(event, events.Output):
            sys.stderr.buffer.write(event.data)

    async def add(builder: Builder) -> Base:
        images = Images(pull="always", platform=chosen.images.platform)
        return await builder.import_image(args.name, args.source, sink=tell, images=images)

    base = in_session(chosen, add)
    sys.stdout.write(f"{args.name}: {base.digest}\n")
    return 0
