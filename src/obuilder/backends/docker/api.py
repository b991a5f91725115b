"""A Docker engine's HTTP API over the Unix socket that it listens on. No docker program is needed.

All of it blocks; `engine` is for who must not.
"""

import contextlib
import http.client
import io
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Self
from urllib.parse import quote, urlencode

import msgspec

from obuilder.errors import Denied, Unreachable

_DEFAULT = "/var/run/docker.sock"

Body = Mapping[str, Any] | bytes | Iterable[bytes]
"""What is sent along: a JSON document, or an archive as a whole or piece by piece."""


class Refused(Unreachable):
    """The engine answers, and says no; `status` is HTTP's, the message has the engine's own words."""

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


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

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        *,
        timeout: float | None = 60,
        upgrade: bool = False,
    ) -> "Answer":
        """A request that is not sent yet; `timeout` is for each piece of the answer.

        `upgrade`: the answer is a stream of its own in both directions.
        """
        target = quote(path, safe="/:@")
        if query:
            target += "?" + urlencode(query)
        return Answer(self.path, method, target, body, timeout=timeout, upgrade=upgrade)

    def load(self, *, timeout: float) -> "Load":
        """What takes an archive of images, as it is written. Not asked for yet."""
        return Load(self.path, timeout)

    def get(self, path: str, *, timeout: float | None = 60) -> "Answer":
        """What the engine has at `path`. Not asked for yet."""
        return self.ask("GET", path, timeout=timeout)

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        *,
        timeout: float | None = 60,
    ) -> bytes:
        """Ask, and wait for the whole answer. Refused, Denied, Unreachable."""
        with self.ask(method, path, query, body, timeout=timeout) as answer:
            return b"".join(iter(lambda: answer.read(1 << 20), b""))


class _Refusal(msgspec.Struct):
    message: str = ""


class Answer:
    """An engine's answer: asked for on entering, which blocks, and let go of on leaving.

    Entering raises Refused, Denied, Unreachable. `abort`, from any thread and at any time, ends
    whoever waits for it.
    """

    def __init__(
        self, engine: str, method: str, target: str, body: Body | None, *,
        timeout: float | None, upgrade: bool,
    ) -> None:  # fmt: skip
        self._engine, self._method, self._target = engine, method, target
        self._body, self._upgrade = body, upgrade
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
                hint="install and start one (Debian, Ubuntu: docker.io or podman), or set "
                "DOCKER_HOST=unix:///PATH to its socket",
            ) from error
        if self._aborted:
            self.abort()

    def _ask(self) -> None:
        # http.client knows hosts and ports only: it is given a socket that is connected already
        self._http.sock = self._socket
        try:
            # Who refuses an archive says so before it is sent, and then closes the connection.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._send()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        self._heard()

    def _heard(self) -> None:
        """Wait for the head of the answer."""
        try:
            self._response = response = self._http.getresponse()
            if response.length is None and not response.chunked:
                # http.client takes a head that is cut off for a whole one
                raise self._broken("it does not say how long it is")
            if response.status < 400:
                return
            said = response.read(1 << 16)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        raise self._refused(response, said)

    def _send(self) -> None:
        headers = {"Connection": "Upgrade", "Upgrade": "tcp"} if self._upgrade else {}
        body = self._body
        if isinstance(body, Mapping):
            headers["Content-Type"] = "application/json"
            body = msgspec.json.encode(body)
        elif body is not None:
            headers["Content-Type"] = "application/x-tar"
        self._http.request(self._method, self._target, body, headers)

    def _refused(self, response: http.client.HTTPResponse, said: bytes) -> Refused:
        reason = response.reason
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            reason = msgspec.json.decode(said, type=_Refusal).message or reason
        if response.status == 404:
            return Refused(f"the Docker engine at {self._engine} says: {reason}", status=404)
        return Refused(
            f"the Docker engine at {self._engine} answers {response.status}: {reason}",
            status=response.status, hint="its own log may say more",
        )  # fmt: skip

    def header(self, name: str) -> str:
        """A header of the answer; empty if it has none of that name."""
        assert self._response is not None
        return self._response.getheader(name, "")

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

    def file(self) -> BinaryIO:
        """What is left of it, to be read as a file."""
        return io.BufferedReader(_Reader(self), 1 << 20)

    def receive(self, size: int) -> bytes:
        """Of an upgraded stream: what there is, at most `size` bytes; none at the end."""
        assert self._response is not None
        try:
            data: bytes = self._response.fp.read1(size)
        except OSError as error:
            raise self._broken(error) from error
        return data

    def send(self, data: bytes) -> None:
        """Into an upgraded stream; empty: that is the end. Unreachable if nobody takes it."""
        try:
            if data:
                self._socket.sendall(data)
            else:
                self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._broken(error) from error

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


class Load(Answer):
    """A file to write an archive of images to, in pieces; `finish` asks what came of it.

    The answer comes before all is written if the engine refuses it: then writing raises Refused.
    """

    def __init__(self, engine: str, timeout: float) -> None:
        target = "/images/load?quiet=1"
        super().__init__(engine, "POST", target, None, timeout=timeout, upgrade=False)

    def _ask(self) -> None:
        self._http.sock = self._socket
        try:
            self._http.putrequest(self._method, self._target)
            self._http.putheader("Content-Type", "application/x-tar")
            self._http.putheader("Transfer-Encoding", "chunked")
            self._http.endheaders()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def write(self, data: bytes) -> int:
        """Send the next bytes."""
        if data:
            self._put(b"%x\r\n%b\r\n" % (len(data), data))
        return len(data)

    def finish(self) -> bytes:
        """Send the end: what the engine says, in lines."""
        self._put(b"0\r\n\r\n")
        self._heard()
        return b"".join(iter(lambda: self.read(1 << 20), b""))

    def _put(self, data: bytes) -> None:
        try:
            self._http.send(data)
        except OSError as error:
            self._heard()
            raise self._broken(error) from error


class _Reader(io.RawIOBase):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._answer.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
