"""What things of a store are called in an engine, which may hold those of other stores as well."""

import os

from msgspec import Struct

from obuilder.system.sessions import identity

STORE, SESSION = "obuilder.store", "obuilder.session"
"""Labels of containers and volumes."""


class Names(Struct, frozen=True):
    """The names that one session gives on one store."""

    store: str
    session: str

    @classmethod
    def of_store(cls, directory: str, session: str) -> "Names":
        """Those of the store in a directory; a copy of the directory is another store."""
        return cls(f"{identity(directory)}-{os.stat(directory).st_ino:x}", session)

    @property
    def repository(self) -> str:
        """Where the store's images are: at no registry that there could be."""
        return f"localhost/obuilder-{self.store}"

    @property
    def labels(self) -> dict[str, str]:
        """Labels of what goes with the session."""
        return {STORE: self.store, SESSION: self.session}

    def image(self, tag: str) -> str:
        """An image's name."""
        return f"{self.repository}:{tag}"

    def thing(self, name: str) -> str:
        """A container's or a volume's name."""
        return f"obuilder-{self.store}-{name}"
