"""OCI image layouts: from a tag to a config and layers."""

import hashlib

from msgspec import Struct

from obuilder.errors import BadImage, DigestMismatch, NotFound
from obuilder.oci.config import Config, T, base_of, decode, is_sha256
from obuilder.oci.parts import Parts
from obuilder.oci.reference import numbered, same_reference
from obuilder.plan.model import Base
from obuilder.values import Platform

_TAG = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
"""Docker's own: the tag alone does not tell its images apart."""


class _Platform(Struct):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class _Descriptor(Struct, rename="camel"):
    digest: str
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None

    def names(self) -> list[str]:
        """What it can be chosen by."""
        said = self.annotations or {}
        return [said[key] for key in (_TAG, _FULL_NAME) if said.get(key)]


class _Index(Struct):
    manifests: list[_Descriptor]


class _Manifest(Struct):
    config: _Descriptor
    layers: list[_Descriptor]


def resolve(name: str, parts: Parts, tag: str, platform: Platform) -> Base:
    """The image of `tag` in a layout. NotFound, BadImage, DigestMismatch.

    "" stands for the only image there is, else for `latest`; `@N` for the one at place N.
    """
    index = decode(parts.document("index.json"), _Index, f"{parts.place}: index.json")
    chosen = _tagged(index.manifests, parts.place, tag)
    for _ in range(4):
        if len(chosen) == 1 and "index" not in chosen[0].media_type:
            break
        if len(chosen) != 1:
            chosen = [_of_platform(chosen, platform, name)]
        else:
            chosen = _blob(parts, chosen[0].digest, _Index).manifests
    else:
        raise BadImage(f"{parts.place}: an index in an index in an index")
    digest = chosen[0].digest
    manifest = _blob(parts, digest, _Manifest)
    config = _blob(parts, manifest.config.digest, Config)
    sources = [parts.source(_path(parts, layer.digest)) for layer in manifest.layers]
    return base_of(name, digest, config, sources)


def _tagged(found: list[_Descriptor], place: str, tag: str) -> list[_Descriptor]:
    if not tag and len({item.digest for item in found}) == 1:
        return found[:1]
    if tag.startswith("@"):
        return [numbered(found, tag, place)]
    wanted = tag or "latest"
    named = {
        item.digest: item
        for item in found
        if any(name == wanted or same_reference(name, wanted) for name in item.names())
    }
    if len(named) == 1 or (named and all(item.platform for item in named.values())):
        return list(named.values())
    tags = sorted({name for item in found for name in item.names()[-1:]})
    raise NotFound(
        f"{place} has {'several images' if named else 'no image'} tagged {wanted!r}",
        hint="it has: " + (", ".join(tags) or f"{len(found)} without a tag, called @0, @1, …"),
    )


def _of_platform(found: list[_Descriptor], platform: Platform, name: str) -> _Descriptor:
    for item in found:
        has = item.platform
        if (
            has is not None
            and (has.os, has.architecture) == (platform.os, platform.architecture)
            and has.variant in ("", platform.variant or has.variant)
        ):
            return item
    raise NotFound(f"{name} has no image for {platform}")


def _path(parts: Parts, digest: str) -> str:
    if not is_sha256(digest):
        raise BadImage(f"{parts.place}: {digest!r} is no SHA-256 digest")
    return "blobs/" + digest.replace(":", "/")


def _blob(parts: Parts, digest: str, kind: type[T]) -> T:
    path = _path(parts, digest)
    data = parts.document(path)
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise DigestMismatch(f"{parts.place}: {path} is not what its name says")
    return decode(data, kind, f"{parts.place}: {path}")
