"""The places that a runtime made in a root to mount something there, taken away after the step.

An engine removes nothing from a container that ended, so a layer says that they are gone.
"""

import posixpath
import tarfile
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import BinaryIO

from obuilder.backends.docker import podman
from obuilder.backends.docker.archives import resolved
from obuilder.backends.docker.engine import Engine
from obuilder.backends.docker.model import Change
from obuilder.oci.streams import read_tar

_ADDED = 1


def left_behind(places: Iterable[str], changes: Sequence[Change], cwd: str) -> list[str]:
    """What was made for the sake of `places` alone: the topmost paths, sorted.

    Where a step started is made too, but for good.
    """
    added = {change.path for change in changes if change.kind == _ADDED}
    gone = set[str]()
    for place in sorted(places, key=len, reverse=True):
        at = place
        while at in added and not _within(cwd, at):
            below = {change.path for change in changes if _within(change.path, at)}
            if below - gone - {at}:
                break
            gone.add(at)
            at = posixpath.dirname(at)
    return sorted(place for place in gone if posixpath.dirname(place) not in gone)


def _within(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


async def without(
    engine: Engine, container: str, targets: Collection[str], changes: Sequence[Change],
    own: Sequence[Change], *, upper: str, cwd: str,
) -> Callable[[BinaryIO], None] | None:  # fmt: skip
    """What writes a layer that takes away what was made to mount at `targets`; None: nothing was.

    `own` are files that the engine made besides, which `changes` does not tell of. `container` is
    one of what the step left, and never ran. `upper`, if the engine's archives lose owners, is the
    directory of the step's container.
    """
    known = dict[str, str]()
    places = [await resolved(engine, container, target, known) for target in targets]
    also = list[Change]()
    for change in own:
        parent, file = posixpath.split(change.path)
        place = posixpath.join(await resolved(engine, container, parent, known), file)
        also.append(Change(place, change.kind))
    places += [change.path for change in also]
    start = await resolved(engine, container, cwd, known)
    gone = left_behind(places, [*changes, *also], start)
    if not gone:
        return None
    parents = {parent: None for place in gone for parent in _above(place)}
    headers = [
        podman.header(upper, parent) if upper else await _header(engine, container, parent)
        for parent in parents
    ]
    return partial(_write, headers, gone)


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:size]) for size in range(2, len(parts))]


async def _header(engine: Engine, container: str, path: str) -> tarfile.TarInfo:
    """A directory's attributes, which a layer has to tell of whatever it has something in."""
    answer = engine.reading(container, path)

    def work() -> tarfile.TarInfo:
        with answer, read_tar(answer.file()) as tar:
            member = tar.next()
            assert member is not None
            return member

    found = await engine.streamed(work, answer)
    found.name = path.lstrip("/")
    return found


def _write(headers: list[tarfile.TarInfo], gone: list[str], file: BinaryIO) -> None:
    with tarfile.open(
        fileobj=file, mode="w", format=tarfile.PAX_FORMAT,
        encoding="utf-8", errors="surrogateescape",
    ) as tar:  # fmt: skip
        for header in headers:
            tar.addfile(header)
        for place in gone:
            folder, name = posixpath.split(place)
            tar.addfile(tarfile.TarInfo(posixpath.join(folder, f".wh.{name}").lstrip("/")))
