"""Taking results out: to a directory or as a tar stream, with owners as the step saw them."""

import os
from typing import BinaryIO

import anyio

from obuilder.engine.builder import Builder, host_directory
from obuilder.errors import UsageError
from obuilder.oci.archive import write_tar
from obuilder.system.files import copy_tree
from obuilder.system.namespaces import by_root
from obuilder.values import IdMap


async def export_tar(builder: Builder, prefix: str, file: BinaryIO) -> None:
    """Write a result as a tar archive, the same bytes for the same result."""
    async with builder.view(prefix) as root:
        path = host_directory(root)
        await anyio.to_thread.run_sync(write_tar, path, file, builder.store.idmap)


async def export_directory(builder: Builder, prefix: str, target: str) -> None:
    """Write a result into `target`, which must be missing or empty.

    As root, owners are the ids inside; an ordinary user owns everything.
    """
    if os.path.exists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UsageError(f"{target} is not an empty directory", hint="name a new directory")
    os.makedirs(target, exist_ok=True)
    owners = None if by_root() else IdMap(first=0, count=1)
    async with builder.view(prefix) as root:
        path = host_directory(root)
        await anyio.to_thread.run_sync(
            lambda: copy_tree(path, target, idmap=builder.store.idmap, onto=owners, existing="keep")
        )
