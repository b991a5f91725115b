"""What podman does otherwise than Docker, whose API it has.

It puts files of its own into the root of what runs. It, and its runtime, may follow links out of the
root that stand for /dev, say, or for where a step starts.
"""

import os
import tarfile

from obuilder.backends.docker.api import Refused
from obuilder.backends.docker.archives import parts_of, resolved
from obuilder.backends.docker.engine import Engine
from obuilder.backends.docker.model import Change, Info
from obuilder.errors import SandboxError
from obuilder.oci.streams import read_tar
from obuilder.system import linux

_FIXED = ("dev", "etc", "proc", "sys")
_OWN = ("hostname", "hosts", "mtab", "resolv.conf")
_MARK = "/run/.containerenv"


def misses_memory(info: Info) -> bool:
    """Whether the engine does not always tell that the memory limit ended a step.

    Where controllers stand in hierarchies of version 1, podman's monitor hears of it too late.
    """
    return info.podman and info.cgroup_version == "1"


async def vetted(engine: Engine, container: str, cwd: str) -> tuple[str, list[Change]]:
    """Look at a root before it is run: `container` has it, and never runs.

    Where `cwd` is without symlinks, which podman would follow out of the root when it makes the
    directory, and the changes that it is going to make itself and to tell nobody of. SandboxError
    if what is in the root must not be run.
    """
    start = await resolved(engine, container, cwd, {})
    parts = parts_of(start)
    await _refuse_links(engine, container, *("/".join(parts[: n + 1]) for n in range(len(parts))))
    return start, await _lacking(engine, container)


async def _lacking(engine: Engine, container: str) -> list[Change]:
    there = await _names(engine, container, "/etc")
    places = [f"/etc/{name}" for name in _OWN if name not in there]
    if await engine.at(container, _MARK) is None:
        places.append(_MARK)
    return [Change(place, 1) for place in places]


def header(upper: str, path: str) -> tarfile.TarInfo:
    """What a directory is like that a step's container has: podman's archives lose its owner.

    `upper` is where the container's own files are; it has to be of this machine. OSError.
    """
    top = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        inside = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS
        fd = linux.openat2(path.lstrip("/"), os.O_PATH | os.O_DIRECTORY, at=top, resolve=inside)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
    finally:
        os.close(top)
    info = tarfile.TarInfo(path.lstrip("/"))
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, status.st_mode & 0o7777, status.st_mtime
    info.uid, info.gid = status.st_uid, status.st_gid
    return info


async def _refuse_links(engine: Engine, container: str, *more: str) -> None:
    """Try to make directories, which an engine refuses where something else is, or a link."""
    archive = []
    for name in (*_FIXED, *more):
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.append(info.tobuf(tarfile.PAX_FORMAT))
    try:
        await engine.put(container, "/", [*archive, bytes(1024)])
    except Refused as error:
        places = ", ".join(f"/{name}" for name in (*_FIXED, *more))
        raise SandboxError(
            f"one of {places} in the image is a file, or a link that leads nowhere in it",
            hint="podman would follow such a link out of the image: make a directory there",
        ) from error


async def _names(engine: Engine, container: str, path: str) -> set[str]:
    answer = engine.reading(container, f"{path}/.")

    def work() -> set[str]:
        names = set()
        with answer, read_tar(answer.file()) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined,unused-ignore] # else all stay in memory
                names.add(member.name.removeprefix("./"))
        return names

    return await engine.streamed(work, answer)
