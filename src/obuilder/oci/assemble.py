"""An image's documents, made of what is known of it: pure, and the same for the same image."""

import hashlib
import time
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from obuilder.errors import Unsupported
from obuilder.oci.config import Settings
from obuilder.oci.manifest import CONFIG, INDEX, MANIFEST, Described, Descriptor
from obuilder.oci.pack import Blob
from obuilder.spec.image import ImageConfig
from obuilder.values import Platform

Annotations = Mapping[str, str]


class Document(Struct, frozen=True):
    """A config, manifest or index, and how others name it."""

    descriptor: Descriptor
    data: bytes


class Image(Struct, frozen=True):
    """An image for one platform, without the content of its layers."""

    platform: Platform
    config: Document
    manifest: Document
    layers: tuple[Blob, ...]


class _History(Struct):
    created: str
    created_by: str


class _Rootfs(Struct):
    diff_ids: list[str]
    type: str = "layers"


class _Config(Struct, omit_defaults=True):
    created: str
    architecture: str
    os: str
    config: Settings
    rootfs: _Rootfs
    history: list[_History]
    author: str = ""
    variant: str = ""


class _Manifest(Struct, rename="camel"):
    schema_version: int
    media_type: str
    config: Descriptor
    layers: list[Descriptor]


class _Index(Struct, rename="camel"):
    schema_version: int
    media_type: str
    manifests: list[Descriptor]


class _Annotated(Struct):
    annotations: dict[str, str]


def assembled(
    config: ImageConfig, platform: Platform, layers: Sequence[tuple[Blob, str]], created: float,
    annotations: Annotations,
) -> Image:  # fmt: skip
    """An image of layers, each with the words for its history. Unsupported.

    `created` is in seconds since 1970.
    """
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created))
    blobs = tuple(blob for blob, _ in layers)
    said = _document(
        CONFIG,
        _Config(
            when, platform.architecture, platform.os, Settings.of(config),
            _Rootfs([blob.diff for blob in blobs]), [_History(when, text) for _, text in layers],
            config.author, platform.variant,
        ),
    )  # fmt: skip
    manifest = _document(
        MANIFEST,
        _Manifest(2, MANIFEST, said.descriptor, [blob.descriptor for blob in blobs]),
        annotations,
    )
    return Image(platform, said, manifest, blobs)


def index_of(images: Sequence[Image], annotations: Annotations) -> Document:
    """The index of images for several platforms."""
    listed = [described(image) for image in images]
    return _document(INDEX, _Index(2, INDEX, listed), annotations)


def described(image: Image) -> Descriptor:
    """How an index names an image."""
    platform = image.platform
    has = Described(platform.architecture, platform.os, platform.variant)
    return msgspec.structs.replace(image.manifest.descriptor, platform=has)


def _document(kind: str, said: Struct, annotations: Annotations | None = None) -> Document:
    try:
        data = msgspec.json.encode(said)
        if annotations:
            more = msgspec.json.encode(_Annotated(dict(sorted(annotations.items()))))
            data = data[:-1] + b"," + more[1:]
    except UnicodeEncodeError as error:
        raise Unsupported(
            f"an image can't say of itself what is no UTF-8 text: {error.object!r}",
            hint="of variables, labels and commands, only bytes that are UTF-8 can be in an image",
        ) from error
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Document(Descriptor(digest, kind, len(data)), data)
