"""What the verbs for administrators share: the connection, and answers as text or as JSON."""

import argparse
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, TypeVar

from obuilder.cli.options import credentials_of
from obuilder.cli.results import show
from obuilder.cli.session import in_loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.cluster.admin import Admin

T = TypeVar("T")


class Told(NamedTuple):
    """The answer of a verb: a record for programs, lines for people, the exit status."""

    record: object
    lines: Iterable[str] = ()
    status: int = 0


def as_admin(args: argparse.Namespace, work: "Callable[[Admin], Awaitable[T]]") -> T:
    """What `work` returns, given an administrator's connection."""
    from obuilder.cluster.admin import Admin

    async def connected() -> T:
        async with Admin.open(credentials_of(args, "admin")) as admin:
            return await work(admin)

    return in_loop(connected)


def teller(args: argparse.Namespace) -> Callable[[str], None]:
    """What says how it goes meanwhile: on standard error, where standard output is for a program."""
    out = sys.stderr if args.json else sys.stdout

    def tell(text: str) -> None:
        out.write(f"{text}\n")
        out.flush()

    return tell


def answer(args: argparse.Namespace, told: Told) -> int:
    """Print an answer as it was asked for. The exit status."""
    if args.json:
        from obuilder.ui.jsonl import as_json

        sys.stdout.buffer.write(as_json(told.record) + b"\n")
    else:
        show(told.lines)
    return told.status
