"""Indexes and manifests: from what a name stands for to one config and its layers."""

import hashlib
from typing import Literal, TypeVar

from msgspec import Struct

from obuilder.errors import BadImage, DigestMismatch, NotFound
from obuilder.oci.config import decode
from obuilder.oci.parts import DOCUMENT
from obuilder.oci.platforms import best
from obuilder.oci.reference import is_sha256
from obuilder.oci.streams import MOST_DATA
from obuilder.values import Platform

T = TypeVar("T")

Form = Literal["tar", "gzip", "zstd"]
"""How a layer is packed; `tar` is not at all."""

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
NESTED = 4
"""Indexes in indexes that are followed."""
LAYER = "application/vnd.oci.image.layer.v1.tar"
"""Of a layer; what follows says how it is compressed."""
CONFIG = "application/vnd.oci.image.config.v1+json"
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"
_LAYERS = frozenset(
    f"application/vnd.{kind}{packed}"
    for kind, packings in (
        ("oci.image.layer.v1.tar", ("", "+gzip", "+zstd")),
        ("oci.image.layer.nondistributable.v1.tar", ("", "+gzip", "+zstd")),
        ("docker.image.rootfs.diff.tar", ("", ".gzip", ".zstd")),
        ("docker.image.rootfs.foreign.diff.tar", ("", ".gzip", ".zstd")),
    )
    for packed in packings
)


class Described(Struct, omit_defaults=True):
    """What an index says of a platform."""

    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(Struct, rename="camel", omit_defaults=True):
    """Where something is, by its digest."""

    digest: str
    media_type: str = ""
    size: int = -1
    annotations: dict[str, str] | None = None
    platform: Described | None = None

    def check(self, data: bytes, what: str) -> None:
        """DigestMismatch: `data` is not what is described here."""
        if self.size not in (-1, len(data)):
            raise DigestMismatch(f"{what} has {len(data)} bytes, and should have {self.size}")
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != self.digest:
            raise DigestMismatch(f"{what} is not what its name says")


class Index(Struct, rename="camel"):
    """Manifests, or indexes, to choose from."""

    manifests: list[Descriptor]
    media_type: str = ""


class Manifest(Struct, rename="camel"):
    """An image."""

    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""


class _Either(Struct, rename="camel"):
    """As much of a document as tells what it is."""

    media_type: str = ""
    schema_version: int = 2
    manifests: list[Descriptor] | None = None
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None


def index_or_manifest(data: bytes, what: str, said: str = "") -> Index | Manifest:
    """The index or manifest in a document, which came as of the media type `said`. BadImage.

    A document that could be taken for either is refused: two who read it would see two images.
    """
    found = decode(data, _Either, what)
    kind = found.media_type or said
    if found.schema_version == 1 or kind.startswith(_SCHEMA_1):
        raise BadImage(
            f"{what} is of a kind that Docker gave up in 2017",
            hint="pull it with an old Docker and push it again",
        )
    if found.manifests is not None and found.config is None and found.layers is None:
        if kind in (MANIFEST, DOCKER_MANIFEST):
            raise BadImage(f"{what} says that it is a manifest, and is an index")
        return Index(found.manifests, found.media_type)
    if found.manifests is None and found.config is not None and found.layers is not None:
        if kind in (INDEX, DOCKER_INDEX):
            raise BadImage(f"{what} says that it is an index, and is a manifest")
        return Manifest(found.config, found.layers, found.media_type)
    raise BadImage(f"{what} is neither an image nor an index of images")


def of_platform(found: list[Descriptor], platform: Platform, name: str) -> Descriptor:
    """The best for a platform. NotFound, saying which there are."""
    listed = [
        (Platform(item.platform.os, item.platform.architecture, item.platform.variant), item)
        for item in found
        if item.platform is not None
    ]
    # One that does not say what it is for can only be the one that is meant.
    chosen = best(listed, platform) if listed or len(found) != 1 else found[0]
    if chosen is not None:
        return chosen
    # What stands beside an image to attest how it was made has a platform that is none.
    known = sorted({str(has) for has, _ in listed if has.os != "unknown"})
    raise NotFound(
        f"{name} has no image for {platform}",
        hint=f"it has: {', '.join(known)}" if known else None,
    )


def form_of(media_type: str) -> Form:
    """How a layer of that type is packed."""
    if media_type.endswith("gzip"):
        return "gzip"
    return "zstd" if media_type.endswith("zstd") else "tar"


def blob_of(source: str) -> tuple[str, int, Form]:
    """Digest, size and form of the blob that the `source` of a registry's layer names."""
    digest, size, *form = source.split(" ")
    return digest, int(size), form_of(*form or ("",))


def check_layer(layer: Descriptor, what: str) -> None:
    """BadImage: a layer that no root can be made of."""
    if not is_sha256(layer.digest):
        raise BadImage(f"{what}: {layer.digest!r} is no SHA-256 digest")
    if layer.media_type not in _LAYERS:
        raise BadImage(f"{what} has a layer of the unknown type {layer.media_type!r}")
    if not 0 <= layer.size <= MOST_DATA:
        raise BadImage(f"{what} has a layer of an absurd size, {layer.size} bytes")


def check_document(found: Descriptor, what: str) -> None:
    """BadImage: a document that can't be one."""
    if not is_sha256(found.digest):
        raise BadImage(f"{what}: {found.digest!r} is no SHA-256 digest")
    if not 0 <= found.size <= DOCUMENT:
        raise BadImage(f"{what} has a part of an absurd size, {found.size} bytes")
