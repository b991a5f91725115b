"""`obuilder config`: which settings are in force, and where each comes from."""

import argparse
import os
import sys

from obuilder.cli.options import add_limits, add_sandbox, add_store, settings
from obuilder.config import FileConfig, merged
from obuilder.engine.settings import Settings
from obuilder.ui.jsonl import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--json", action="store_true", help="value and source of each setting, for programs"
    )
    add_store(parser)
    add_sandbox(parser)
    add_limits(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line for each setting."""
    settings(args)  # says what is wrong
    names = FileConfig.__struct_fields__
    given = FileConfig(**{name: getattr(args, name) for name in names if hasattr(args, name)})
    found = merged(given)
    for name in names:
        found.setdefault(name, (_default(name), "default"))
    if args.json:
        rows = {
            name: {"value": value, "source": source}
            for name, (value, source) in sorted(found.items())
        }
        sys.stdout.buffer.write(as_json(rows) + b"\n")
        return 0
    for name, (value, source) in sorted(found.items()):
        line = f"{name.replace('_', '-'):18} {_text(value):32} {source}\n"
        sys.stdout.buffer.write(os.fsencode(line))
    return 0


def _default(name: str) -> object:
    settings = Settings()
    if name == "timeout":
        return settings.limits.seconds
    if name == "locked":
        return False
    places = (settings.limits, settings.images, settings)
    return next((getattr(place, name) for place in places if hasattr(place, name)), None)


def _text(value: object) -> str:
    if value is None or value == {}:
        return "-"
    if isinstance(value, dict):
        return ", ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
