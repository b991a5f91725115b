"""What the verbs that only look share: the index without an event loop, results by prefix, lists."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from obuilder.engine.index import Index, Record
from obuilder.engine.settings import Settings
from obuilder.errors import UsageError
from obuilder.spec.encode import one_line
from obuilder.ui.terminal import cut, visible, width


@contextmanager
def opened(settings: Settings) -> Iterator[Index]:
    """The store's index. UsageError if nothing was ever built there."""
    try:
        index = Index(settings.directory, create=False)
    except FileNotFoundError:
        raise UsageError(
            f"there is no store in {settings.directory} yet", hint="`obuilder build` makes it"
        ) from None
    try:
        yield index
    finally:
        index.close()


def find(index: Index, prefix: str) -> Record:
    """The one result whose key starts with `prefix`. UsageError."""
    found = index.record(prefix) if prefix else []
    if not found:
        raise UsageError(f"there is no result {prefix!r}", hint="`obuilder ls` lists results")
    if len(found) > 1:
        raise UsageError(f"more than one result starts with {prefix!r}", hint="give more of it")
    return found[0]


def row(record: Record, *before: str) -> str:
    """A result in a list: its key, what it is, and the step that made it."""
    stage = f"[{record.stage}] " if record.stage else ""
    return "  ".join(
        [record.key[:12], *before, f"{record.kind:6}", stage + one_line(record.heading)]
    )


def when(seconds: float) -> str:
    """A time as lists have it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def show(lines: Iterable[str]) -> None:
    """Print lines; on a terminal each is cut to its width, and can't steer it."""
    text = list(lines)
    if sys.stdout.isatty():
        columns = width() or sys.maxsize
        text = [cut(visible(line), columns) for line in text]
    sys.stdout.buffer.write(os.fsencode("".join(f"{line}\n" for line in text)))
