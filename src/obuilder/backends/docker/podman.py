"""What podman does otherwise than Docker, whose API it has.

It puts files of its own into the root of what runs, and its runtime may follow links that stand for
/dev out of the root.
"""

import tarfile

from obuilder.backends.docker.api import Refused
from obuilder.backends.docker.engine import Engine
from obuilder.backends.docker.model import Change, Info
from obuilder.errors import SandboxError
from obuilder.oci.streams import read_tar

_FIXED = ("dev", "etc", "proc", "sys")
_OWN = ("hostname", "hosts", "mtab", "resolv.conf")
_MARK = "/run/.containerenv"


def misses_memory(info: Info) -> bool:
    """Whether the engine does not always tell that the memory limit ended a step.

    Where controllers stand in hierarchies of version 1, podman's monitor hears of it too late.
    """
    return info.podman and info.cgroup_version == "1"


async def lacking(engine: Engine, container: str) -> list[Change]:
    """The changes that podman is going to make, and to tell nobody of. `container` never runs.

    SandboxError if what is in the root must not be run.
    """
    await _refuse_links(engine, container)
    there = await _names(engine, container, "/etc")
    places = [f"/etc/{name}" for name in _OWN if name not in there]
    if await engine.at(container, _MARK) is None:
        places.append(_MARK)
    return [Change(place, 1) for place in places]


async def _refuse_links(engine: Engine, container: str) -> None:
    """Try to make the directories anew, which changes nothing where they are that."""
    archive = []
    for name in _FIXED:
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.append(info.tobuf(tarfile.PAX_FORMAT))
    try:
        await engine.put(container, "/", [*archive, bytes(1024)])
    except Refused as error:
        raise SandboxError(
            f"/dev, /etc, /proc or /sys in the image is not a directory: {error.message}"
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
