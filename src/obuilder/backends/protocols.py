"""The three seams of obuilder, and the values that pass through them.

A store makes, keeps and drops snapshots; a sandbox runs commands and moves files in and out of a
root; a fetcher turns an image's name into layers. Index, logs, in-flight sharing, locks, cache
volumes, prune and recovery are written once above them (`obuilder.engine`).

The seam carries what a root file system *is* (a tagged value), never a bare path.

Awaiting: a method that only makes system calls of a millisecond may do so at once; whatever walks
trees or waits for a program goes to a thread or awaits. Methods that cancelling interrupts leave
nothing behind.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import BinaryIO, ClassVar, Protocol

from msgspec import Struct

from obuilder.oci.archive import Upper
from obuilder.plan.model import Base
from obuilder.spec.model import Tmpfs
from obuilder.system.tree import Manifest
from obuilder.values import IdMap, Key, Limits, Platform, Policy, UnixUser, User


class HostDir(Struct, frozen=True, tag="dir"):
    """A directory of this machine, seen from the process's own mount namespace.

    What a step mounts may be a file as well.
    """

    path: str


class EngineImage(Struct, frozen=True, tag="image"):
    """An image of a container engine."""

    ref: str


class EngineVolume(Struct, frozen=True, tag="volume"):
    """A volume of a container engine: what steps mount there."""

    name: str


class DiskImage(Struct, frozen=True, tag="disk"):
    """A virtual machine's disk."""

    path: str
    format: str


class Datasets(Struct, frozen=True, tag="zfs"):
    """ZFS datasets that together are a root."""

    names: tuple[str, ...]


class LayerChain(Struct, frozen=True, tag="hcs"):
    """Windows layers, the newest first."""

    layers: tuple[str, ...]


Root = HostDir | EngineImage | EngineVolume | DiskImage | Datasets | LayerChain


class Usage(Struct, frozen=True):
    """Bytes: what the store's results take (None: not known cheaply), what is free and in all."""

    used: int | None
    free: int
    total: int


class Draft(Protocol):
    """A root that is being made. Leaving its `begin` without `commit` drops it."""

    root: Root

    async def commit(self, meta: bytes, *, key: Key | None = None) -> None:
        """Publish under the draft's key, with `meta` kept beside it; the root is gone after.

        With `key`, publish under that one instead: what is kept of a failed step.

        What is published never changes: StoreBusy if somebody still holds a writable
        descriptor of the root (see `Store.guarded`). If the key was published by somebody else
        meanwhile, theirs stays and this draft is dropped without an error.
        """


