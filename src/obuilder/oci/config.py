"""An image's config, which engines and layouts have in common: its platform, layers and settings."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from obuilder.errors import BadImage
from obuilder.oci.reference import is_sha256
from obuilder.plan.model import Base, Layer
from obuilder.spec.image import ImageConfig
from obuilder.spec.model import Healthcheck
from obuilder.values import Platform

T = TypeVar("T")

_LAYERS = 1000


class Health(Struct, rename="pascal", omit_defaults=True):
    """How an engine sees whether a container is well; times are nanoseconds."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0

    @classmethod
    def of(cls, check: Healthcheck) -> "Health":
        """What a check of the language is in an image."""
        return cls(
            list(check.test), check.interval, check.timeout, check.start_period,
            check.start_interval, check.retries,
        )  # fmt: skip

    def read(self) -> Healthcheck | None:
        """The same as the language has it; None where nothing is said, or nothing we know."""
        if not self.test or self.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
            return None
        return Healthcheck(
            tuple(self.test), self.interval, self.timeout, self.start_period, self.start_interval,
            self.retries,
        )  # fmt: skip


class Settings(Struct, rename="pascal", omit_defaults=True):
    """What an image says of how it is to be used."""

    env: list[str] | None = None
    user: str = ""
    working_dir: str = ""
    shell: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    labels: dict[str, str] | None = None
    exposed_ports: dict[str, object] | None = None
    volumes: dict[str, object] | None = None
    stop_signal: str = ""
    healthcheck: Health | None = None
    on_build: list[str] | None = None

    @classmethod
    def of(cls, config: ImageConfig) -> "Settings":
        """What a config of the plan is in an image; its author stands elsewhere."""
        health = config.healthcheck
        return cls(
            env=[f"{name}={value}" for name, value in config.env] or None,
            user=config.user,
            working_dir=config.workdir,
            shell=list(config.shell) or None,
            entrypoint=list(config.entrypoint) or None,
            cmd=list(config.cmd) or None,
            labels=dict(config.labels) or None,
            exposed_ports={port: {} for port in config.ports} or None,
            volumes={path: {} for path in config.volumes} or None,
            stop_signal=config.stop_signal,
            healthcheck=None if health is None else Health.of(health),
            on_build=list(config.onbuild) or None,
        )

    def read(self, author: str = "") -> ImageConfig:
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
            ports=tuple(sorted(self.exposed_ports or {})),
            volumes=tuple(sorted(self.volumes or {})),
            stop_signal=self.stop_signal,
            healthcheck=self.healthcheck.read() if self.healthcheck else None,
            onbuild=tuple(self.on_build or ()),
            author=author,
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
    author: str = ""
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
        (config.config or Settings()).read(config.author),
    )
