"""What store and sandbox ask of an engine: images, containers, volumes, each by its name.

Whatever goes wrong is Refused, Unreachable or Denied; `told` makes a back end's own errors of them.
"""

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO, TypeVar

import anyio
import anyio.to_thread
import msgspec

from obuilder.backends.docker.api import Answer, Body, DockerEngine, Load, Refused
from obuilder.backends.docker.model import (
    Change,
    Container,
    Ended,
    Found,
    Image,
    Info,
    Named,
    Progress,
    Use,
    Volume,
    Volumes,
    decoded,
)
from obuilder.errors import BackendUnavailable, Denied, StoreError, StoreFull, Unreachable
from obuilder.oci.config import Settings

T = TypeVar("T")

_STREAMS = anyio.CapacityLimiter(10_000)
"""Threads that wait for as long as a step takes; others must not wait for them."""
_PIECE = 1 << 20
_INFOS: dict[tuple[int, int, int], Info] = {}
"""What engines said of themselves, by their sockets: one that starts anew has a new socket."""
_REMOVALS = 200
"""How often a container that somebody else removes is asked for again."""


@contextmanager
def told(kind: type[StoreError | BackendUnavailable], what: str) -> Iterator[None]:
    """An engine's errors as a back end's own, which say `what` could not be done."""
    try:
        yield
    except (Unreachable, Denied) as error:
        message = f"{what}: {error.message}"
        if "no space left on device" in error.message:
            raise StoreFull(message, hint="`obuilder prune` makes room") from error
        raise kind(message, hint=error.hint) from error


