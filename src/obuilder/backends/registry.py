"""Which store goes with which sandbox: names to back ends, opened and paired."""

from obuilder.backends.protocols import Sandbox, Store
from obuilder.errors import BackendMismatch, UnknownBackend
from obuilder.values import IdMap


async def open_store(kind: str, directory: str, idmap: IdMap, *, session: str) -> Store:
    """Open the store of that kind in `directory`. UnknownBackend, BackendUnavailable, StoreError."""
    if kind == "overlayfs":
        from obuilder.backends.stores.overlay import OverlayStore

        return await OverlayStore.open(directory, idmap, session=session)
    if kind == "btrfs":
        from obuilder.backends.stores.btrfs import BtrfsStore

        return await BtrfsStore.open(directory, idmap, session=session)
    raise UnknownBackend(f"there is no store called {kind!r}")


def check_pair(store: Store, sandbox: Sandbox) -> None:
    """BackendMismatch: the sandbox can't work on what the store produces."""
    if store.produces not in sandbox.accepts:
        accepted = ", ".join(sorted(kind.__name__ for kind in sandbox.accepts))
        raise BackendMismatch(
            f"the store makes a {store.produces.__name__}, the sandbox works on: {accepted}"
        )
