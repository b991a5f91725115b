"""What a builder is told before it opens: one value, made from flags, environment and file."""

import os

from msgspec import Struct

from obuilder.errors import UnknownBackend, UsageError
from obuilder.values import Limits


class Settings(Struct, frozen=True, kw_only=True):
    """How to build. The defaults are one's own builds on one's own machine."""

    store: str
    """KIND:PLACE, as on the command line."""
    runtime: str | None = None
    """The OCI runtime by name or path; None: the best one that works here."""
    fast_sync: bool = True
    """Let sync calls of a step return at once: a crash drops the step anyway."""
    nested_userns: bool = True
    """Let a step make user namespaces of its own, as opam's bubblewrap does."""
    no_new_privileges: bool = False
    """Take setuid's power away, which also takes sudo away."""
    ca_bundle: bool = True
    """Offer the host's certificates to steps that use the host's network."""
    limits: Limits = Limits(pids=1024, log=64 << 20)
    """For steps that do not say; a step's own limits go over these."""
    keep_failed: bool = True
    """Keep the root of a failed step, to be entered."""
    parallel: int | None = None
    """Steps at one time; None: one for each core, and at least two."""

    @property
    def directory(self) -> str:
        """The directory of the store and of what the engine keeps beside it."""
        return parse_store(self.store)[1]

    @property
    def width(self) -> int:
        """Steps at one time."""
        return self.parallel or max(2, len(os.sched_getaffinity(0)))


STORE_KINDS = ("overlayfs", "btrfs")


def parse_store(text: str) -> tuple[str, str]:
    """Kind and absolute directory of KIND:PLACE. UnknownBackend, UsageError."""
    kind, colon, place = text.partition(":")
    if kind not in STORE_KINDS:
        raise UnknownBackend(
            f"there is no store called {kind!r}",
            hint="stores are: " + ", ".join(f"{name}:/path" for name in STORE_KINDS),
        )
    if not colon or not place.startswith("/"):
        raise UsageError(
            f"the store {text!r} needs an absolute path",
            hint=f"for example {kind}:/var/lib/obuilder",
        )
    return kind, os.path.normpath(place)
