"""A Docker engine's HTTP API over the Unix socket that it listens on. No docker program is needed."""

import contextlib
import http.client
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Self
from urllib.parse import quote

import msgspec

from obuilder.errors import Denied, NotFound, Unreachable

_DEFAULT = "/var/run/docker.sock"


class DockerEngine:
    """An engine, by the path of its socket."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def found(cls) -> Self:
        """The engine that DOCKER_HOST names, else the machine's own, else the user's.

        Unreachable if DOCKER_HOST is no Unix socket.
        """
        host = os.environ.get("DOCKER_HOST", "")
        if host:
            kind, _, path = host.partition("://")
            if kind != "unix" or not path.startswith("/"):
                raise Unreachable(
                    f"DOCKER_HOST is {host!r}: only an engine at a Unix socket can be asked",
                    hint="set DOCKER_HOST=unix:///PATH, or let that engine save the image and take "
                    "the file: docker-archive:FILE",
                )
            return cls(path)
        own = os.path.join(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"), "docker.sock")
        return cls(own if os.path.exists(own) and not os.path.exists(_DEFAULT) else _DEFAULT)

    def get(self, path: str, *, timeout: float) -> "Answer":
        """What the engine has at `path`; `timeout` is for each piece of it. Not asked for yet."""
        return Answer(self.path, quote(path, safe="/:@"), timeout)

    def load(self, *, timeout: float) -> "Load":
        """A file to write an archive of `docker save` to, which the engine takes images from."""
        return Load(self.path, "/images/load?quiet=1", timeout)


class _Refusal(msgspec.Struct):
    message: str = ""


class _Said(msgspec.Struct):
    """A line of what an engine says while it works."""

    stream: str = ""
    error: str = ""


class _Link(ABC):
    """A connection to an engine: made on entering, which blocks, and let go of on leaving.

    Entering raises Denied, Unreachable. `abort`, from any thread and at any time, ends whoever
    waits for it.
    """

    def __init__(self, engine: str, target: str, timeout: float) -> None:
        self._engine, self._target = engine, target
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._http = http.client.HTTPConnection("docker")
        self._response: http.client.HTTPResponse | None = None
        self._aborted = False

    def __enter__(self) -> Self:
        try:
            self._connect()
            self._ask()
        except BaseException:
            self.__exit__()
            raise
        return self

    @abstractmethod
    def _ask(self) -> None:
        """Send the request."""

    def _connect(self) -> None:
        try:
            self._socket.connect(self._engine)
        except PermissionError as error:
            raise Denied(
                f"the Docker engine at {self._engine} may not be used: {error.strerror}",
                hint="run as root, or as a member of the socket's group",
            ) from error
        except OSError as error:
            raise Unreachable(
                f"there is no Docker engine at {self._engine}: {error.strerror or error}",
                hint="start it, or set DOCKER_HOST=unix:///PATH to its socket",
            ) from error
        if self._aborted:
            self.abort()
        # http.client knows hosts and ports only: it is given a socket that is connected already
        self._http.sock = self._socket

    def _answered(self) -> None:
        """Wait for the answer. NotFound with the engine's own words, Unreachable."""
        try:
            self._response = response = self._http.getresponse()
            if response.length is None and not response.chunked:
                # http.client takes a head that is cut off for a whole one
                raise self._broken("it does not say how long it is")
            if response.status == 200:
                return
            said = response.read(1 << 16)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        reason = response.reason
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            reason = msgspec.json.decode(said, type=_Refusal).message or reason
        if response.status == 404:
            raise NotFound(f"the Docker engine at {self._engine} says: {reason}")
        raise Unreachable(
            f"the Docker engine at {self._engine} answers {response.status}: {reason}",
            hint="its own log may say more",
        )

    def read(self, size: int) -> bytes:
        """The next `size` bytes; less than that, or none, at the end. Unreachable if they don't come."""
        assert self._response is not None
        try:
            data = self._response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        if len(data) < size and self._response.length:
            raise self._broken(f"{self._response.length} bytes are missing")
        return data

    def _broken(self, error: Exception | str) -> Unreachable:
        reason = "it took too long" if isinstance(error, TimeoutError) else error
        return Unreachable(
            f"the Docker engine at {self._engine} broke off its answer: {reason}",
            hint="its own log may say why",
        )

    def abort(self) -> None:
        """End it now: who reads it gets an error or the end."""
        self._aborted = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *exc: object) -> None:
        if self._response is not None:
            self._response.close()
        self._http.close()
        self._socket.close()


class Answer(_Link):
    """An engine's answer, to be read. Entering raises NotFound if it has no such thing, as well."""

    def _ask(self) -> None:
        try:
            self._http.request("GET", self._target)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        self._answered()


class Load(_Link):
    """What is written goes to the engine; `finish` says what came of it."""

    def _ask(self) -> None:
        try:
            self._http.putrequest("POST", self._target)
            self._http.putheader("Content-Type", "application/x-tar")
            self._http.putheader("Transfer-Encoding", "chunked")
            self._http.endheaders()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def write(self, data: bytes) -> int:
        """Send the next bytes. Unreachable, with what the engine said if it said something."""
        try:
            if data:
                self._http.send(b"%x\r\n%b\r\n" % (len(data), data))
        except OSError as error:
            self._answered()
            raise self._broken(error) from error
        return len(data)

    def finish(self) -> list[str]:
        """Send the end: the engine's words. Unreachable if it did not take the images."""
        try:
            self._http.send(b"0\r\n\r\n")
        except OSError as error:
            raise self._broken(error) from error
        self._answered()
        words = []
        for line in self.read(1 << 20).splitlines():
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                said = msgspec.json.decode(line, type=_Said)
                if said.error:
                    raise Unreachable(
                        f"the Docker engine at {self._engine} does not take the image: {said.error}"
                    )
                words.append(said.stream.strip())
        return [word for word in words if word]


@contextlib.asynccontextmanager
async def aborted(link: _Link) -> AsyncIterator[None]:
    """Whoever waits for an engine in a thread within this context need not once it is cancelled."""
    import anyio

    async def abort_at_the_end() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            link.abort()

    failed: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(abort_at_the_end)
        try:
            yield
        except Exception as error:  # noqa: BLE001 # raised below, outside of the task group
            failed = error
        tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed
