"""Which back ends there are and which go together: names to classes, opened and paired.

A new back end is a row in one of the two tables and the file that the row names. Nothing here
imports a back end before it is used: the cached path reads the tables alone.
"""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeVar

from msgspec import Struct

from obuilder.errors import BackendMismatch, StoreError, UnknownBackend, UsageError, of_disk
from obuilder.values import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.backends.protocols import Sandbox, SandboxClass, Store, StoreClass


class BackEnd(Struct, frozen=True):
    """A row: where the class is (MODULE:CLASS), and what it is in a few words for people."""

    target: str
    summary: str

    def form(self, kind: str) -> str:
        """How a back end of this kind is written."""
        return kind


class StoreKind(BackEnd, frozen=True):
    """A store's row; `target` is a `StoreClass`. `place` is what stands after KIND and a colon.

    It is an absolute path, or a name of the back end's own (a pool, say): what the engine keeps
    beside a store called NAME is in the directory /NAME, or the one called `below` in there.
    """

    place: Literal["path", "name"] = "path"
    below: str = ""

    def form(self, kind: str) -> str:
        """KIND:PLACE."""
        return f"{kind}:/path" if self.place == "path" else f"{kind}:NAME"


class SandboxKind(BackEnd, frozen=True):
    """A sandbox's row; `target` is a `SandboxClass`, `domain` that of its `Features`."""

    domain: str = ""


Row = TypeVar("Row", bound=BackEnd)

STORES = {
    "overlayfs": StoreKind(
        "obuilder.backends.stores.overlay:OverlayStore", "overlay layers, on any Linux file system"
    ),
    "btrfs": StoreKind("obuilder.backends.stores.btrfs:BtrfsStore", "snapshots of btrfs"),
    "xfs": StoreKind(
        "obuilder.backends.stores.trees:XfsStore", "trees of files that share blocks: XFS, bcachefs"
    ),
    "rsync+copy": StoreKind(
        "obuilder.backends.stores.trees:RsyncCopyStore", "trees that share no file"
    ),
    "rsync+hardlink": StoreKind(
        "obuilder.backends.stores.trees:RsyncLinkStore", "trees that share the files that are alike"
    ),
    "rsync+hardlink_unsafe": StoreKind(
        "obuilder.backends.stores.trees:RsyncUnsafeLinkStore", "the same, alike by size and time"
    ),
    "copy": StoreKind("obuilder.backends.stores.trees:CopyStore", "copies, on any file system"),
    "zfs": StoreKind(
        "obuilder.backends.stores.zfs:ZfsStore",
        "snapshots of ZFS, in a pool or a dataset of it",
        place="name",
        below="state",
    ),
}

SANDBOXES = {
    "oci": SandboxKind(
        "obuilder.backends.sandboxes.oci:OciSandbox", "crun, runc or runsc, in namespaces"
    ),
    "users": SandboxKind(
        "obuilder.backends.sandboxes.users:UsersSandbox",
        "as users of the machine, with its programs",
        domain="users",
    ),
    "host": SandboxKind(
        "obuilder.backends.sandboxes.host:HostSandbox", "with no isolation at all", domain="host"
    ),
}
"""Where none is asked for, the first that fits the store is taken: never one that has a domain."""


def parse_store(text: str) -> tuple[str, str]:
    """Kind and absolute directory of KIND:PLACE. UnknownBackend, UsageError."""
    kind, _, place = text.partition(":")
    row = _row(STORES, "store", kind)
    if place.startswith("/") or (place and row.place == "name"):
        return kind, os.path.normpath(f"/{place.strip('/')}/{row.below}")
    if row.place == "name":
        raise UsageError(f"the store {text!r} needs a name", hint=f"for example {kind}:tank")
    raise UsageError(
        f"the store {text!r} needs an absolute path", hint=f"for example {kind}:/var/lib/obuilder"
    )


def check_sandbox(kind: str | None) -> None:
    """UnknownBackend: nobody knows a sandbox of that name."""
    if kind is not None:
        _row(SANDBOXES, "sandbox", kind)


