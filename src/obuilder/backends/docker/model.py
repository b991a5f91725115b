"""What an engine says, as far as anybody here asks."""

from typing import TypeVar

import msgspec
from msgspec import Struct, field

from obuilder.errors import Unreachable
from obuilder.oci.config import Settings
from obuilder.values import Platform

T = TypeVar("T")


class _Layers(Struct, rename="pascal"):
    layers: list[str] | None = None


class Image(Struct, rename="pascal"):
    """What an engine says of an image."""

    id: str
    architecture: str = ""
    os: str = "linux"
    variant: str = ""
    os_version: str = ""
    size: int = 0
    config: Settings | None = None
    rootfs: _Layers = field(default_factory=_Layers, name="RootFS")
    repo_tags: list[str] | None = None
    author: str = ""

    @classmethod
    def of(cls, layers: list[str], platform: Platform, settings: Settings | None = None) -> "Image":
        """One that an engine can be asked to make."""
        system, architecture = platform.os, platform.architecture
        return cls(
            "", architecture, system, platform.variant, config=settings, rootfs=_Layers(layers)
        )

    @property
    def layers(self) -> list[str]:
        """The digests of its layers' content, the lowest first."""
        return self.rootfs.layers or []


class Info(Struct, rename="pascal"):
    """What an engine says of itself."""

    os_type: str = field(default="linux", name="OSType")
    architecture: str = ""
    server_version: str = ""
    docker_root_dir: str = ""
    driver: str = ""
    security_options: list[str] | None = None
    runtimes: dict[str, msgspec.Raw] | None = None
    default_runtime: str = ""
    podman: bool = False
    """Whether it is podman, which has Docker's API but does not do everything as Docker does."""
    memory_limit: bool = False
    cpu_cfs_quota: bool = False
    pids_limit: bool = False
    cgroup_version: str = ""


class Named(Struct, rename="pascal"):
    """Something in a list: engines name containers by several names, all else by one."""

    id: str = ""
    name: str = ""
    names: list[str] | None = None
    labels: dict[str, str] | None = None


class Change(Struct, rename="pascal"):
    """A path that differs from the image's: changed (0), added (1), removed (2)."""

    path: str
    kind: int


class Found(Struct):
    """What is at a path inside a container; `mode` in Go's bits."""

    mode: int
    link_target: str = field(default="", name="linkTarget")

    @property
    def is_directory(self) -> bool:
        """Whether it is one itself, not by a symlink."""
        return bool(self.mode & 1 << 31)

    @property
    def is_symlink(self) -> bool:
        """Whether it is one; `link_target` then is where it leads, inside the root."""
        return bool(self.mode & 1 << 27)

    @property
    def permissions(self) -> int:
        """The twelve bits that chmod sets."""
        special = ((23, 0o4000), (22, 0o2000), (20, 0o1000))
        return self.mode & 0o777 | sum(bit for place, bit in special if self.mode & 1 << place)


class Volume(Struct, rename="pascal"):
    """What an engine says of a volume."""

    mountpoint: str = ""


class Volumes(Struct, rename="pascal"):
    """The list of volumes."""

    volumes: list[Named] | None = None


class Progress(Struct):
    """A line of what an engine says while it works."""

    stream: str = ""
    error: str = ""


class Ended(Struct, rename="pascal"):
    """How a container ended."""

    status_code: int


class _State(Struct, rename="pascal"):
    oom_killed: bool = field(default=False, name="OOMKilled")


class _Driver(Struct, rename="pascal"):
    data: dict[str, str] | None = None


class Container(Struct, rename="pascal"):
    """What an engine says of a container."""

    state: _State
    graph_driver: _Driver = field(default_factory=_Driver)

    @property
    def upper(self) -> str:
        """The directory, on the engine's machine, of what the container has above its image."""
        return (self.graph_driver.data or {}).get("UpperDir", "")


class _VolumeUse(Struct, rename="pascal"):
    size: int = -1


class _UsedVolume(Struct, rename="pascal"):
    name: str
    usage_data: _VolumeUse | None = None


class Use(Struct, rename="pascal"):
    """What takes space."""

    volumes: list[_UsedVolume] | None = None


def decoded(data: bytes, kind: type[T]) -> T:
    """A document that an engine wrote. Unreachable if it makes no sense."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreachable(f"the engine says something that makes no sense: {error}") from error
