"""`obuilder prune`."""

import argparse
import time

from obuilder.cli.options import add_store, count, seconds, settings, size
from obuilder.cli.results import row, show
from obuilder.cli.session import in_session
from obuilder.engine.builder import Builder
from obuilder.engine.index import Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--older-than", type=seconds, metavar="TIME",
        help="only what was not used for so long: seconds, or with m, h, d",
    )  # fmt: skip
    parser.add_argument("--limit", type=count, metavar="N", help="at most so many results")
    parser.add_argument(
        "--keep-bytes", type=size, metavar="SIZE",
        help="only until all results together take no more: bytes, or with k, m, g, t",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="delete nothing, say what would go")
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Delete the least recently used results."""
    before = None if args.older_than is None else time.time() - args.older_than
    return pruned(args, before=before, limit=args.limit, keep=args.keep_bytes, dry_run=args.dry_run)


def pruned(
    args: argparse.Namespace,
    *,
    before: float | None = None,
    limit: int | None = None,
    keep: int | None = None,
    dry_run: bool = False,
    everything: bool = False,
) -> int:
    """Prune, and print what went; with `everything`, take the names of images and volumes first."""

    async def prune(builder: Builder) -> list[Record]:
        if everything:
            for name in builder.images():
                builder.remove_image(name)
            for _, name, _, _ in builder.volumes():
                await builder.delete_volume(name)
        return await builder.prune(before=before, limit=limit, keep=keep, dry_run=dry_run)

    gone = in_session(settings(args), prune, to_delete=True)
    show([*map(row, gone), f"{'would delete' if dry_run else 'deleted'} {len(gone)}"])
    return 0
