"""`obuilder image`."""

import argparse
import sys

from obuilder import events
from obuilder.backends.fetchers import FORMS
from obuilder.cli.options import add_images, add_store, add_verb, settings
from obuilder.cli.results import opened, show
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.engine.settings import Images
from obuilder.plan.model import Base
from obuilder.ui.jsonl import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="import|ls|rm")
    add = add_verb(verbs, "import", "give a name to an image that specs can use")
    add.add_argument("name", metavar="NAME", help="what specs call it")
    add.add_argument("source", metavar="SOURCE", help=", ".join(FORMS))
    listing = add_verb(verbs, "ls", "list imported images")
    listing.add_argument("--json", action="store_true", help="images by name, for programs")
    remove = add_verb(verbs, "rm", "take names away; layers that nobody needs are pruned then")
    remove.add_argument("names", nargs="+", metavar="NAME", help="as `obuilder image ls` lists it")
    for sub in (add, listing, remove):
        add_store(sub)
    add_images(add, spec=False)


def run(args: argparse.Namespace) -> int:
    """Import, list or remove images."""
    chosen = settings(args)
    if args.action == "ls":
        with opened(chosen) as index:
            images = index.images()
        if args.json:
            sys.stdout.buffer.write(as_json(images) + b"\n")
        else:
            show(
                f"{name}  {base.digest}  {base.platform}  from {base.name}"
                for name, base in images.items()
            )
        return 0
    if args.action == "rm":

        async def remove(builder: Builder) -> None:
            for name in args.names:
                builder.remove_image(name)

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