class Store(Protocol):
    """Keeps snapshots by key. Any number of processes share one store.

    `directory` is where the engine keeps what goes with the results (index, logs, locks); the
    store's own files are beside it under names of their own. `session` names the session
    (`system.sessions`) that owns this opening's drafts; who opens the store opens and ends it.
    """

    produces: ClassVar[type]
    guarded: ClassVar[bool]
    """Whether the kernel keeps others off: views can't be written to, device files don't work in
    drafts, and `commit` sees writable descriptors. Where not, views and what is published are
    copies, so that all the same nothing that is published changes."""
    directory: str
    idmap: IdMap
    session: str

    def begin(self, key: Key, *, base: Key | None) -> AbstractAsyncContextManager[Draft]:
        """A draft for `key`: a writable copy of `base`'s root, or an empty one.

        SnapshotMissing if there is no `base`. Drafts are named per attempt and owned by this
        process's session: two processes may have drafts of one key. StoreFull on ENOSPC.
        """

    def view(self, key: Key) -> AbstractAsyncContextManager[Root]:
        """The root of `key`, read-only, for as long as the context lasts."""

    def files(
        self, root: Root, *, only: tuple[str, ...] | None = None, write: bool = False
    ) -> AbstractAsyncContextManager[str]:
        """A draft's or a view's root as a directory of this machine; owners are `idmap`'s.

        It may be a copy, made for as long as the context lasts. With `only`, that has no more than
        what is at these paths, and on the way to them. With `write`, what is changed in it is
        changed in the root once the context ends without an error.
        """

    def volume(
        self, key: Key, *, base: Key | None, owner: User
    ) -> AbstractAsyncContextManager[Draft]:
        """As `begin`, for a root that steps mount. The top directory, and that alone, is `owner`'s."""

    async def shared(self, place: str, owner: User) -> Root:
        """The one root of that name which steps mount to see each other's changes. Made if missing.

        The top directory is `owner`'s. No key has it, and nothing pins it.
        """

    async def remove_shared(self, place: str) -> None:
        """Remove what `shared` made, with all that is in it; no error if it is not there."""

    def touched(self, key: Key, *, base: Key) -> Upper | None:
        """Where `key` may differ from `base`, if the store knows; good while a view of `key` lasts."""

    async def contains(self, key: Key) -> bool:
        """Whether `key` is published."""

    async def delete(self, key: Key) -> None:
        """Drop `key`; no error if it is not there. Results made from it stay whole."""

    async def compact(self, key: Key) -> None:
        """Free what is kept for `key` although it shows none of it: what results had that are deleted.

        It shows the same after. No error if there is no `key`, or nothing to free.
        """

    async def keys(self) -> list[Key]:
        """All that is published, in no order."""

    async def meta(self, key: Key) -> bytes:
        """What `commit` was given. SnapshotMissing."""

    async def usage(self) -> Usage:
        """Space, as the file system tells it."""

    async def size(self, key: Key) -> int:
        """Bytes that only `key` adds to what it was made from."""

    async def sync(self) -> None:
        """All that was committed before this call survives a power cut after it."""

    async def recover(self) -> None:
        """Drop the drafts of sessions that are no more. Foreign files are never touched."""

    async def close(self) -> None:
        """Let go of mounts and descriptors."""


class StoreClass(Protocol):
    """What the registry opens stores with."""

    produces: type

    def prepare(self, directory: str) -> None:
        """Make the store's directory, if there is none, where it outlives this process.

        Called before the process enters namespaces of its own. BackendUnavailable, StoreError.
        """

    async def open(self, directory: str, idmap: IdMap, *, session: str) -> Store:
        """Open, or make, the store in `directory`. BackendUnavailable, StoreError."""

    def grounds(self, near: str) -> list[str]:
        """Where stores of this kind can be tried: what stands before /NAME in KIND:PLACE.

        The best first: what is on the file system of the directory `near` (there may be none yet),
        then what else this machine has that is made for them. BackendUnavailable.
        """

    async def discard(self, directory: str) -> None:
        """Undo `prepare`: a store that nobody has open is no more, with all that is in it.

        Called in a process of its own, which has entered no namespaces and may. StoreError.
        """


class Mount(Struct, frozen=True):
    """A root of a kind that the sandbox can mount, seen by a step at `target`."""

    source: Root
    target: str
    readonly: bool = False


class SecretFile(Struct, frozen=True):
    """A secret's value and the file that shows it, on memory: for `owner`, else the step's user.

    With `env` it is the value of that variable and there is no file; it is on no disk either.
    """

    target: str
    value: bytes
    owner: UnixUser | None = None
    permissions: int = 0o400
    env: str = ""


class Command(Struct, frozen=True):
    """What a sandbox runs. `env` is the whole environment; `cwd` is absolute."""

    argv: tuple[str, ...]
    cwd: str
    user: User
    env: tuple[tuple[str, str], ...] = ()
    network: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    secrets: tuple[SecretFile, ...] = ()
    limits: Limits = Limits()
    hostname: str = "builder"
    tmpfs: tuple[Tmpfs, ...] = ()
    """Empty directories on memory: a sandbox without the feature refuses them."""
    insecure: bool = False
    """With every power that the sandbox's user namespace has, and no system call filtered."""


class Exit(Struct, frozen=True):
    """How a command ended: its status (128 + signal for a signal), and what ended it."""

    status: int
    timed_out: bool = False
    out_of_memory: bool = False


