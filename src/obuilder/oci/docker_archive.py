"""What `docker save` writes: `manifest.json` lists images, each a config and layers.

Up to version 24 a layer is `DIR/layer.tar`, which may be a symlink to another image's; since 25
configs and layers are blobs of an OCI layout, which stands in the same archive.
"""

import hashlib
import posixpath

from msgspec import Struct

from obuilder.errors import BadImage, DigestMismatch, NotFound
from obuilder.oci.config import Config, base_of, decode
from obuilder.oci.image_archive import Archive
from obuilder.oci.reference import is_sha256, numbered, same_reference
from obuilder.plan.model import Base

_LIST = "manifest.json"


class _Image(Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


def resolve(name: str, archive: Archive, choice: str) -> Base:
    """The image `choice` by its id. NotFound, BadImage, DigestMismatch.

    `choice` is a name that it was saved under, or the tag alone, or `@N` for the one at place N;
    "" stands for the only image there is, else for the only one tagged `latest`.
    """
    image = _chosen(_images(archive), choice, archive.place)
    config, digest = _config(archive, image)
    return base_of(name, digest, config, [archive.source(layer) for layer in image.layers])


def spans(archive: Archive, contents: tuple[str, ...]) -> list[tuple[int, int]]:
    """Offset and size of the layers of the image with these contents. NotFound, BadImage."""
    for image in _images(archive):
        config, _ = _config(archive, image)
        if tuple(config.rootfs.diff_ids or ()) == contents:
            return [archive.span(layer) for layer in image.layers]
    raise NotFound(f"{archive.place} lacks the image it was asked for")


def _images(archive: Archive) -> list[_Image]:
    if _LIST not in archive:
        hint = "a root file system in an archive is tar:FILE"
        if "index.json" in archive:
            hint = "it is an OCI layout: call it oci-archive:FILE"
        raise BadImage(f"{archive.place} is no archive of docker save", hint=hint)
    images = decode(archive.document(_LIST), list[_Image], f"{archive.place}: {_LIST}")
    if not images:
        raise BadImage(f"{archive.place} has no image in it")
    return images


def _config(archive: Archive, image: _Image) -> tuple[Config, str]:
    data = archive.document(image.config)
    digest = hashlib.sha256(data).hexdigest()
    said = posixpath.basename(image.config).removesuffix(".json")
    if said != digest and is_sha256(f"sha256:{said}"):
        raise DigestMismatch(f"{archive.place}: {image.config} is not what its name says")
    return decode(data, Config, f"{archive.place}: {image.config}"), f"sha256:{digest}"


def _chosen(images: list[_Image], choice: str, place: str) -> _Image:
    if not choice and len(images) == 1:
        return images[0]
    if choice.startswith("@"):
        return numbered(images, choice, place)
    tags = [(tag, image) for image in images for tag in image.repo_tags or ()]
    for tag, image in tags:
        if choice and same_reference(tag, choice):
            return image
    wanted = choice or "latest"
    found = [image for tag, image in tags if tag.rpartition(":")[2] == wanted]
    if len(found) == 1:
        return found[0]
    raise NotFound(
        f"{place} has {'several images' if found else 'no image'} called {wanted!r}",
        hint="it has: "
        + (", ".join(tag for tag, _ in tags) or f"{len(images)} without a name, called @0, @1, …"),
    )
