"""Whole trees: what results are for XFS, rsync and plain copying.

A result is a layer that is a whole tree. Where the kernel has overlays, up to 15 steps after a tree
are kept as what each of them changed, and the next one is a tree again: a draft then costs nothing,
and making a tree is shared between 16 steps. The files of such a tree are links to those of the
layers, which nobody writes to; or copies, for who wants every tree to stand alone.

Without overlays a draft is a copy of a tree, and what is published is made of the draft's files
anew: whoever still holds a descriptor of the draft can't reach the result.
"""

import errno
import fcntl
import os
from functools import partial
from typing import ClassVar, Literal, Self, final

import anyio.from_thread
import anyio.to_thread

from obuilder.backends.stores.directory import detach, disk_bytes, translated
from obuilder.backends.stores.layers import Chain, LayerDraft, LayerStore, Made
from obuilder.backends.stores.placing import Alike, Copies, Item, Place, link
from obuilder.errors import BackendUnavailable, StoreError, StoreFull
from obuilder.system.files import too_deep
from obuilder.values import IdMap

_BETWEEN = 15
_FICLONE = 0x40049409


class TreeStore(LayerStore):
    """What stores of trees have in common."""

    overlays: ClassVar[bool] = True
    """Whether to use overlays where the kernel has them."""
    links: ClassVar[bool]
    """Whether the files of trees are links where that is safe."""
    alike: ClassVar[Literal["content", "time"] | None] = None
    """How a file of a draft is found to be the base's, to be linked to it; None: it is copied."""

    def __init__(self, directory: str, idmap: IdMap, session: str) -> None:
        super().__init__(directory, idmap, session)
        self._stacking = self.overlays

    @classmethod
    async def open(cls, directory: str, idmap: IdMap, *, session: str) -> Self:
        """Open, or make, the store. BackendUnavailable, StoreError."""
        store = cls(directory, idmap, session)
        store._prepare()
        try:
            store._check()
            await store._try()
        except BaseException:
            await store.close()
            raise
        return store

    def _check(self) -> None:
        """BackendUnavailable: this file system lacks what the kind of store is for."""

    async def _try(self) -> None:
        if self._stacking:
            try:
                await super()._try()
            except StoreFull:
                raise
            except (StoreError, BackendUnavailable):
                self._stacking = False
            else:
                return
        await super()._try()

    # --- drafts and views ------------------------------------------------------------------------

    async def _start(self, draft: LayerDraft) -> None:
        if self._stacking:
            await super()._start(draft)
            return
        if draft.chain:
            await self._tree(self._paths(draft.chain), draft.upper, Copies())
        else:
            self._empty_root(draft.upper)
        self._bind(draft.upper, draft.name, readonly=False)

    async def _show(self, name: str, chain: Chain) -> None:
        if self._stacking:
            await super()._show(name, chain)
            return
        tree = self._paths(chain)[0]
        if len(chain) > 1:
            tree = self.path("drafts", name, "tree")
            await self._tree(self._paths(chain), tree, link)
        self._bind(tree, name, readonly=True)

    # --- publishing ------------------------------------------------------------------------------

    async def _finish(self, draft: LayerDraft) -> Made:
        tree = os.path.join(draft.place, "tree")
        if self._stacking:
            made = await super()._finish(draft)
            if len(made.below) > _BETWEEN:
                size = await anyio.to_thread.run_sync(disk_bytes, draft.upper)
                layers = [draft.upper, *self._paths(made.below)]
                if await self._tried(layers, tree, link if self.links else Copies()):
                    return Made(tree, [], size)
            return made
        await self._freeze(self.path("mnt", draft.name), whole=False)
        detach(self.path("mnt", draft.name))
        if self.alike is None or len(draft.chain) != 1:
            await self._tree([draft.upper], tree, Copies())
            return Made(tree, [])
        place = Alike(self._paths(draft.chain)[0], self.alike)
        try:
            await self._tree([draft.upper], tree, place)
        finally:
            place.close()
        return Made(tree, [], place.size)

    def _paths(self, chain: Chain) -> list[str]:
        return [self.path("layers", layer) for layer, _ in reversed(chain)]

    async def _tree(self, layers: list[str], target: str, place: Place) -> None:
        if not await self._tried(layers, target, place):
            raise too_deep(layers[0])

    async def _tried(self, layers: list[str], target: str, place: Place) -> bool:
        def stoppable(item: Item) -> None:
            anyio.from_thread.check_cancelled()
            place(item)

        work = partial(self._one, layers, target, below=[], place=stoppable)
        return await anyio.to_thread.run_sync(work)


@final
class XfsStore(TreeStore):
    """See `Store`. Any file system whose files can share blocks: XFS, btrfs, bcachefs."""

    kind: ClassVar[str] = "xfs"
    links: ClassVar[bool] = True

    def _check(self) -> None:
        with translated("can't try the file system"):
            one, other = (self.path("drafts", self._draft_name()) for _ in range(2))
            try:
                with open(one, "x+b") as source, open(other, "xb") as target:
                    source.write(b"x" * 4096)
                    source.flush()
                    fcntl.ioctl(target, _FICLONE, source.fileno())
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV):
                    raise
                raise BackendUnavailable(
                    f"files in {self.directory} can't share blocks: {error.strerror}",
                    hint="put the store on XFS (made with reflink=1), btrfs or bcachefs; "
                    "rsync+hardlink works on any file system",
                ) from error
            finally:
                for path in (one, other):
                    if os.path.exists(path):
                        os.unlink(path)


class RsyncStore(TreeStore):
    """What the modes of rsync have in common: results of one are results of all."""

    kind: ClassVar[str] = "rsync"


@final
class RsyncCopyStore(RsyncStore):
    """See `Store`. No two trees share a file."""

    links: ClassVar[bool] = False


@final
class RsyncLinkStore(RsyncStore):
    """See `Store`. What a step left as it was is the same file in its base's tree."""

    links: ClassVar[bool] = True
    alike: ClassVar[Literal["content", "time"] | None] = "content"


@final
class RsyncUnsafeLinkStore(RsyncStore):
    """See `Store`. A file that has the size and time of its base's is taken for the same."""

    links: ClassVar[bool] = True
    alike: ClassVar[Literal["content", "time"] | None] = "time"


@final
class CopyStore(TreeStore):
    """See `Store`. Every result is a copy: nothing is asked of the kernel or the file system."""

    kind: ClassVar[str] = "copy"
    overlays: ClassVar[bool] = False
    links: ClassVar[bool] = False
