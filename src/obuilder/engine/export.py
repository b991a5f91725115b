"""Taking results out: to a directory or as a tar stream, with owners as the step saw them."""

import os
import sys
from typing import BinaryIO

import anyio

from obuilder.engine.builder import Builder
from obuilder.errors import UsageError
from obuilder.oci.archive import write_tar
from obuilder.oci.members import Manner
from obuilder.system.files import copy_tree
from obuilder.system.namespaces import by_root
from obuilder.values import IdMap

FORMS = "directory:DIR (missing or empty), tar:FILE, or - for a tar to the pipe"
"""Where a result can go, for messages."""


def check_output(output: str) -> None:
    """UsageError: a result can't be written to that."""
    kind, colon, path = output.partition(":")
    if output != "-" and (kind not in ("directory", "tar") or not colon or not path):
        raise UsageError(f"can't export to {output!r}", hint=f"write {FORMS}")


async def export(builder: Builder, prefix: str, output: str) -> None:
    """Write a result to what `output` names; see `FORMS`. UsageError, OSError."""
    check_output(output)
    kind, _, path = output.partition(":")
    if kind == "directory":
        await export_directory(builder, prefix, os.path.abspath(path))
    elif kind == "tar":
        with open(path, "wb") as file:  # nothing else runs in this loop
            await export_tar(builder, prefix, file)
    else:
        await export_tar(builder, prefix, sys.stdout.buffer)


async def export_tar(builder: Builder, prefix: str, file: BinaryIO) -> None:
    """Write a result as a tar archive, the same bytes for the same result."""
    async with builder.files(prefix) as path:
        await anyio.to_thread.run_sync(write_tar, path, file, Manner(builder.store.idmap))


async def export_directory(builder: Builder, prefix: str, target: str) -> None:
    """Write a result into `target`, which must be missing or empty.

    As root, owners are the ids inside; an ordinary user owns everything.
    """
    if os.path.exists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UsageError(f"{target} is not an empty directory", hint="name a new directory")
    os.makedirs(target, exist_ok=True)
    owners = None if by_root() else IdMap(first=0, count=1)
    async with builder.files(prefix) as path:
        await anyio.to_thread.run_sync(
            lambda: copy_tree(path, target, idmap=builder.store.idmap, onto=owners, existing="keep")
        )