class Engine:
    """An engine, asked in threads. What is short is never broken off: it was done, or was not."""

    def __init__(self, api: DockerEngine) -> None:
        self.api = api

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> bytes:
        """Ask, and wait for the answer."""
        return await anyio.to_thread.run_sync(partial(self.api.call, method, path, query, body))

    async def _said(self, kind: type[T], path: str, query: Mapping[str, str] | None = None) -> T:
        return decoded(await self.call("GET", path, query), kind)

    async def streamed(self, work: Callable[[], T], *answers: Answer) -> T:
        """What `work`, which enters and reads the answers, returns; cancelling ends all of it."""
        outcome: T | None = None
        failure: Exception | None = None

        async def abort_at_the_end() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                for answer in answers:
                    answer.abort()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(abort_at_the_end)
            try:
                outcome = await anyio.to_thread.run_sync(work, limiter=_STREAMS)
            except Exception as error:  # noqa: BLE001 # raised below, outside of the task group
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            await anyio.lowlevel.checkpoint_if_cancelled()  # then that is why it failed
            raise failure
        return outcome  # type: ignore[return-value] # nothing was raised: it is a T

    # --- the engine itself ---------------------------------------------------------------------

    async def info(self) -> Info:
        """What it is. It is asked once for all who open what is in it: podman takes its time."""
        return await anyio.to_thread.run_sync(self._info)

    def _info(self) -> Info:
        try:
            status = os.stat(self.api.path)
        except OSError:
            return self._asked_info()  # which says what is wrong
        mark = (status.st_dev, status.st_ino, status.st_ctime_ns)
        if mark not in _INFOS:
            _INFOS[mark] = self._asked_info()
        return _INFOS[mark]

    def _asked_info(self) -> Info:
        with self.api.get("/info") as answer:
            found = decoded(answer.file().read(), Info)
            found.podman = bool(answer.header("libpod-api-version"))
        return found

    async def check(self) -> None:
        """Whether it answers."""
        await self.call("GET", "/_ping")

    async def networks(self) -> list[str]:
        """The networks there are."""
        found = await self._said(list[Named], "/networks")
        return [network.name for network in found]

    # --- images --------------------------------------------------------------------------------

    async def image(self, name: str) -> Image:
        """What an image is, by name or id."""
        return await self._said(Image, f"/images/{name}/json")

    async def tags(self, repository: str) -> list[str]:
        """The names in a repository that images have: what stands after the colon."""
        found = await self._said(list[Image], "/images/json", _filters(reference=[repository]))
        names = [name.rpartition(":") for image in found for name in image.repo_tags or ()]
        return [tag for place, _, tag in names if place == repository]  # an image has others too

    async def tag(self, image: str, name: str) -> None:
        """Give an image one more name; another one loses it."""
        repository, _, tag = name.rpartition(":")
        await self.call("POST", f"/images/{image}/tag", {"repo": repository, "tag": tag})

    async def untag(self, name: str) -> None:
        """Take a name away, and the image if it was the last; no error if nothing has that name."""
        with passed_over(404):
            await self.call("DELETE", f"/images/{name}", {"force": "1"})

    async def load(self, archive: Iterable[bytes]) -> None:
        """Take the image in an archive."""
        answer = self.api.ask("POST", "/images/load", {"quiet": "1"}, archive, timeout=600)

        def work() -> None:
            with answer:
                _taken(b"".join(iter(lambda: answer.read(_PIECE), b"")))

        await self.streamed(work, answer)

    async def load_written(self, write: Callable[[Load], Coroutine[None, None, None]]) -> list[str]:
        """Take the images in an archive while it is written; cancelling breaks that off.

        What the engine says of them.
        """
        load = self.api.load(timeout=600)

        async def abort_at_the_end() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                load.abort()

        try:
            async with beside(abort_at_the_end):
                await anyio.to_thread.run_sync(load.__enter__)
                await write(load)
                return _taken(await anyio.to_thread.run_sync(load.finish, limiter=_STREAMS))
        except Unreachable:
            await anyio.lowlevel.checkpoint_if_cancelled()  # then that is why
            raise
        finally:
            load.__exit__()

    async def save(self, name: str, file: BinaryIO) -> None:
        """Write an archive of an image."""
        # An engine makes all of an export ready before it sends the first piece.
        await self.fetch(self.api.get(f"/images/{name}/get", timeout=600), file)

    async def fetch(self, answer: Answer, file: BinaryIO) -> None:
        """Write all that an answer says."""

        def work() -> None:
            with answer:
                while piece := answer.read(_PIECE):
                    file.write(piece)

        await self.streamed(work, answer)

    # --- containers ----------------------------------------------------------------------------

    async def create(self, name: str, body: Mapping[str, Any]) -> None:
        """Make a container, which does not run yet."""
        await self.call("POST", "/containers/create", {"name": name}, body)

    async def kill(self, name: str) -> None:
        """End what runs in a container; no error if nothing does."""
        with passed_over(404, 409):
            await self.call("POST", f"/containers/{name}/kill")

    async def remove(self, name: str) -> None:
        """Remove a container, whatever runs in it; no error if it is not there.

        Others may be at it already: it is gone when this returns.
        """
        with passed_over(404):
            for attempt in range(_REMOVALS):
                try:
                    await self.call("DELETE", f"/containers/{name}", {"force": "1", "v": "1"})
                except Refused as error:
                    if error.status != 409 or attempt == _REMOVALS - 1:
                        raise
                    await anyio.sleep(0.05)

    async def wait(self, name: str) -> int:
        """The exit status of a container that was started."""
        answer = self.api.ask("POST", f"/containers/{name}/wait", timeout=None)

        def work() -> bytes:
            with answer:
                return b"".join(iter(lambda: answer.read(_PIECE), b""))

        return decoded(await self.streamed(work, answer), Ended).status_code

    async def container(self, name: str) -> Container:
        """What a container is now."""
        return await self._said(Container, f"/containers/{name}/json")

    async def changes(self, name: str) -> list[Change]:
        """How a container differs from its image."""
        found = await self.call("GET", f"/containers/{name}/changes")
        return decoded(found, list[Change]) if found.strip() != b"null" else []

    async def commit(self, name: str, image: str, settings: Settings) -> None:
        """Make an image of a container; the environment is the container's as well."""
        repository, _, tag = image.rpartition(":")
        query = {"container": name, "repo": repository, "tag": tag, "pause": "false"}
        config = {"Entrypoint": settings.entrypoint or [], "Cmd": settings.cmd}
        await self.call("POST", "/commit", query, config)

    async def containers(self, **labels: str) -> dict[str, dict[str, str]]:
        """The containers with these labels, and all their labels, by name."""
        query = {
            "all": "1",
            **_filters(label=[f"{name}={value}" for name, value in labels.items()]),
        }
        found = await self._said(list[Named], "/containers/json", query)
        return {name.lstrip("/"): one.labels or {} for one in found for name in one.names or ()}

    async def at(self, container: str, path: str) -> Found | None:
        """What is at a path of a container, whose parents' symlinks are followed inside."""
        return await anyio.to_thread.run_sync(self._at, container, path)

    def _at(self, container: str, path: str) -> Found | None:
        from base64 import b64decode

        query = {"path": path}
        with suppress(Refused):
            with self.api.ask("HEAD", f"/containers/{container}/archive", query) as answer:
                said = answer.header("X-Docker-Container-Path-Stat")
            return decoded(b64decode(said), Found)
        return None

    def reading(self, container: str, path: str) -> Answer:
        """An archive of what is at a path of a container."""
        return self.api.ask("GET", f"/containers/{container}/archive", {"path": path}, timeout=600)

    async def put(
        self, container: str, path: str, archive: Iterable[bytes], *sources: Answer
    ) -> None:
        """Unpack an archive, made of `sources`, at a path of a container.

        No directory becomes something else, and nothing a directory.
        """
        query = {"path": path, "noOverwriteDirNonDir": "1"}
        answer = self.api.ask(
            "PUT", f"/containers/{container}/archive", query, archive, timeout=600
        )

        def work() -> None:
            with answer:
                answer.read(_PIECE)

        await self.streamed(work, answer, *sources)

    # --- volumes -------------------------------------------------------------------------------

    async def volume(self, name: str) -> Volume | None:
        """A volume; None if there is none of that name."""
        try:
            return await self._said(Volume, f"/volumes/{name}")
        except Refused as error:
            if error.status != 404:
                raise
            return None

    async def make_volume(self, name: str, **labels: str) -> None:
        """Make a volume; no error if it is there."""
        await self.call("POST", "/volumes/create", None, {"Name": name, "Labels": labels})

    async def remove_volume(self, name: str) -> bool:
        """Remove a volume. False if a container has it."""
        try:
            with passed_over(404):
                await self.call("DELETE", f"/volumes/{name}")
        except Refused as error:
            if error.status != 409:
                raise
            return False
        return True

    async def volumes(self, **labels: str) -> list[str]:
        """The volumes with these labels."""
        filters = _filters(label=[f"{name}={value}" for name, value in labels.items()])
        found = await self._said(Volumes, "/volumes", filters)
        return [volume.name for volume in found.volumes or ()]

    async def volume_size(self, name: str) -> int:
        """Bytes of what is in a volume."""
        found = await self._said(Use, "/system/df")
        used = {one.name: one.usage_data for one in found.volumes or ()}
        use = used.get(name)
        return max(use.size, 0) if use is not None else 0


