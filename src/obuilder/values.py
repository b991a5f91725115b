"""The small values every layer speaks of: keys, ids, users, limits, platforms, positions.

Text that may hold any bytes (atoms of a spec, file names, environment) is `str` in Python's own
file-system convention: UTF-8 with undecodable bytes kept as lone surrogates (`os.fsdecode`).
"""

from typing import Literal, NewType

from msgspec import Struct

Key = NewType("Key", str)
"""What a step is known by: 64 lowercase hexadecimal digits."""


Pull = Literal["missing", "always", "never"]
"""When a registry is asked what a name stands for: if it never was, at every build, or not at all."""

OpPath = tuple[int, ...]
"""Where an op stands in a spec: the index of each nested build on the way, then the op's index.
`(…, -1)` is the `from` of that build."""


def shown(text: str) -> str:
    r"""Any text as text that can be shown and kept: bytes that are no UTF-8 as \\xNN."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Span(Struct, frozen=True):
    """A piece of a text: byte offsets [start, end), and the 1-based line and column of its start.

    Columns count characters as an editor shows them.
    """

    start: int
    end: int
    line: int
    column: int


class UnixUser(Struct, frozen=True, tag="unix"):
    """A numeric user and group, as seen inside the sandbox."""

    uid: int
    gid: int


class NamedUser(Struct, frozen=True, tag="name"):
    """A user by name: Windows containers, and sandboxes that look names up."""

    name: str


User = UnixUser | NamedUser
ROOT = UnixUser(uid=0, gid=0)


class Platform(Struct, frozen=True):
    """What an image is made for, in OCI's words."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        """The usual short form: os/architecture[/variant]."""
        parts = (self.os, self.architecture, self.variant)
        return "/".join(part for part in parts if part)


class IdMap(Struct, frozen=True):
    """How ids of the sandbox stand on disk: id `i` (0 <= i < count) is `first + i` there.

    One map for user and group ids, one per store, for ever: results are shifted once, when they
    are made, and a step costs nothing more. `count` 1 is an ordinary user without subordinate
    ids: every id inside then stands for the one id there is.
    """

    first: int
    count: int

    @property
    def single(self) -> bool:
        """Whether there is one id only, so that ownership cannot be told apart."""
        return self.count == 1

    def to_disk(self, inside: int) -> int:
        """The id on disk for an id inside. ValueError if the map does not hold it."""
        if self.single:
            return self.first
        if not 0 <= inside < self.count:
            message = f"id {inside} is outside the store's id map (0 to {self.count - 1})"
            raise ValueError(message)
        return self.first + inside

    def to_inside(self, on_disk: int) -> int:
        """The id inside for an id on disk; 65534 (nobody) for one that the map does not hold."""
        inside = on_disk - self.first
        return inside if 0 <= inside < self.count else 65534


class Limits(Struct, frozen=True):
    """What a step may use. None: no limit of that kind. Limits are never part of a key."""

    memory: int | None = None
    """Bytes."""
    cpus: float | None = None
    """Cores' worth of time."""
    pids: int | None = None
    """Processes and threads at one time."""
    seconds: float | None = None
    """Wall-clock time."""
    log: int | None = None
    """Bytes of output kept: the start and the tail, with a marker between them."""

    def over(self, default: "Limits") -> "Limits":
        """These limits where they are set, else the default's."""
        return Limits(
            memory=self.memory if self.memory is not None else default.memory,
            cpus=self.cpus if self.cpus is not None else default.cpus,
            pids=self.pids if self.pids is not None else default.pids,
            seconds=self.seconds if self.seconds is not None else default.seconds,
            log=self.log if self.log is not None else default.log,
        )


class Policy(Struct, frozen=True):
    """How steps are run here, whatever their specs say. A sandbox takes what concerns it."""

    runtime: str | None = None
    """The OCI runtime by name or path; None: the best one that works here."""
    nested_userns: bool = True
    """Let a step make user namespaces of its own, as opam's bubblewrap does."""
    no_new_privileges: bool = False
    """Take setuid's power away, which also takes sudo away."""
    fast_sync: bool = True
    """Let sync calls of a step return at once: a crash drops the step anyway."""
    ca_bundle: bool = True
    """Offer the host's certificates to steps that use the host's network."""
    isolation: Literal["default", "process", "hyperv"] = "default"
    """What keeps Windows containers apart; the default is the engine's."""


class RegistrySettings(Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """How a registry is asked for images."""

    mirrors: tuple[str, ...] = ()
    """Asked first, in this order: HOST[:PORT], or a URL where it is not at the top of a host."""
    tls: Literal["verify", "unverified", "off"] | None = None
    """None: `verify`, and `off` for a registry on this machine's own loopback."""
    ca: str | None = None
    """A file of certificates that are trusted beside the machine's own."""


class CacheSettings(Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """How results are taken from a cache in another place, and sent to it."""

    trusted: bool = False
    """Whoever can write there is trusted with the secrets of steps."""
    keys: tuple[str, ...] = ()
    """Files of public keys: only what one of them signed is taken, and that is trusted."""
    sign: str | None = None
    """The file of the private key that signs what is sent."""
    required: bool = False
    """A build fails if what it made can't be sent."""
    compression: Literal["gzip", "zstd"] = "gzip"
    """Of the layers that are sent."""
    endpoint: str | None = None
    """The URL of an S3-compatible server; None: as the environment says, else Amazon's."""
    region: str | None = None
    """None: as the environment says."""

    @property
    def taken_with_secrets(self) -> bool:
        """Whether what comes from there may go with steps that see secrets."""
        return self.trusted or bool(self.keys)
