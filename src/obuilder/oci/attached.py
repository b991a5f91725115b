"""What goes along with a manifest: artifacts that name it as their subject (OCI 1.1), found by that.

A registry that does not list them has an index of them under a tag made of the digest, as the
specification says, and so has a layout. cosign finds its own under tags made the same way: they are
the same artifacts. What stands under such a tag already stays. Pure.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from obuilder.oci.assemble import Document
from obuilder.oci.manifest import CONFIG, INDEX, MANIFEST, Descriptor

EMPTY = "application/vnd.oci.empty.v1+json"
SIGNATURES, ATTESTATIONS = ".sig", ".att"
"""Ends of cosign's tags."""
_COSIGN = {
    SIGNATURES: "application/vnd.dev.cosign.artifact.sig.v1+json",
    ATTESTATIONS: "application/vnd.dev.cosign.artifact.att.v1+json",
}
_NEVER = "0001-01-01T00:00:00Z"


class Artifact(Struct, frozen=True):
    """A manifest that is no image, the blobs it is of, and the tag it goes by, if any."""

    manifest: Document
    blobs: tuple[Document, ...]
    tag: str = ""


class Attached(Struct, frozen=True):
    """What goes along with the manifest `subject`: artifacts, and layers of cosign's two."""

    subject: Descriptor
    artifacts: tuple[Artifact, ...] = ()
    signatures: tuple[Document, ...] = ()
    attestations: tuple[Document, ...] = ()

    @property
    def tag(self) -> str:
        """What the index of it is called where artifacts are not listed by subject."""
        return self.subject.digest.replace(":", "-")

    @property
    def tags(self) -> tuple[str, str, str]:
        """All tags that it may go under."""
        return self.tag, self.tag + SIGNATURES, self.tag + ATTESTATIONS

    def whole(self, there: Mapping[str, bytes]) -> list[Artifact]:
        """The artifacts, with cosign's, given the manifests that are `there` under its tags."""
        found = list(self.artifacts)
        for suffix, layers in ((SIGNATURES, self.signatures), (ATTESTATIONS, self.attestations)):
            if layers:
                tag = self.tag + suffix
                found.append(_cosigned(self.subject, suffix, tag, layers, there.get(tag)))
        return found

    def listing(self, artifacts: Sequence[Artifact], there: Mapping[str, bytes]) -> Document:
        """The index of artifacts, with what is `there` in it but for what these stand for, or stand in
        the place of.
        """
        listed = [_described(artifact.manifest) for artifact in artifacts]
        gone = {item["digest"] for item in listed}
        gone |= {_digest(there[one.tag]) for one in artifacts if one.tag in there}
        before = _items(there.get(self.tag), "manifests")
        kept = [item for item in before if item["digest"] not in gone]
        return document(
            INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*kept, *listed]}
        )


def document(kind: str, said: dict[str, Any] | bytes, **more: Any) -> Document:
    """A blob, and its descriptor with `more`."""
    data = said if isinstance(said, bytes) else msgspec.json.encode(said)
    return Document(Descriptor(_digest(data), kind, len(data), **more), data)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def artifact(
    subject: Descriptor, kind: str, data: bytes, annotations: Mapping[str, str]
) -> Artifact:
    """One blob of the media type `kind` as an artifact of that type."""
    blob, config = document(kind, data), document(EMPTY, b"{}")
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind,
        "config": config.descriptor, "layers": [blob.descriptor], "subject": _bare(subject),
        "annotations": dict(annotations),
    }  # fmt: skip
    return Artifact(document(MANIFEST, manifest), (config, blob))


def _cosigned(
    subject: Descriptor, suffix: str, tag: str, layers: Sequence[Document], there: bytes | None
) -> Artifact:
    """An image without a platform, each layer something that is signed, as cosign has it."""
    new = [msgspec.to_builtins(layer.descriptor) for layer in layers]
    kept = [item for item in _items(there, "layers") if item not in new]
    listed = [*kept, *new]
    config = document(
        CONFIG,
        {
            "architecture": "", "created": _NEVER, "history": [{"created": _NEVER}], "os": "",
            "rootfs": {"type": "layers", "diff_ids": [item["digest"] for item in listed]},
            "config": {},
        },
    )  # fmt: skip
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": _COSIGN[suffix],
        "config": config.descriptor, "layers": listed, "subject": _bare(subject),
    }  # fmt: skip
    return Artifact(document(MANIFEST, manifest), (config, *layers), tag)


def _bare(subject: Descriptor) -> Descriptor:
    return Descriptor(subject.digest, subject.media_type, subject.size)


def _described(manifest: Document) -> dict[str, Any]:
    """How an index of artifacts names one: with what it says of itself."""
    said = msgspec.json.decode(manifest.data)
    found: dict[str, Any] = msgspec.to_builtins(manifest.descriptor)
    found["artifactType"] = said["artifactType"]
    if said.get("annotations"):
        found["annotations"] = said["annotations"]
    return found


def _items(data: bytes | None, name: str) -> list[dict[str, Any]]:
    """What a manifest or index of somebody has: nothing, if it is none."""
    try:
        said = msgspec.json.decode(data or b"{}", type=dict[str, Any])
    except msgspec.MsgspecError:
        return []
    found = said.get(name)
    if not isinstance(found, list):
        return []
    return [
        item for item in found if isinstance(item, dict) and isinstance(item.get("digest"), str)
    ]
