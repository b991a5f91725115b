"""Snapshots as stacks of overlay layers, on any file system that can carry an upper layer.

A step adds a layer of level 0. When the newest 16 have the same level they become one of the next
level, made of hard links, so a chain grows with the logarithm of the steps: the kernel never sees
more than some 50 layers, and a file is linked at most once for each level. The lowest layer, often
a whole image, stays as it is.
"""

import os
from typing import ClassVar, final

from obuilder.backends.stores.layers import Chain, LayerStore, new_layer
from obuilder.backends.stores.placing import link
from obuilder.errors import BackendUnavailable, StoreError, StoreFull
from obuilder.oci.archive import Upper
from obuilder.values import IdMap, Key

_FAN = 16


@final
class OverlayStore(LayerStore):
    """See `Store`. Made by `open`."""

    kind: ClassVar[str] = "overlay"
    file_systems: ClassVar[tuple[str, ...]] = ("ext4", "xfs", "btrfs")

    @classmethod
    async def open(cls, directory: str, idmap: IdMap, *, session: str) -> "OverlayStore":
        """Open, or make, the store. BackendUnavailable, StoreError."""
        store = cls(directory, idmap, session)
        store._prepare()
        try:
            await store._try()
        except StoreFull:
            await store.close()
            raise
        except (StoreError, BackendUnavailable) as error:
            await store.close()
            raise BackendUnavailable(
                f"the file system of {store.directory} can't carry overlays: {error.message}",
                hint="choose a directory on ext4, xfs, btrfs or tmpfs, which no overlay shows (as "
                "containers have for /), or the store rsync+hardlink; overlays of an ordinary user "
                "take Linux 5.11, and all of them the kernel's module overlay",
            ) from error
        except BaseException:
            await store.close()
            raise
        return store

    def touched(self, key: Key, *, base: Key) -> Upper | None:
        """See `Store`. A layer that was not made one with others yet is what the step wrote to."""
        try:
            chain, below = self._chain("results", key), self._chain("results", base)
        except FileNotFoundError:
            return None
        if chain[:-1] != below or chain[-1][1] != 0:
            return None
        return Upper(self.path("layers", chain[-1][0]), self._opaque)

    def _long(self, chain: Chain) -> bool:
        return len(chain) >= _FAN and len({level for _, level in chain[-_FAN:]}) == 1

    def _shortened(self, chain: Chain, place: str, layers: list[str]) -> Chain:
        while self._long(chain):
            paths = [self.path("layers", layer) for layer, _ in reversed(chain)]
            scratch = os.path.join(place, f"squashed{len(layers)}")
            if not self._one(paths[:_FAN], scratch, below=paths[_FAN:], place=link):
                break  # a tree too deep for that: its chain stays long
            layers.append(new_layer())
            os.rename(scratch, self.path("layers", layers[-1]))
            chain = [*chain[:-_FAN], (layers[-1], chain[-1][1] + 1)]
        return chain
