"""What images are for, in OCI's words: this machine's platform, and which others it may stand for."""

import os
import re
from collections.abc import Iterable
from typing import TypeVar

from obuilder.errors import UsageError
from obuilder.values import Platform

T = TypeVar("T")

_MACHINES = {
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
_SPELLINGS = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i386": ("386", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}
"""Words that others use for an architecture, and what they say of its variant."""
_VARIANTS = {
    ("amd64", "v1"): "", ("arm64", "v8"): "", ("arm64", "v8.0"): "", ("arm64", "v9.0"): "v9",
    ("arm", ""): "v7",
}  # fmt: skip
_FORM = re.compile(r"([a-z0-9]+)/([\w-]+)(?:/([\w.]+))?", re.ASCII)


def host_platform() -> Platform:
    """The platform of this machine; an architecture OCI has no word for keeps its own."""
    names = os.uname()
    return platform_of(names.sysname.lower(), names.machine)


def platform_of(system: str, machine: str) -> Platform:
    """The platform of an operating system on a machine, by the kernel's name or OCI's own."""
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(system, architecture, variant)


def parse_platform(text: str) -> Platform:
    """The platform that OS/ARCHITECTURE[/VARIANT] names, in OCI's own words. UsageError."""
    found = _FORM.fullmatch(text.lower())
    if found is None:
        raise UsageError(
            f"{text!r} is no platform", hint="for example linux/amd64, linux/arm64, linux/arm/v7"
        )
    return normalised(Platform(found[1], found[2], found[3] or ""))


def normalised(platform: Platform) -> Platform:
    """The same platform in one spelling: the variant that is an architecture's usual one is left
    out, but for 32-bit ARM, where it never is.
    """
    known = _SPELLINGS.get(platform.architecture, (platform.architecture, ""))
    architecture, variant = known[0], platform.variant or known[1]
    if architecture in ("arm", "arm64") and variant.isdecimal():
        variant = f"v{variant}"
    variant = _VARIANTS.get((architecture, variant), variant)
    return Platform(platform.os, architecture, variant)


def accepted(platform: Platform) -> list[Platform]:
    """The platforms whose images can be used for `platform`, the best first.

    Newer variants run what was made for older ones, amd64 what was made for 386, and arm64 what
    was made for 32-bit ARM.
    """
    wanted = normalised(platform)
    found = [(wanted.architecture, wanted.variant)]
    level = _level(wanted.variant)
    if wanted.architecture == "amd64":
        found += [("amd64", f"v{number}") for number in range(level - 1, 0, -1)] + [("386", "")]
    elif wanted.architecture == "arm":
        found += [("arm", f"v{number}") for number in range(level - 1, 4, -1)]
    elif wanted.architecture == "arm64":
        found += [("arm64", f"v{number}") for number in range(level - 1, 7, -1)]
        found += [("arm", f"v{number}") for number in range(8, 4, -1)]
    return [normalised(Platform(wanted.os, *names)) for names in found]


def best(found: Iterable[tuple[Platform, T]], platform: Platform) -> T | None:
    """Of things for several platforms the one that is the best for `platform`; None if none is."""
    places = {each: place for place, each in enumerate(accepted(platform))}
    fit = [
        (places[has], place, thing)
        for place, (has, thing) in enumerate((normalised(p), thing) for p, thing in found)
        if has in places
    ]
    return min(fit, key=lambda item: item[:2])[2] if fit else None


def _level(variant: str) -> int:
    number = variant.removeprefix("v").partition(".")[0]
    return int(number) if number.isdecimal() else 0
