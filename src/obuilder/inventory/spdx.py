"""An inventory as an SBOM: a document of SPDX 2.3 in JSON, the same for the same inventory."""

import hashlib
import re
import time
from typing import Any

import msgspec

from obuilder.inventory.licenses import expression
from obuilder.inventory.model import Inventory, Package, System, purl

_NOTHING = "NOASSERTION"
_ROOT, _DOCUMENT = "SPDXRef-root", "SPDXRef-DOCUMENT"
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9.-]+")
_ADDRESS = re.compile(r"(.*?)\s*<([^<>]*)>.*", re.DOTALL)
_PLAIN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+")
_PARENTHESES = re.compile(r"[()]+")
"""What stands in them is an address to SPDX, where people are named."""


def document(inventory: Inventory, *, name: str, version: str, tool: str, created: float) -> bytes:
    """The SBOM of a root that is called `name`, of that version.

    `created` is in seconds since 1970. The document's namespace is made of its content.
    """
    own: dict[str, str] = {}
    packages = [_package(each, inventory.system, own) for each in inventory.packages]
    system = inventory.system
    root = {
        "SPDXID": _ROOT, "name": name, "versionInfo": version, "downloadLocation": _NOTHING,
        "filesAnalyzed": False, "licenseConcluded": _NOTHING, "licenseDeclared": _NOTHING,
        "copyrightText": _NOTHING, "primaryPackagePurpose": "CONTAINER",
    }  # fmt: skip
    if system.title:
        root["summary"] = _plain(system.title)
    said: dict[str, Any] = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": _DOCUMENT,
        "name": name,
        "documentNamespace": "",
        "creationInfo": {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created)),
            "creators": [f"Tool: {tool}"],
        },
        "packages": [root, *packages],
        "relationships": [
            _related(_DOCUMENT, "DESCRIBES", _ROOT),
            *(_related(_ROOT, "CONTAINS", package["SPDXID"]) for package in packages),
        ],
    }
    if inventory.notes:
        said["comment"] = _plain("not all could be read: " + "; ".join(inventory.notes))
    if own:
        said["hasExtractedLicensingInfos"] = [
            {"licenseId": key, "extractedText": text} for key, text in sorted(own.items())
        ]
    digest = hashlib.sha256(msgspec.json.encode(said)).hexdigest()
    said["documentNamespace"] = f"urn:obuilder:sbom:sha256:{digest}"
    return msgspec.json.encode(said)


def _package(package: Package, system: System, own: dict[str, str]) -> dict[str, Any]:
    """A package; licenses that SPDX has no name for go to `own`."""
    url = purl(package, system)
    mark = hashlib.sha256(f"{url}\0{package.place}".encode("utf-8", "replace")).hexdigest()[:12]
    license_, new = expression(_plain(package.license))
    if new:
        own[new] = _plain(package.license)
    said: dict[str, Any] = {
        "SPDXID": f"SPDXRef-{package.kind}-{_NOT_IN_IDS.sub('-', package.name)[:80]}-{mark}",
        "name": _plain(package.name),
        "versionInfo": _plain(package.version),
        "supplier": _supplier(package),
        "downloadLocation": _NOTHING,
        "filesAnalyzed": False,
        "sourceInfo": _plain(f"found in /{package.place}"),
        "licenseConcluded": _NOTHING,
        "licenseDeclared": license_,
        "copyrightText": _NOTHING,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
                "referenceLocator": url,
            }
        ],
    }  # fmt: skip
    if package.checksums:
        said["checksums"] = [
            {"algorithm": name, "checksumValue": value} for name, value in package.checksums
        ]
    return said


def _supplier(package: Package) -> str:
    """Who supplies it: distributions have vendors, all else has people."""
    found = _ADDRESS.fullmatch(package.supplier)
    name, address = (found[1], found[2]) if found else (package.supplier, "")
    name, address = (_plain(_PARENTHESES.sub(" ", text)).strip(' "') for text in (name, address))
    if not name:
        return _NOTHING
    kind = "Organization" if package.kind == "rpm" else "Person"
    return f"{kind}: {name}" + (f" ({address})" if "@" in address else "")


def _related(one: str, how: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": how, "relatedSpdxElement": other}


def _plain(text: str) -> str:
    """Text on one line, that documents can hold."""
    return _PLAIN.sub(" ", text).strip()
