"""OCI image layouts: from a tag to a config and layers."""

from msgspec import Struct

from obuilder.errors import BadImage, NotFound
from obuilder.oci.config import Config, base_of, decode
from obuilder.oci.manifest import NESTED, Descriptor, Manifest, index_or_manifest, of_platform
from obuilder.oci.parts import Parts
from obuilder.oci.reference import is_sha256, numbered, same_reference
from obuilder.plan.model import Base
from obuilder.values import Platform

_TAG = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
"""Docker's own: the tag alone does not tell its images apart."""


class _List(Struct):
    manifests: list[Descriptor]


def resolve(name: str, parts: Parts, tag: str, platform: Platform) -> Base:
    """The image of `tag` in a layout. NotFound, BadImage, DigestMismatch.

    "" stands for the only image there is, else for `latest`; `@N` for the one at place N.
    """
    index = decode(parts.document("index.json"), _List, f"{parts.place}: index.json")
    chosen = _tagged(index.manifests, parts.place, tag)
    found = chosen[0] if len(chosen) == 1 else of_platform(chosen, platform, name)
    for _ in range(NESTED):
        what = f"{parts.place}: {_path(parts, found.digest)}"
        manifest = index_or_manifest(_blob(parts, found), what)
        if isinstance(manifest, Manifest):
            break
        found = of_platform(manifest.manifests, platform, name)
    else:
        raise BadImage(f"{parts.place}: an index in an index in an index")
    what = f"{parts.place}: {_path(parts, manifest.config.digest)}"
    config = decode(_blob(parts, manifest.config), Config, what)
    sources = [parts.source(_path(parts, layer.digest)) for layer in manifest.layers]
    return base_of(name, found.digest, config, sources)


def _tagged(found: list[Descriptor], place: str, tag: str) -> list[Descriptor]:
    if not tag and len({item.digest for item in found}) == 1:
        return found[:1]
    if tag.startswith("@"):
        return [numbered(found, tag, place)]
    wanted = tag or "latest"
    named = {
        item.digest: item
        for item in found
        if any(name == wanted or same_reference(name, wanted) for name in _names(item))
    }
    if len(named) == 1 or (named and all(item.platform for item in named.values())):
        return list(named.values())
    tags = sorted({name for item in found for name in _names(item)[-1:]})
    raise NotFound(
        f"{place} has {'several images' if named else 'no image'} tagged {wanted!r}",
        hint="it has: " + (", ".join(tags) or f"{len(found)} without a tag, called @0, @1, …"),
    )


def _names(item: Descriptor) -> list[str]:
    """What an image can be chosen by."""
    said = item.annotations or {}
    return [said[key] for key in (_TAG, _FULL_NAME) if said.get(key)]


def _path(parts: Parts, digest: str) -> str:
    if not is_sha256(digest):
        raise BadImage(f"{parts.place}: {digest!r} is no SHA-256 digest")
    return "blobs/" + digest.replace(":", "/")


def _blob(parts: Parts, found: Descriptor) -> bytes:
    path = _path(parts, found.digest)
    data = parts.document(path)
    found.check(data, f"{parts.place}: {path}")
    return data
