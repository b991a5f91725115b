"""What the verbs that only look share: the index without an event loop, results by prefix."""

from collections.abc import Iterator
from contextlib import contextmanager

from obuilder.engine.index import Index, Record
from obuilder.engine.settings import Settings
from obuilder.errors import UsageError


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
