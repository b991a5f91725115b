"""What a builder is told before it opens: one value, made from flags, environment and file."""

import os
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from obuilder.backends.registry import domain_of, parse_store
from obuilder.errors import UsageError
from obuilder.plan.model import Plan
from obuilder.values import CacheSettings, Key, Limits, Platform, Policy, Pull, RegistrySettings

TYPE_CHECKING = False
if TYPE_CHECKING:  # most builds have no such file
    from obuilder.engine.lockfile import Lock


class Images(Struct, frozen=True):
    """Which base images the names of a build stand for."""

    pull: Pull = "missing"
    """When registries are asked."""
    platform: Platform | None = None
    """What the images are for; None: this machine, and whatever local images are for."""
    lock: "Lock | None" = None
    """The only images there may be."""


Keep = Literal["all", "stages"]
CacheMode = Literal["max", "min"]
RsyncMode = Literal["copy", "hardlink", "hardlink_unsafe"]


class Settings(Policy, frozen=True, kw_only=True):
    """How to build. The defaults are one's own builds on one's own machine."""

    store: str | None = None
    """KIND:PLACE, as on the command line; None where an open store is handed over."""
    rsync_mode: RsyncMode | None = None
    """What a store that is called rsync is: rsync+MODE."""
    sandbox: str | None = None
    """The kind of sandbox; None: the first that works on what the store makes."""
    limits: Limits = Limits(pids=1024, log=64 << 20)
    """For steps that do not say; a step's own limits go over these."""
    images: Images = Images()
    """For builds that do not say."""
    registries: Mapping[str, RegistrySettings] = {}
    """How registries are asked, by HOST[:PORT]."""
    cache_from: tuple[str, ...] = ()
    """Caches in other places that are asked for results, in this order."""
    cache_to: tuple[str, ...] = ()
    """Caches in other places that results are sent to."""
    cache_mode: CacheMode = "max"
    """What is sent: what every step comes to (max), or the build's result alone (min)."""
    caches: Mapping[str, CacheSettings] = {}
    """How caches are used, by their names; `*` stands for those that are not named."""
    keep_failed: bool = True
    """Keep the root of a failed step, to be entered."""
    keep: Keep = "all"
    """Which results stay after a build: all, or those of base images and the last of each stage."""
    insecure: bool = False
    """Let specs ask for steps that are run insecurely."""
    agents: tuple[tuple[str, str], ...] = ()
    """Agents of SSH keys for steps: their ids and sockets."""
    parallel: int | None = None
    """Steps at one time; None: one for each core, and at least two."""

    @property
    def directory(self) -> str:
        """The directory of the store and of what the engine keeps beside it."""
        return parse_store(self.named_store)[1]

    @property
    def domain(self) -> str:
        """What the sandbox adds to the keys of runs. UnknownBackend."""
        return domain_of(self.sandbox)

    @property
    def named_store(self) -> str:
        """KIND:PLACE. UsageError if no store is named."""
        if self.store is None:
            raise UsageError("no store is named", hint="for example overlayfs:/var/lib/obuilder")
        kind, _, place = self.store.partition(":")
        if kind != "rsync":
            return self.store
        if self.rsync_mode is None:
            raise UsageError(
                "the store rsync needs a mode",
                hint="add --rsync-mode copy, hardlink or hardlink_unsafe, or write rsync+copy:/path",
            )
        return f"rsync+{self.rsync_mode}:{place}"

    def passing(self, plan: Plan) -> set[Key]:
        """The keys of a plan's steps whose results do not stay."""
        return plan.passing if self.keep == "stages" else set()

    def cache(self, name: str) -> CacheSettings:
        """How the cache of that name is used."""
        return self.caches.get(name, self.caches.get("*", CacheSettings()))

    @property
    def width(self) -> int:
        """Steps at one time."""
        return self.parallel or max(2, len(os.sched_getaffinity(0)))
