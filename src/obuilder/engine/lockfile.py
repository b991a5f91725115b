"""Lock files: the digest of every base image of a spec, beside the spec.

`obuilder lock` writes `SPEC.lock`, JSON with a line for each image, and `--locked` refuses whatever is
not in it or not of that digest.
"""

import os

import msgspec

from obuilder.errors import DigestMismatch, StoreError, UsageError
from obuilder.system.replacing import replacing
from obuilder.values import shown

VERSION = 1
"""A file of another version is refused."""


class Lock(msgspec.Struct, frozen=True):
    """What a lock file says: digests by the names that specs have."""

    path: str
    images: dict[str, str]

    def digest(self, name: str) -> str:
        """What `name` must be. UsageError."""
        known = self.images.get(shown(name))
        if known is None:
            raise UsageError(
                f"{name} is not in {self.path}", hint="`obuilder lock` writes what there is now"
            )
        return known

    def check(self, name: str, digest: str) -> None:
        """DigestMismatch: `name` is another image than it was when it was locked."""
        known = self.digest(name)
        if digest != known:
            raise DigestMismatch(
                f"{name} is {digest} now, and {self.path} says {known}",
                hint="`obuilder lock` writes what there is now",
            )


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    images: dict[str, str]


def lock_path(spec: str) -> str:
    """Where the lock file of a spec is."""
    return os.path.normpath(f"{spec}.lock")


def read_lock(path: str) -> Lock:
    """A lock file. UsageError."""
    hint = "`obuilder lock` writes it"
    try:
        with open(path, "rb") as file:
            found = msgspec.json.decode(file.read(), type=_File)
    except OSError as error:
        raise UsageError(f"can't read the lock file {path}: {error.strerror}", hint=hint) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"the lock file {path} is damaged: {error}", hint=hint) from error
    if found.version != VERSION:
        raise UsageError(f"the lock file {path} is of version {found.version}", hint=hint)
    return Lock(path, found.images)


def write_lock(path: str, images: dict[str, str]) -> None:
    """Write the digests of images by name, at once or not at all. StoreError."""
    named = {shown(name): digest for name, digest in sorted(images.items())}
    data = msgspec.json.format(msgspec.json.encode(_File(VERSION, named)), indent=2) + b"\n"
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise StoreError(f"can't write the lock file {path}: {error.strerror}") from error
