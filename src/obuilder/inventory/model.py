"""Packages, as every kind of database tells of them, and what they are called by everybody."""

from collections.abc import Mapping
from typing import Literal
from urllib.parse import quote

from msgspec import Struct

Kind = Literal["deb", "apk", "rpm", "pypi", "npm"]
"""As package URLs have them."""


class Package(Struct, frozen=True, order=True):
    """A package that is installed. `place` is the file of the root that says so."""

    kind: Kind
    name: str
    version: str
    architecture: str = ""
    place: str = ""
    license: str = ""
    """As the database has it."""
    supplier: str = ""
    """Who made it, as the database has it: NAME, or NAME <ADDRESS>."""
    source: str = ""
    """What it was built from, if that goes by another name."""
    epoch: str = ""
    checksums: tuple[tuple[str, str], ...] = ()
    """Of the package's file: algorithms, as SPDX calls them, and digests in hexadecimal."""


class System(Struct, frozen=True):
    """The distribution, as os-release tells of it."""

    id: str = ""
    version: str = ""
    title: str = ""


class Inventory(Struct, frozen=True):
    """Packages in order, and a line for each thing that could not be read."""

    system: System
    packages: tuple[Package, ...]
    notes: tuple[str, ...] = ()


def purl(package: Package, system: System) -> str:
    """The package's URL (github.com/package-url)."""
    name, namespace, qualifiers = package.name, "", dict[str, str]()
    if package.kind == "pypi":
        name = name.lower().replace("_", "-")
    elif package.kind == "npm":
        namespace, _, name = name.rpartition("/")
    else:
        namespace = (
            system.id or {"deb": "debian", "apk": "alpine", "rpm": ""}[package.kind]
        ).lower()
        distribution = f"{system.id}-{system.version}" if system.id and system.version else ""
        qualifiers = {
            "arch": package.architecture, "distro": distribution, "epoch": package.epoch,
            "upstream": package.source,
        }  # fmt: skip
    return made_purl(package.kind, namespace, name, package.version, qualifiers)


def made_purl(
    kind: str, namespace: str, name: str, version: str, qualifiers: Mapping[str, str]
) -> str:
    """A package URL of its parts; those that are empty are left out."""
    before = f"{'/'.join(map(_quoted, namespace.split('/')))}/" if namespace else ""
    after = f"@{_quoted(version)}" if version else ""
    said = "&".join(f"{key}={_quoted(value)}" for key, value in sorted(qualifiers.items()) if value)
    return f"pkg:{kind}/{before}{_quoted(name)}{after}{f'?{said}' if said else ''}"


def _quoted(text: str) -> str:
    return quote(text, safe=":", errors="surrogateescape")
