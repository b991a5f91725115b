"""Packages of Debian's and Alpine's databases, which are text, and what os-release says."""

import base64
import binascii
import shlex
from collections.abc import Iterator

from obuilder.inventory.model import Package, System
from obuilder.inventory.reading import Root, paragraphs

_OS_RELEASE = ("etc/os-release", "usr/lib/os-release")
_MOST = 1 << 16
_DPKG, _DPKG_PARTS = "var/lib/dpkg/status", "var/lib/dpkg/status.d"
APK = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
_DPKG_FIELDS = frozenset({"Package", "Version", "Architecture", "Maintainer", "Status", "Source"})
_GONE = ("not-installed", "config-files")
"""States of packages of which no program is there."""
_APK_FIELDS = frozenset("PVALmoC")


def system_of(root: Root) -> System:
    """What the root says that it is. Unreadable."""
    for path in _OS_RELEASE:
        file = root.open(path)
        if file is None:
            continue
        with file:
            lines = file.read(_MOST).decode("utf-8", "replace").splitlines()
        said: dict[str, str] = {}
        for line in lines:
            name, sign, value = line.partition("=")
            if sign and not line.startswith("#"):
                try:
                    said[name.strip()] = "".join(shlex.split(value)[:1])
                except ValueError:
                    continue
        return System(said.get("ID", ""), said.get("VERSION_ID", ""), said.get("PRETTY_NAME", ""))
    return System()


def dpkg_files(root: Root) -> list[str]:
    """Where dpkg, or who makes images without it, notes what is installed. Unreadable."""
    parts = [name for name in root.names(_DPKG_PARTS) if not name.endswith(".md5sums")]
    return [_DPKG, *(f"{_DPKG_PARTS}/{name}" for name in parts)]


def dpkg(root: Root, path: str) -> Iterator[Package]:
    """What a file of dpkg's tells. Unreadable."""
    file = root.open(path)
    if file is None:
        return
    with file:
        for said in paragraphs(file, _DPKG_FIELDS):
            name, version = said.get("Package"), said.get("Version")
            state = said.get("Status", "installed").rpartition(" ")[2]
            if name and version and state not in _GONE:
                yield Package(
                    "deb", name, version, said.get("Architecture", ""), path,
                    supplier=said.get("Maintainer", ""),
                    source=said.get("Source", "").partition(" ")[0],
                )  # fmt: skip


def apk(root: Root, path: str) -> Iterator[Package]:
    """What a file of apk's tells. Unreadable."""
    file = root.open(path)
    if file is None:
        return
    with file:
        for said in paragraphs(file, _APK_FIELDS):
            name, version = said.get("P"), said.get("V")
            if name and version:
                source = said.get("o", "")
                yield Package(
                    "apk", name, version, said.get("A", ""), path, said.get("L", ""),
                    said.get("m", ""), source if source != name else "",
                    checksums=_apk_checksum(said.get("C", "")),
                )  # fmt: skip


def _apk_checksum(text: str) -> tuple[tuple[str, str], ...]:
    """Q1 and a SHA-1 in base64."""
    if not text.startswith("Q1"):
        return ()
    try:
        digest = base64.b64decode(text[2:], validate=True)
    except (binascii.Error, ValueError):
        return ()
    return (("SHA1", digest.hex()),) if len(digest) == 20 else ()
