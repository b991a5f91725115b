"""The parts of images, by their paths ("index.json", "blobs/sha256/…"), and those in a directory."""

import os
from typing import Protocol

from obuilder.errors import BadImage, NotFound

DOCUMENT = 16 << 20
"""Bytes of one index, manifest or config: more is no image."""


class Parts(Protocol):
    """The parts of the images in one place."""

    place: str
    """What messages call it: a path."""

    def document(self, path: str) -> bytes:
        """The content of a JSON part. NotFound, BadImage."""

    def source(self, path: str) -> str:
        """Where `opened` finds a layer. BadImage if it is not there."""


class Directory:
    """Parts that are files below a directory."""

    def __init__(self, path: str) -> None:
        self.place = path

    def document(self, path: str) -> bytes:
        """The content of a JSON part. NotFound, BadImage."""
        whole = os.path.join(self.place, path)
        try:
            with open(whole, "rb") as file:
                data = file.read(DOCUMENT + 1)
        except FileNotFoundError:
            raise NotFound(f"there is no {whole}: no image layout, or not all of one") from None
        except OSError as error:
            raise BadImage(f"can't read {whole}: {error.strerror}") from error
        if len(data) > DOCUMENT:
            raise BadImage(f"{whole} is absurdly large")
        return data

    def source(self, path: str) -> str:
        """Where `opened` finds a layer. BadImage if it is not there."""
        whole = os.path.join(self.place, path)
        if not os.path.isfile(whole):
            raise BadImage(f"the image lacks a layer: there is no {whole}")
        return whole
