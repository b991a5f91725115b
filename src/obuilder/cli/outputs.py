"""Where results go, as `build` and `export` are told it."""

import argparse
import os
import sys

from obuilder import events
from obuilder.cli.options import human
from obuilder.engine.outputs import (
    COMPRESSIONS,
    Wishes,
    parse_annotation,
    parse_epoch,
    whole_name,
)


def add_wishes(parser: argparse.ArgumentParser) -> None:
    """How images are made of results."""
    group = parser.add_argument_group("images")
    group.add_argument(
        "-t", "--tag", action="append", default=[], metavar="NAME",
        help="a name for the image, besides what the output has; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--squash",
        action="store_true",
        help="one layer for all steps; the base image keeps its own",
    )
    group.add_argument(
        "--compression", choices=COMPRESSIONS, default="gzip", help="of layers that are made"
    )
    group.add_argument(
        "--reproducible", action="store_true",
        help="no file is later than SOURCE_DATE_EPOCH (1970 if not set), nor is the image",
    )  # fmt: skip
    group.add_argument(
        "--annotation", action="append", default=[], metavar="KEY=VALUE",
        help="of the image's manifest, and of the index of several; repeatable",
    )  # fmt: skip


def wishes(args: argparse.Namespace) -> Wishes:
    """What the options say. UsageError."""
    return Wishes(
        names=tuple(whole_name(name) for name in args.tag),
        squash=args.squash,
        compression=args.compression,
        epoch=parse_epoch(os.environ.get("SOURCE_DATE_EPOCH")),
        reproducible=args.reproducible,
        annotations=tuple(parse_annotation(text) for text in args.annotation),
    )


class Teller:
    """Says on standard error what is taken out; how far it got, where that is a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._live = quiet, sys.stderr.isatty() and not quiet
        self._line = ""

    def tell(self, event: events.Event) -> None:
        """Take an event."""
        if isinstance(event, events.Note):
            if self._quiet and not event.warning:
                return
            self._clear()
            kind = "warning: " if event.warning else ""
            sys.stderr.buffer.write(os.fsencode(f"{kind}{event.text}\n"))
        elif isinstance(event, events.Progress) and self._live:
            self._clear()
            if event.done < event.total:
                self._line = f"{human(event.done)} of {human(event.total)}"
                sys.stderr.write(self._line)
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._line:
            sys.stderr.write("\r" + " " * len(self._line) + "\r")
            self._line = ""
