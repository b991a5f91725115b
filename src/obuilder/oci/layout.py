"""OCI image layouts in directories: from a tag to a config and verified layers."""

import hashlib
import os
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from obuilder.errors import BadImage, DigestMismatch, NotFound
from obuilder.plan.model import Base, ImageConfig, Layer
from obuilder.values import Platform

T = TypeVar("T")

_JSON = 16 << 20
"""Bytes of one index, manifest or config: more is no image."""
_TAG = "org.opencontainers.image.ref.name"


class _Platform(Struct):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class _Descriptor(Struct, rename="camel"):
    digest: str
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None


class _Index(Struct):
    manifests: list[_Descriptor]


class _Manifest(Struct):
    config: _Descriptor
    layers: list[_Descriptor]


class _Settings(Struct, rename="pascal"):
    env: list[str] | None = None
    user: str = ""
    working_dir: str = ""
    shell: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    labels: dict[str, str] | None = None


class _Rootfs(Struct):
    diff_ids: list[str]


class _Config(Struct):
    rootfs: _Rootfs
    architecture: str = ""
    os: str = "linux"
    variant: str = ""
    config: _Settings | None = field(default=None)


def resolve(name: str, directory: str, tag: str, platform: Platform) -> Base:
    """The image of `tag` ("": the only one, else `latest`). NotFound, BadImage, DigestMismatch."""
    index = _read(os.path.join(directory, "index.json"), _Index)
    chosen = _tagged(index.manifests, directory, tag)
    for _ in range(4):
        if len(chosen) == 1 and "index" not in chosen[0].media_type:
            break
        if len(chosen) != 1:
            chosen = [_of_platform(chosen, platform, name)]
        else:
            chosen = _read(_blob(directory, chosen[0].digest), _Index, chosen[0].digest).manifests
    else:
        raise BadImage(f"{directory}: an index in an index in an index")
    digest = chosen[0].digest
    manifest = _read(_blob(directory, digest), _Manifest, digest)
    config = _read(_blob(directory, manifest.config.digest), _Config, manifest.config.digest)
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise BadImage(f"{name}: the manifest and the config have not the same layers")
    layers = tuple(
        Layer(content, _blob(directory, blob.digest))
        for content, blob in zip(config.rootfs.diff_ids, manifest.layers, strict=True)
    )
    made_for = Platform(config.os, config.architecture, config.variant)
    return Base(name, digest, made_for, layers, _image_config(config.config or _Settings()))


def _tagged(found: list[_Descriptor], directory: str, tag: str) -> list[_Descriptor]:
    if not tag and len(found) == 1:
        return found
    named = [item for item in found if (item.annotations or {}).get(_TAG) == (tag or "latest")]
    if named:
        return named
    tags = sorted({(item.annotations or {}).get(_TAG, "") for item in found} - {""})
    raise NotFound(
        f"the layout {directory} has no image tagged {tag or 'latest'!r}",
        hint="it has: " + (", ".join(tags) or "no tags"),
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


def _blob(directory: str, digest: str) -> str:
    kind, _, digits = digest.partition(":")
    if kind != "sha256" or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise BadImage(f"{digest!r} is no SHA-256 digest")
    return os.path.join(directory, "blobs", kind, digits)


def _read(path: str, kind: type[T], digest: str = "") -> T:
    try:
        with open(path, "rb") as file:
            data = file.read(_JSON + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no {path}: no image layout, or not all of one") from None
    except OSError as error:
        raise BadImage(f"can't read {path}: {error.strerror}") from error
    if digest and f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise DigestMismatch(f"{path} is not what its name says")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadImage(f"{path} is malformed: {error}") from error


def _image_config(said: _Settings) -> ImageConfig:
    env = (item.partition("=") for item in said.env or ())
    return ImageConfig(
        env=tuple((name, value) for name, _, value in env),
        user=said.user,
        workdir=said.working_dir,
        shell=tuple(said.shell or ()),
        entrypoint=tuple(said.entrypoint or ()),
        cmd=tuple(said.cmd or ()),
        labels=tuple(sorted((said.labels or {}).items())),
    )
