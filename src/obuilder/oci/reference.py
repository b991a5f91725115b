"""What an image is for, and how it is named: platforms and digests in OCI's words."""

import os

from obuilder.values import Platform

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
    architecture, variant = _ARCHITECTURES.get(names.machine, (names.machine, ""))
    return Platform(names.sysname.lower(), architecture, variant)
