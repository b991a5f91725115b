"""How images are named: Docker's names, and the places of those that have none."""

import re
from collections.abc import Sequence
from typing import TypeVar

from msgspec import Struct

from obuilder.errors import NotFound

T = TypeVar("T")

HUB = "docker.io"
"""The registry of names that have none."""
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
_NAME = re.compile(
    rf"(?:(?P<host>{_HOST})/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][\w.-]{0,127}))?(?:@(?P<digest>[a-z0-9]+:[0-9a-f]+))?",
    re.ASCII,
)
_LONGEST = 255


class Reference(Struct, frozen=True):
    """The name of an image in a registry, whole: HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """The image that Docker means by `text`: `debian` is `docker.io/library/debian:latest`.

        NotFound if no image can have that name.
        """
        found = _NAME.fullmatch(text)
        if found is None or len(text) > _LONGEST:
            raise NotFound(
                f"{text!r} is no name of an image", hint="debian:12 and host:5000/debian:12 are"
            )
        host, path = found["host"] or "", found["path"]
        if host and not _is_host(host):
            host, path = "", f"{host}/{path}"
            if not re.fullmatch(f"{_COMPONENT}(?:/{_COMPONENT})*", path):
                raise NotFound(f"{text!r} is no name of an image: names are in lower case")
        if host in ("", "index.docker.io"):
            host = HUB
        if host == HUB and "/" not in path:
            path = f"library/{path}"
        digest = found["digest"] or ""
        if digest and not is_sha256(digest):
            raise NotFound(f"{text!r}: {digest!r} is no SHA-256 digest")
        tag = found["tag"] or ("" if digest else "latest")
        return cls(host, path, tag, digest)

    @property
    def wanted(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        """The whole name."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def _is_host(text: str) -> bool:
    """Whether what stands before the first slash is a host, and not the first part of a path."""
    return text == "localhost" or text != text.lower() or bool(set(text) & set(".:["))


def is_sha256(digest: str) -> bool:
    """Whether a digest is a SHA-256 one, well formed."""
    kind, _, digits = digest.partition(":")
    return kind == "sha256" and len(digits) == 64 and not set(digits) - set("0123456789abcdef")


def same_reference(one: str, other: str) -> bool:
    """Whether two names of images are one name: `busybox` is `docker.io/library/busybox:latest`."""
    return _full(one) == _full(other)


def _full(name: str) -> str:
    try:
        return str(Reference.parse(name))
    except NotFound:
        return name


def numbered(found: Sequence[T], choice: str, place: str) -> T:
    """The one that `@N` chooses, counted from 0. NotFound."""
    number = choice[1:]
    if not (number.isascii() and number.isdigit()) or int(number) >= len(found):
        raise NotFound(
            f"{place} has no image {choice!r}",
            hint=f"its images are @0 to @{len(found) - 1}" if found else "it has none at all",
        )
    return found[int(number)]
