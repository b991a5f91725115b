"""What an add or a mkdir puts into a draft: by obuilder itself, whatever store and sandbox there are."""

from functools import partial

import anyio.to_thread

from obuilder.backends.protocols import Draft, Store
from obuilder.backends.sandboxes.homes import account
from obuilder.engine.bindings import written_out
from obuilder.oci.additions import add as put
from obuilder.plan.model import AddAction, MkdirAction
from obuilder.system.picking import NOTHING, Selection, everything
from obuilder.values import User


async def add(
    store: Store, draft: Draft, action: AddAction, found: Selection, source: str,
    owner: User | None,
) -> None:  # fmt: skip
    """Copy what was `found` in the directory `source`, then the action's own texts.

    A named owner is looked up in the root; with none, entries keep theirs. CopyError; BadImage for
    an archive to unpack; Unsupported for an owner whom the root does not know.
    """
    async with store.files(draft.root, write=True) as root:
        user = None if owner is None else account(root, owner).user
        place = partial(
            put, root, to=action.dst, into=action.into,
            owner=None if user is None else (user.uid, user.gid),
            permissions=action.permissions, link=action.link, idmap=store.idmap,
        )  # fmt: skip
        if action.src:
            await anyio.to_thread.run_sync(lambda: place(found, source, unpack=action.unpack))
        if action.files:
            with written_out(store.directory, store.session, action.files) as folder:
                await anyio.to_thread.run_sync(
                    lambda: place(everything(folder), folder, unpack=False)
                )


async def mkdir(store: Store, draft: Draft, action: MkdirAction, owner: User) -> None:
    """Make a directory, and those above it, unless it is there. CopyError."""
    async with store.files(draft.root, write=True) as root:
        user = account(root, owner).user
        await anyio.to_thread.run_sync(
            lambda: put(
                root, NOTHING, root, to=action.path, into=True, owner=(user.uid, user.gid),
                permissions="", link=False, unpack=False, idmap=store.idmap,
            )
        )  # fmt: skip
