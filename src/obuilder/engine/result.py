"""What a build comes to."""

from msgspec import Struct

from obuilder.engine.index import Final
from obuilder.values import Key


class Result(Struct, frozen=True):
    """A finished build: the key of its result, and how many of its steps were there already."""

    key: Key
    cached: int
    ran: int
    seconds: float
    final: Final | None = None
    """What an image of it says of itself."""
