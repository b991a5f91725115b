"""What an image is for, and how it is named: platforms in OCI's words, names in Docker's."""

import os
from collections.abc import Sequence
from typing import TypeVar

from obuilder.errors import NotFound
from obuilder.values import Platform

T = TypeVar("T")

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "arm64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv8l": ("arm", "v7"),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}


def host_platform() -> Platform:
    """The platform of this machine; an architecture OCI has no word for keeps its own."""
    names = os.uname()
    return platform_of(names.sysname.lower(), names.machine)


def platform_of(system: str, machine: str) -> Platform:
    """The platform of an operating system on a machine, by the kernel's name or OCI's own."""
    architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
    return Platform(system, architecture, variant)


def same_reference(one: str, other: str) -> bool:
    """Whether two names of images are one name: `busybox` is `docker.io/library/busybox:latest`."""
    return _full(one) == _full(other)


def _full(name: str) -> str:
    for default in ("docker.io/", "index.docker.io/", "library/"):
        name = name.removeprefix(default)
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def numbered(found: Sequence[T], choice: str, place: str) -> T:
    """The one that `@N` chooses, counted from 0. NotFound."""
    number = choice[1:]
    if not (number.isascii() and number.isdigit()) or int(number) >= len(found):
        raise NotFound(
            f"{place} has no image {choice!r}",
            hint=f"its images are @0 to @{len(found) - 1}" if found else "it has none at all",
        )
    return found[int(number)]
