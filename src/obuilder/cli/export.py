"""`obuilder export`."""

import argparse
import os
import sys

from obuilder import events
from obuilder.cli.options import add_store, human, is_quiet, settings
from obuilder.cli.outputs import add_wishes, wishes
from obuilder.cli.session import in_session
from obuilder.engine.outputs import FORMS, check, parse_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "id",
        help="a result, as `obuilder ls` lists them; several with commas, of one platform each",
    )
    parser.add_argument("output", help=FORMS)
    add_wishes(parser)
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Write the result out."""
    output, wanted, results = parse_output(args.output), wishes(args), args.id.split(",")
    check([output], wanted, platforms=len(results))
    from obuilder.engine.builder import Builder
    from obuilder.engine.export import export

    tell = (lambda _: None) if is_quiet(args) else Teller().tell

    async def write(builder: Builder) -> None:
        await export(builder, results, output, wanted, sink=tell)

    in_session(settings(args), write)
    return 0


class Teller:
    """Says on standard error what is done; how far it got, where that is a terminal."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._line = ""

    def tell(self, event: events.Event) -> None:
        """Take an event."""
        if isinstance(event, events.Note):
            self._clear()
            sys.stderr.buffer.write(os.fsencode(event.text) + b"\n")
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