class Features(Struct, frozen=True):
    """What a sandbox can do. A spec that needs more is refused before it starts."""

    users: bool
    networks: frozenset[str]
    """What `(network …)` of a run may say; the empty text: that it may say nothing, and then has
    no network (but for a sandbox that keeps nothing from steps, and warns of it)."""
    secrets: bool
    limits: frozenset[str]
    """Fields of `Limits` that bite here."""
    platforms: tuple[Platform, ...]
    isolation: bool
    """A step sees and reaches no process, device, file or network of the machine but those that
    it was given."""
    policies: frozenset[str]
    """Fields of `Policy` that are heeded here."""
    named_users: bool = False
    """Users by name, not by number alone; a name may have a group behind a colon."""
    secret_variables: bool = True
    """Where there are secrets, a variable can show one as well, and it is on no disk."""
    mounts: bool = False
    """Directories on memory, parts of other results, sockets of agents; `insecure` as well."""
    readonly_mounts: bool = True
    """A step can be kept from writing to a volume that it sees."""
    utf8_only: bool = False
    """Commands, variables and paths may not hold bytes that are no text."""
    places: tuple[str, ...] = ("/",)
    """A step's files are below these: where a copy may go, and what a run may start in or mount
    on. A run may start in / too."""
    domain: str = ""
    """Goes into the keys of runs, where what a step can do depends on more than its root; the
    same as in the registry's row."""
    warning: str = ""
    """What whoever starts a build should be told."""

    def holds(self, path: str) -> bool:
        """Whether a normalised path is one of the places or below one."""
        return any(f"{path}/".startswith(f"{place.rstrip('/')}/") for place in self.places)


class Sandbox(Protocol):
    """Runs commands in a root."""

    accepts: ClassVar[frozenset[type]]
    features: Features

    async def run(self, root: Root, command: Command, *, output: Callable[[bytes], None]) -> Exit:
        """Run to the end, standard input at EOF; `output` gets each piece of stdout and stderr.

        When it returns or raises (cancelled too), every process of the command is gone.
        SandboxError if the command could not be started at all.
        """

    async def enter(self, root: Root, command: Command) -> Exit:
        """Run with this process's own terminal, for a person."""

    async def put(self, root: Root, tree: Manifest, source: Root, *, to: str, owner: User) -> None:
        """Copy in what `tree` lists from `source`; no program of the image is needed.

        `to` is an absolute path inside; symlinks on the way are followed inside the root and
        never out of it. Content is hashed while it is copied: CopyError if it is not what the
        manifest says. Existing directories keep their owner and mode.
        """

    async def check(self) -> None:
        """BackendUnavailable: what is missing and how to get it."""

    async def describe(self) -> str:
        """One line for people: what was picked, and why."""

    async def recover(self) -> None:
        """End and remove what dead sessions left: containers, cgroups, scratch."""

    async def close(self) -> None:
        """Let go of what is kept from one step to the next."""


class SandboxClass(Protocol):
    """What the registry opens sandboxes with."""

    accepts: frozenset[type]

    async def open(self, directory: str, idmap: IdMap, *, session: str, policy: Policy) -> Sandbox:
        """Open the sandbox for a store: its directory, id map and session. BackendUnavailable."""


Progress = Callable[[int, int], None]
"""Takes how many bytes are there, and how many there will be."""


class Fetcher(Protocol):
    """Turns names of one kind into layers of files.

    One that resolves need not be closed; one that fetches may keep things from one layer to the
    next, and lets go of them in `close`.
    """

    async def resolve(self, name: str, platform: Platform) -> Base:
        """What `name` stands for now. NotFound, Denied, Unreachable, BadImage.

        Local kinds never really wait, nor does what was asked before: the cached path drives this
        without an event loop. What needs one waits once before it does anything else.
        """

    def takes(self, root: Root) -> bool:
        """Whether `fetch` can put layers into such a root itself. Into a directory it can."""

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: Root,
        idmap: IdMap,
        output: Callable[[bytes], None],
        progress: Progress | None = None,
    ) -> None:
        """Put layer `index` over what is already in `into`. DigestMismatch, BadImage.

        What is worth keeping goes to `output`; how far it got, if it takes long, to `progress`.
        """

    async def blob(self, base: Base, index: int, file: BinaryIO) -> bool:
        """Write the blob of a layer as it came to `file`. False: there is none to be had.

        As `fetch`; who asks looks whether it is the right one.
        """

    async def close(self) -> None:
        """Let go of what was kept."""
