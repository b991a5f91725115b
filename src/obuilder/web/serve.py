"""The page as a running program: connected to the cluster, listening, until it is cancelled."""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import uvicorn
from msgspec import Struct

from obuilder.cluster.credentials import Credentials, system_of
from obuilder.cluster.engine import Engine
from obuilder.errors import UsageError
from obuilder.web.app import application
from obuilder.web.mirror import Mirror
from obuilder.web.site import Access, Site

_LINGER = 2
"""Seconds that requests have to end in when the program does; live logs have no end of their own."""


class Tls(Struct, frozen=True):
    """Files, as PEM."""

    certificate: str
    key: str


class _Server(uvicorn.Server):
    """Leaves signals to who started it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def serve(
    credentials: Credentials,
    address: tuple[str, int],
    access: Access,
    tell: Callable[[str], None],
    *,
    tls: Tls | None = None,
) -> None:
    """Serve until cancelled; `tell` is given the address once the page is there.

    UsageError, ClusterError.
    """
    servers = credentials if credentials.kind == "viewer" else system_of(credentials)
    listener = _listening(address)
    with listener:
        async with (
            Engine.connect(credentials, name="web") as engine,
            Engine.connect(servers, name="web") as system,
            anyio.create_task_group() as tasks,
        ):
            mirror = Mirror()
            site = Site(engine, credentials, mirror, access)
            tasks.start_soon(mirror.follow, engine)
            tasks.start_soon(site.metrics.watch, engine, system)
            with mirror.listening(site.metrics.count):
                await mirror.ready.wait()
                await _run(site, listener, tell, tls)


async def _run(
    site: Site, listener: socket.socket, tell: Callable[[str], None], tls: Tls | None
) -> None:
    config = uvicorn.Config(
        application(site), log_level=logging.WARNING, access_log=False, lifespan="off",
        timeout_graceful_shutdown=_LINGER, server_header=False, ws="none",
        ssl_certfile=tls.certificate if tls else None, ssl_keyfile=tls.key if tls else None,
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:
        raise UsageError(f"the certificate or its key can't be used: {error}") from error
    server = _Server(config)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    tell(f"{'https' if tls else 'http'}://{shown}:{port}/")
    try:
        await server.serve(sockets=[listener])
    except anyio.get_cancelled_exc_class():
        server.should_exit = True
        with anyio.CancelScope(shield=True):
            await server.shutdown(sockets=[listener])
        raise


def _listening(address: tuple[str, int]) -> socket.socket:
    """UsageError."""
    host, port = address
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(256)
    except OSError as error:
        raise UsageError(
            f"can't listen on {host}:{port}: {error.strerror or error}",
            hint="take another port with --listen",
        ) from error
    return listener