@asynccontextmanager
async def beside(*tasks: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Have these run for as long as the context lasts.

    What fails first ends all and is raised; what else fails then is told as notes of it.
    """
    try:
        async with anyio.create_task_group() as group:
            for task in tasks:
                group.start_soon(task)
            yield
            group.cancel_scope.cancel()
    except BaseExceptionGroup as failed:
        first, *others = failed.exceptions
        for other in others:
            first.add_note(f"and then: {other}")
        raise first from None


@asynccontextmanager
async def dropping() -> AsyncIterator[None]:
    """For taking away what is needed no more, also when cancelled.

    That an engine can't be reached meanwhile is no error: recovery takes away what is left.
    """
    with anyio.CancelScope(shield=True), suppress(Unreachable, Denied):
        yield


@contextmanager
def passed_over(*statuses: int) -> Iterator[None]:
    """No error if the engine answers with one of these: what was asked for is so already."""
    try:
        yield
    except Refused as error:
        if error.status not in statuses:
            raise


def _taken(said: bytes) -> list[str]:
    """What an engine says of images that it was given. Refused."""
    told_ = [decoded(line, Progress) for line in said.splitlines()]
    for line in told_:
        if line.error:
            raise Refused(f"the engine can't take an image: {line.error}", status=500)
    return [line.stream.strip() for line in told_ if line.stream.strip()]


def _filters(**filters: list[str]) -> dict[str, str]:
    return {"filters": msgspec.json.encode(filters).decode()}
