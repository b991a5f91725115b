"""An image's config, which engines and layouts have in common: its platform, layers and settings."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from obuilder.errors import BadImage
from obuilder.oci.reference import is_sha256
from obuilder.plan.model import Base, ImageConfig, Layer
from obuilder.values import Platform

T = TypeVar("T")

_LAYERS = 1000


class Settings(Struct, rename="pascal"):
    """What an image says of how it is to be used."""

    env: list[str] | None = None
    user: str = ""
    working_dir: str = ""
    shell: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    labels: dict[str, str] | None = None

    def read(self) -> ImageConfig:
        """The same in the words of the plan."""
        env = (item.partition("=") for item in self.env or ())
        return ImageConfig(
            env=tuple((name, value) for name, _, value in env),
            user=self.user,
            workdir=self.working_dir,
            shell=tuple(self.shell or ()),
            entrypoint=tuple(self.entrypoint or ()),
            cmd=tuple(self.cmd or ()),
            labels=tuple(sorted((self.labels or {}).items())),
        )


class Rootfs(Struct):
    """The digests of the layers' content."""

    diff_ids: list[str] | None = None


class Config(Struct):
    """A config file."""

    rootfs: Rootfs
    architecture: str = ""
    os: str = "linux"
    variant: str = ""
    config: Settings | None = field(default=None)


def decode(data: bytes, kind: type[T], what: str) -> T:
    """A JSON document, which may be hostile. BadImage."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadImage(f"{what} is malformed: {error}") from error


def base_of(name: str, digest: str, config: Config, sources: Sequence[str]) -> Base:
    """The image that a config describes, its layers' content to be had at `sources`. BadImage."""
    contents = config.rootfs.diff_ids or []
    if not contents:
        raise BadImage(f"{name} has no layers", hint="an empty root is called scratch")
    if len(contents) != len(sources):
        raise BadImage(f"{name}: the manifest and the config have not the same layers")
    if len(contents) > _LAYERS:
        raise BadImage(f"{name} has {len(contents)} layers, which is absurd")
    for content in contents:
        if not is_sha256(content):
            raise BadImage(f"{name}: {content!r} is no SHA-256 digest")
    return Base(
        name,
        digest,
        Platform(config.os, config.architecture, config.variant),
        tuple(Layer(*found) for found in zip(contents, sources, strict=True)),
        (config.config or Settings()).read(),
    )
