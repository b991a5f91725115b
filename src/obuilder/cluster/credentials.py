"""Who we are to a cluster: the credentials file, where it is found, and how it is made.

An administrator's file holds the cluster's master secret, from which the keys of the operator, of
every account and of every pool are derived; so it can make all other files, and nothing else has to
be kept. Those of clients, workers and viewers hold a user's key, a token for it, and public keys to
check others with. Files have mode 0600.
"""

import os
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec import Struct

from obuilder.cluster import accounts, names
from obuilder.cluster.nkeys import Key, derive
from obuilder.errors import ConfigError, UsageError
from obuilder.system.files import write_all

Kind = Literal["client", "worker", "viewer", "admin"]
VARIABLE = "OBUILDER_CLUSTER"


class Credentials(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a member of a cluster has to know."""

    kind: Kind
    name: str
    urls: tuple[str, ...]
    jwt: str
    seed: str
    cluster: str
    """The public key that signs pools and clients."""
    account: str = ""
    """The public key of its account."""
    ca: str | None = None
    """The certificates (PEM) that the servers' are checked with; None: the machine's, or no TLS."""
    pool: str = ""
    """Of a worker."""
    unseal: bytes = b""
    """Of a worker: the private key of its pool."""
    master: bytes = b""
    """Of an administrator."""
    system: tuple[str, str] = ("", "")
    """Of an administrator: token and seed of a user of the system account."""

    def __repr__(self) -> str:
        """Nothing secret."""
        return f"Credentials(kind={self.kind!r}, name={self.name!r})"

    @property
    def key(self) -> Key:
        """The user's key. ConfigError."""
        return Key.parse(self.seed)

    def as_text(self) -> str:
        """The content of a credentials file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"


class Authority(Struct, frozen=True, kw_only=True):
    """What makes credentials: the master secret, and where the servers are."""

    master: bytes
    urls: tuple[str, ...]
    ca: str | None = None

    def __repr__(self) -> str:
        """Nothing secret."""
        return f"Authority(urls={self.urls!r})"

    @property
    def signer(self) -> Key:
        """The key that signs pools and clients."""
        return Key.derived("account", self.master, "cluster")

    def unsealing(self, pool: str) -> bytes:
        """The private key (X25519) of a pool."""
        return derive(self.master, f"pool {pool}")

    def sealing(self, pool: str) -> bytes:
        """The public key of a pool."""
        private = X25519PrivateKey.from_private_bytes(self.unsealing(pool))
        return private.public_key().public_bytes_raw()

    def client(self, name: str) -> Credentials:
        """Credentials for a new user of a client's account."""
        names.checked("client", name)
        key = Key.new("user")
        account = accounts.client_account(self.master, name)
        jwt = accounts.user(account, key, name, accounts.client_permissions())
        return self._made("client", name, key, jwt, account.public)

    def worker(self, pool: str, name: str) -> Credentials:
        """Credentials for a worker of a pool."""
        names.checked("pool", pool)
        names.checked("worker", name)
        key = Key.new("user")
        account = accounts.pool_account(self.master, pool)
        allowed = accounts.worker_permissions(pool, name, key.public)
        jwt = accounts.user(account, key, f"{pool}.{name}", allowed)
        made = self._made("worker", name, key, jwt, account.public)
        return msgspec.structs.replace(made, pool=pool, unseal=self.unsealing(pool))

    def viewer(self, name: str) -> Credentials:
        """Credentials that may look at everything."""
        names.checked("viewer", name)
        key = Key.new("user")
        account = accounts.viewer_account(self.master)
        jwt = accounts.user(account, key, name, accounts.viewer_permissions(key.public))
        return self._made("viewer", name, key, jwt, account.public)

    def admin(self, name: str = "admin") -> Credentials:
        """Credentials that may do anything and make others."""
        names.checked("administrator", name)
        key, system = Key.new("user"), Key.new("user")
        account = accounts.main_account(self.master)
        jwt = accounts.user(account, key, name, {})
        made = self._made("admin", name, key, jwt, account.public)
        token = accounts.user(accounts.system_account(self.master), system, name, {})
        return msgspec.structs.replace(made, master=self.master, system=(token, system.seed))

    def _made(self, kind: Kind, name: str, key: Key, jwt: str, account: str) -> Credentials:
        return Credentials(
            kind=kind, name=name, urls=self.urls, jwt=jwt, seed=key.seed, ca=self.ca,
            cluster=self.signer.public, account=account,
        )  # fmt: skip


def authority_of(admin: Credentials) -> Authority:
    """What an administrator makes credentials with. UsageError for anybody else."""
    if not admin.master:
        raise UsageError(
            f"these are the credentials of a {admin.kind}, and it takes an administrator's",
            hint="give them with --cluster FILE",
        )
    return Authority(master=admin.master, urls=admin.urls, ca=admin.ca)


def system_of(admin: Credentials) -> Credentials:
    """An administrator as a user of the system account. UsageError for anybody else."""
    authority_of(admin)
    jwt, seed = admin.system
    return msgspec.structs.replace(admin, jwt=jwt, seed=seed)


def state_directory() -> str:
    """Where `cluster up` of who names no directory keeps its own."""
    if os.geteuid() == 0:
        return "/var/lib/obuilder-cluster"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{state}/obuilder/cluster"


def load_credentials(path: str | None = None, *, kind: Kind = "client") -> Credentials:
    """The credentials of `path`, or of OBUILDER_CLUSTER, or of the local cluster. ConfigError.

    Of a directory, as `cluster up` makes them, the file of that kind.
    """
    found = path or os.environ.get(VARIABLE) or state_directory()
    if os.path.isdir(found) or found == state_directory():
        found = os.path.join(found, f"{kind}.json")
    try:
        with open(found, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise ConfigError(
            f"there are no credentials of a cluster in {found}",
            hint="`obuilder cluster up` makes a cluster; --cluster FILE names credentials",
        ) from None
    except OSError as error:
        raise ConfigError(f"can't read the credentials in {found}: {error.strerror}") from error
    try:
        credentials = msgspec.json.decode(content, type=Credentials)
        _ = credentials.key
    except (msgspec.MsgspecError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{found} holds no credentials of a cluster: {error}") from error
    return credentials


def save_credentials(credentials: Credentials, path: str) -> None:
    """Write a credentials file, for its owner alone. ConfigError."""
    made = f"{path}.{os.getpid()}.new"
    try:
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, credentials.as_text().encode())
        finally:
            os.close(fd)
        os.rename(made, path)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from error
