"""Containers that never run, for the sake of the files in them."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from obuilder.backends.docker.engine import Engine, dropping
from obuilder.backends.docker.names import Names
from obuilder.oci.layers import unpack
from obuilder.values import IdMap

_BUSY = frozenset({".dockerenv", "dev", "etc", "proc", "sys"})
"""Where engines put files of their own into containers."""


@asynccontextmanager
async def parked(
    engine: Engine, names: Names, name: str, image: str, *mounts: dict[str, Any]
) -> AsyncIterator[str]:
    """A container of an image that never runs."""
    container = names.thing(name)
    body = {
        "Image": image, "Entrypoint": ["-"], "Labels": names.labels,
        "HostConfig": {"NetworkMode": "none", "Mounts": list(mounts)},
    }  # fmt: skip
    try:
        await engine.create(container, body)
        yield container
    finally:
        async with dropping():
            await engine.remove(container)


def parts_of(path: str) -> list[str]:
    """The names on the way to a path."""
    return [part for part in path.split("/") if part not in ("", ".")]


def told_apart(paths: tuple[str, ...]) -> bool:
    """Whether a container shows at these paths what its image has there, and nothing else."""
    tops = [parts[0] if (parts := parts_of(path)) else "" for path in paths]
    return "" not in tops and not _BUSY.intersection(tops)


async def export_paths(
    engine: Engine, container: str, paths: tuple[str, ...], directory: str, idmap: IdMap
) -> None:
    """Put what is at these paths into the same places below an empty directory.

    A symlink on the way is put there as one, and not followed.
    """
    for path in paths:
        parts = parts_of(path)
        if ".." not in parts:  # which nobody looks for
            await _export_path(engine, container, parts, directory, idmap)


async def _export_path(
    engine: Engine, container: str, parts: list[str], directory: str, idmap: IdMap
) -> None:
    path, here = "", directory
    for depth, part in enumerate(parts, 1):
        path, here = f"{path}/{part}", os.path.join(here, part)
        found = await engine.at(container, path)
        if found is None:
            return
        if found.is_directory and depth < len(parts):
            os.makedirs(here, exist_ok=True)
            continue
        if found.is_directory or not os.path.lexists(here):
            await receive(engine, container, path, os.path.dirname(here), idmap)
        return


async def receive(engine: Engine, container: str, path: str, directory: str, idmap: IdMap) -> None:
    """Put what is at a path of a container into a directory."""
    answer = engine.reading(container, path)

    def work() -> None:
        with answer:
            unpack(answer.file(), directory, idmap, lambda _: None, whiteouts=False)

    await engine.streamed(work, answer)


async def resolved(engine: Engine, container: str, path: str, known: dict[str, str]) -> str:
    """Where a path of a container is without its symlinks; what is not there has none.

    `known` are the answers so far.
    """
    place = ""
    for part in parts_of(path):
        asked = f"{place}/{part}"
        if asked not in known:
            found = await engine.at(container, asked)
            link = found.link_target if found is not None and found.is_symlink else asked
            known[asked] = "/" + "/".join(parts_of(link))
        place = known[asked]
    return place or "/"