def domain_of(kind: str | None) -> str:
    """What a sandbox of that kind adds to the keys of runs. UnknownBackend."""
    return "" if kind is None else _row(SANDBOXES, "sandbox", kind).domain


def store_class(kind: str) -> "StoreClass":
    """The class of a kind of store. UnknownBackend."""
    found: StoreClass = load(_row(STORES, "store", kind).target)
    return found


def sandbox_class(kind: str) -> "SandboxClass":
    """The class of a kind of sandbox. UnknownBackend."""
    found: SandboxClass = load(_row(SANDBOXES, "sandbox", kind).target)
    return found


def pairs() -> list[tuple[str, str]]:
    """Every store with every sandbox that works on what it makes."""
    return [
        (store, sandbox)
        for store in STORES
        for sandbox in SANDBOXES
        if store_class(store).produces in sandbox_class(sandbox).accepts
    ]


def check_pair(store: "Store", sandbox: "Sandbox") -> None:
    """BackendMismatch: the sandbox can't work on what the store makes."""
    if store.produces not in sandbox.accepts:
        raise _mismatch(store.produces, f"{type(sandbox).__name__} does not work")


@asynccontextmanager
async def opened(
    store: str, sandbox: str | None, policy: Policy
) -> AsyncIterator[tuple["Store", "Sandbox"]]:
    """The store that KIND:PLACE names, and a sandbox for it: of the kind asked for, or that fits.

    The process enters namespaces of its own (`system.namespaces`), and has a session on the store
    for as long as the context lasts. UnknownBackend, BackendMismatch, BackendUnavailable,
    StoreError.
    """
    from obuilder.system.namespaces import enter, passable
    from obuilder.system.sessions import open_session

    kind, directory = parse_store(store)
    store_kind = store_class(kind)
    sandbox_kind = _fitting(sandbox, store_kind.produces)
    store_kind.prepare(directory)
    idmap = enter()
    if not os.access(directory, os.W_OK):
        raise StoreError(
            f"the store {directory} can't be written to",
            hint="a store is for the user who made it: run obuilder as them, or name another",
        )
    directory = passable(directory, idmap)
    try:
        session = open_session(directory)
    except OSError as error:
        raise of_disk(f"can't open the store {directory}", error) from error
    try:
        async with AsyncExitStack() as stack:
            opened_store = await store_kind.open(directory, idmap, session=session.name)
            stack.push_async_callback(_close, opened_store)
            opened_sandbox = await sandbox_kind.open(
                directory, idmap, session=session.name, policy=policy
            )
            stack.push_async_callback(_close, opened_sandbox)
            yield opened_store, opened_sandbox
    finally:
        session.close()


async def _close(back_end: "Store | Sandbox") -> None:
    import anyio

    with anyio.CancelScope(shield=True):
        await back_end.close()


def load(target: str) -> Any:
    """The class that MODULE:CLASS names."""
    from importlib import import_module

    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _row(table: Mapping[str, Row], what: str, kind: str) -> Row:
    try:
        return table[kind]
    except KeyError:
        known = ", ".join(f"{row.form(name)} ({row.summary})" for name, row in table.items())
        raise UnknownBackend(
            f"there is no {what} called {kind!r}", hint=f"there is: {known}"
        ) from None


def _fitting(kind: str | None, produces: type) -> "SandboxClass":
    """The sandbox of that kind, or the first, that works on what a store makes."""
    for found in map(sandbox_class, SANDBOXES if kind is None else (kind,)):
        if produces in found.accepts:
            return found
    raise _mismatch(produces, "no sandbox works" if kind is None else f"{kind} does not work")


def _mismatch(produces: type, what: str) -> BackendMismatch:
    return BackendMismatch(
        f"{what} on what the store makes, a {produces.__name__}",
        hint="what goes together: " + ", ".join(f"{store} with {box}" for store, box in pairs()),
    )
