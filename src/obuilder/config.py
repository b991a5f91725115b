"""Settings from the config file, the environment and the command line, in rising order."""

import os
from typing import Any, Literal

import msgspec

from obuilder.backends.caches import parse_cache
from obuilder.backends.registry import check_sandbox
from obuilder.engine.settings import CacheMode, Images, Keep, RsyncMode, Settings
from obuilder.errors import ConfigError, UsageError
from obuilder.oci.platforms import parse_platform
from obuilder.values import CacheSettings, Limits, Pull, RegistrySettings


class FileConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """What a config file may say. Sizes are bytes, times seconds."""

    store: str | None = None
    rsync_mode: RsyncMode | None = None
    sandbox: str | None = None
    runtime: str | None = None
    fast_sync: bool | None = None
    nested_userns: bool | None = None
    no_new_privileges: bool | None = None
    ca_bundle: bool | None = None
    isolation: Literal["default", "process", "hyperv"] | None = None
    keep_failed: bool | None = None
    keep: Keep | None = None
    parallel: int | None = None
    pull: Pull | None = None
    platform: str | None = None
    locked: bool | None = None
    registries: dict[str, RegistrySettings] | None = None
    cache_from: tuple[str, ...] | None = None
    cache_to: tuple[str, ...] | None = None
    cache_mode: CacheMode | None = None
    caches: dict[str, CacheSettings] | None = None
    sign_key: str | None = None
    builder_id: str | None = None
    cluster: str | None = None
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    timeout: float | None = None
    log: int | None = None


_LISTS = ("cache_from", "cache_to")
"""What has several words in a variable."""


def default_store() -> str:
    """The store of who names none: the machine's for root, one's own else."""
    if os.geteuid() == 0:
        return "overlayfs:/var/lib/obuilder"
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return f"overlayfs:{data}/obuilder"


def _files() -> list[str]:
    named = os.environ.get("OBUILDER_CONFIG")
    if named:
        return [named]
    own = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return ["/etc/obuilder/config.toml", f"{own}/obuilder/config.toml"]


def _read(path: str) -> FileConfig | None:
    try:
        with open(path, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        if os.environ.get("OBUILDER_CONFIG") == path:
            raise ConfigError(f"there is no config file {path}") from None
        return None
    except OSError as error:
        raise ConfigError(f"can't read the config file {path}: {error.strerror}") from error
    try:
        return msgspec.toml.decode(text, type=FileConfig)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"the config file {path} is wrong: {error}") from error


def _environment() -> FileConfig:
    known = {field.encode_name.replace("-", "_") for field in msgspec.structs.fields(FileConfig)}
    found: dict[str, Any] = {}
    for variable, value in os.environ.items():
        name = variable.removeprefix("OBUILDER_").lower()
        if name != variable.lower() and name in known:
            found[name.replace("_", "-")] = value.split() if name in _LISTS else value
    try:
        return msgspec.convert(found, FileConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"an OBUILDER_ variable is wrong: {error}") from error


def layers(given: FileConfig) -> list[tuple[str, FileConfig]]:
    """Where settings come from, the later the stronger, each with what it says. ConfigError."""
    found = [(path, config) for path in _files() if (config := _read(path)) is not None]
    return [*found, ("environment", _environment()), ("options", given)]


def merged(given: FileConfig) -> dict[str, tuple[object, str]]:
    """Every setting that is set somewhere, and where. ConfigError."""
    found: dict[str, tuple[object, str]] = {"store": (default_store(), "default")}
    for source, layer in layers(given):
        for name, value in msgspec.structs.asdict(layer).items():
            if name in ("registries", "caches") and value is not None:
                before: dict[str, object] = found.get(name, ({}, ""))[0]  # type: ignore[assignment] # as here
                found[name] = ({**before, **value}, source)
            elif value is not None:
                found[name] = (value, source)
    return found


def load(given: FileConfig) -> Settings:
    """The settings; `given` is what the command line says. ConfigError, UnknownBackend."""
    values: dict[str, Any] = {name: value for name, (value, _) in merged(given).items()}
    limits = Limits(
        memory=values.pop("memory", None), cpus=values.pop("cpus", None),
        pids=values.pop("pids", None), seconds=values.pop("timeout", None),
        log=values.pop("log", None),
    )  # fmt: skip
    platform = values.pop("platform", None)
    images = Images(
        pull=values.pop("pull", "missing"),
        platform=None if platform is None else parse_platform(platform),
    )
    values.pop("locked", None)  # by which file, only who has a spec can tell
    for name in _LISTS:
        values[name] = tuple(parse_cache(text).name for text in values.get(name, ()))
    values["caches"] = {
        name if name == "*" else parse_cache(name).name: said
        for name, said in values.get("caches", {}).items()
    }
    for name in (
        "sign_key",
        "builder_id",
        "cluster",
    ):  # for results that go out, and other machines
        values.pop(name, None)
    limits = limits.over(Settings().limits)
    settings = Settings(**values, limits=limits, images=images)  # FileConfig has checked them
    if given.rsync_mode is not None and not settings.named_store.startswith("rsync+"):
        raise UsageError("--rsync-mode is for a store of the kind rsync")
    settings.directory  # noqa: B018 # says at once what is wrong with the store's name
    check_sandbox(settings.sandbox)
    return settings
