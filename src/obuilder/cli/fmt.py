"""`obuilder fmt`."""

import argparse
import os
import sys

from obuilder.cli.options import read_file
from obuilder.spec.format import format_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "files", nargs="*", default=["obuilder.spec"], metavar="FILE", help="- is standard input"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if it would")
    parser.add_argument("--stdout", action="store_true", help="print in place of rewriting")


def run(args: argparse.Namespace) -> int:
    """Lay out each file."""
    status = 0
    for path in args.files:
        old = read_file(path)
        new = format_text(old, file=path)
        if args.stdout or path == "-":
            sys.stdout.buffer.write(new)
        elif new != old:
            if args.check:
                sys.stdout.write(f"{path}: would be laid out anew\n")
                status = 1
                continue
            temporary = f"{path}.new"
            with open(temporary, "wb") as file:
                file.write(new)
            os.chmod(temporary, os.stat(path).st_mode & 0o777)
            os.replace(temporary, path)
            sys.stdout.write(f"{path}: laid out anew\n")
    return status
