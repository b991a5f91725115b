"""`obuilder build`: the main job. A fully cached build never starts an event loop."""

import argparse
import os
import sys

from obuilder import events
from obuilder.cli.options import add_sandbox, add_spec, add_store, document, secrets, settings
from obuilder.engine.cached import replay
from obuilder.engine.result import Result
from obuilder.engine.settings import Settings
from obuilder.spec.model import Spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_spec(parser, context=True)
    parser.add_argument(
        "--secret", action="append", default=[], metavar="ID:FILE", help="or ID=env:VAR; repeatable"
    )
    parser.add_argument(
        "--progress", choices=("auto", "plain", "live", "json", "quiet"), default="auto"
    )
    add_store(parser)
    add_sandbox(parser)


def run(args: argparse.Namespace) -> int:
    """Build."""
    spec, chosen = document(args).spec, settings(args)
    values = secrets(args.secret)
    with screen(args) as sink:
        result = replay(spec, args.context, chosen, sink)
        if result is None and _wants_live(args.progress):
            # Only here: a fully cached build has no use for a live screen, and never loads it.
            from obuilder.ui.live import LiveScreen
            from obuilder.ui.messages import colour_wanted

            with LiveScreen(sys.stdout, colour=colour_wanted(args.color, sys.stdout)) as live:
                result = _build(spec, args.context, chosen, values, live)
        elif result is None:
            result = _build(spec, args.context, chosen, values, sink)
    if args.progress in ("auto", "plain", "live"):
        sys.stdout.write(f'Got: "{result.key}"\n')
    elif args.progress == "quiet":
        sys.stdout.write(f"{result.key}\n")
    return 0


def _wants_live(progress: str) -> bool:
    if progress == "auto":
        return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return progress == "live"


def screen(args: argparse.Namespace) -> "Screen":
    """The sink that the options ask for."""
    return Screen(args.progress, args.color)


class Screen:
    """A sink and its end."""

    def __init__(self, progress: str, color: str) -> None:
        self._progress, self._color = progress, color

    def __enter__(self) -> events.Sink:
        """Start showing."""
        if self._progress == "json":
            from obuilder.ui.jsonl import JsonSink

            return JsonSink(sys.stdout.buffer)
        if self._progress == "quiet":
            return lambda _: None
        from obuilder.ui.messages import colour_wanted
        from obuilder.ui.plain import plain

        return plain(colour_wanted(self._color, sys.stdout))

    def __exit__(self, *_: object) -> None:
        """Stop showing."""
        sys.stdout.flush()


def _build(
    spec: Spec, context: str, chosen: Settings, values: dict[str, bytes], sink: events.Sink
) -> Result:
    from obuilder.cli.session import in_session
    from obuilder.engine.builder import Builder

    async def build(builder: Builder) -> Result:
        return await builder.build(spec, context, secrets=values, sink=sink)

    return in_session(chosen, build)
