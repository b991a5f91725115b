"""What a container says, as engines carry it where there is no terminal: piece by piece."""

from collections.abc import Iterator

from obuilder.backends.docker.api import Answer

_HEADER = 8
"""Bytes before each piece: the first says which stream it is of, the last four its length."""


def pieces(answer: Answer) -> Iterator[tuple[int, bytes]]:
    """Each piece with its stream (1: output, 2: errors), in the order they came, to the end."""
    left = bytearray()
    while data := answer.receive(1 << 16):
        left += data
        while len(left) >= _HEADER:
            end = _HEADER + int.from_bytes(left[4:_HEADER])
            if len(left) < end:
                break
            yield left[0], bytes(left[_HEADER:end])
            del left[:end]
