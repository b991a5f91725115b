"""`obuilder fmt`."""

import argparse
import os
import sys

from obuilder.cli.options import read_file
from obuilder.cli.specs import is_dockerfile
from obuilder.errors import UsageError
from obuilder.spec.format import format_text
from obuilder.system.replacing import replacing
from obuilder.ui.messages import complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "files", nargs="*", default=["obuilder.spec"], metavar="FILE", help="- is standard input"
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if one would be changed"
    )
    parser.add_argument("--stdout", action="store_true", help="print in place of rewriting")


def run(args: argparse.Namespace) -> int:
    """Lay out each file; those that are wrong are told, and stay as they are."""
    status = 0
    for path in args.files:
        try:
            old = read_file(path)
            if is_dockerfile(path, old):
                raise UsageError(f"{path} is a Dockerfile, and only specs are laid out")
            new = format_text(old, file=path)
        except UsageError as error:
            complain(error)
            status = error.exit_status
            continue
        if args.stdout or path == "-":
            sys.stdout.buffer.write(new)
        elif new != old and args.check:
            sys.stdout.write(f"{path}: would be laid out anew\n")
            status = status or 1
        elif new != old:
            _replace(path, new)
            sys.stdout.write(f"{path}: laid out anew\n")
    return status


def _replace(path: str, data: bytes) -> None:
    """Give a file other content, at once or not at all. A symlink stays one. UsageError."""
    place = os.path.realpath(path)
    try:
        with replacing(place, mode=os.stat(place).st_mode & 0o777) as file:
            file.write(data)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from error
