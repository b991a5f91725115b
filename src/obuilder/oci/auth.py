"""Who we are to a registry: what `docker login` kept, and what registries ask for.

The file is Docker's own, `config.json` in DOCKER_CONFIG or `~/.docker`. A helper that it names
(`docker-credential-NAME`) is asked before the file itself is.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from obuilder.errors import ConfigError, Denied
from obuilder.oci.reference import HUB
from obuilder.system.process import capture

T = TypeVar("T")

_HUB_KEY = "https://index.docker.io/v1/"
"""What Docker calls its own registry where credentials are concerned."""
_HUB_HOSTS = (HUB, "index.docker.io", "registry-1.docker.io")
_TOKEN_USER = "<token>"  # noqa: S105 # a helper's word for "the secret is an identity token"
_PATIENCE = 30.0


class Credentials(Struct, frozen=True):
    """A user and password, or an identity token in their place."""

    user: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        """Nothing secret."""
        return f"Credentials(user={self.user!r})"

    def basic(self) -> str:
        """The header's value that says so without more ado."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class _Entry(Struct, rename="lower"):
    auth: str = ""
    username: str = ""
    password: str = ""
    identity_token: str = field(default="", name="identitytoken")


class _Config(Struct, rename="camel"):
    auths: dict[str, _Entry] = {}
    cred_helpers: dict[str, str] = {}
    creds_store: str = ""


class _Answer(Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def config_path() -> str:
    """Where Docker keeps what it was told."""
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return os.path.join(directory, "config.json")


def credentials(registry: str) -> Credentials | None:
    """What there is for a registry, by HOST[:PORT]; None: nothing, so it is asked as nobody.

    Blocks, and may start a helper. ConfigError, Denied.
    """
    path = config_path()
    try:
        with open(path, "rb") as file:
            config = msgspec.json.decode(file.read(), type=_Config)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no configuration of Docker's: {error}") from error
    helpers = _of(registry, config.cred_helpers)
    for helper in [*helpers, *([config.creds_store] if config.creds_store else [])]:
        found = _asked(helper, _key(registry), path)
        if found is not None:
            return found
    for entry in _of(registry, config.auths):
        found = _read(entry, registry, path)
        if found is not None:
            return found
    return None


def _of(registry: str, known: Mapping[str, T]) -> list[T]:
    """What is kept under any spelling of a registry."""
    wanted = _HUB_HOSTS if registry in _HUB_HOSTS else (registry,)
    return [value for name, value in known.items() if _host(name) in wanted]


def _host(name: str) -> str:
    return urlsplit(name if "//" in name else f"//{name}").netloc


def _key(registry: str) -> str:
    return _HUB_KEY if registry in _HUB_HOSTS else registry


def _read(entry: _Entry, registry: str, path: str) -> Credentials | None:
    user, password = entry.username, entry.password
    if entry.auth:
        try:
            text = base64.b64decode(entry.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ConfigError(
                f"{path}: what it has for {registry} is damaged", hint=f"docker login {registry}"
            ) from None
        user, _, password = text.partition(":")
        password = password.rstrip("\0")
    if not (user or password or entry.identity_token):
        return None
    return Credentials(user, password, entry.identity_token)


def _asked(helper: str, key: str, path: str) -> Credentials | None:
    """What a helper has; None if it says that it has nothing."""
    if not re.fullmatch(r"[\w.-]+", helper, re.ASCII):
        raise ConfigError(f"{path}: {helper!r} is no name of a credential helper")
    program = f"docker-credential-{helper}"
    status, said = capture([program, "get"], given=key.encode(), errors=False, timeout=_PATIENCE)
    if status == 127:
        raise ConfigError(
            f"{path} names the credential helper {program}, which is not installed",
            hint="install it, or take it out of that file",
        )
    if status != 0:
        reason = said.decode("utf-8", "replace").strip()
        if "credentials not found" in reason:
            return None
        raise Denied(f"{program} has nothing to say for {key}: {reason or f'status {status}'}")
    try:
        answer = msgspec.json.decode(said, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Denied(f"{program} gives an answer that is none") from None
    if answer.username == _TOKEN_USER:
        return Credentials(identity_token=answer.secret)
    return Credentials(answer.username, answer.secret)


class Challenge(Struct, frozen=True):
    """What a registry asks for: a scheme in lower case, and what it says of it."""

    scheme: str
    said: dict[str, str]


_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_PIECE = re.compile(
    rf"[\s,]*(?P<word>{_WORD})(?:\s*=\s*(?:\"(?P<quoted>(?:[^\"\\]|\\.)*)\"|(?P<plain>[^\s,]+)))?"
)


def challenges(header: str) -> list[Challenge]:
    """All that a WWW-Authenticate header asks for; what makes no sense is left out."""
    found: list[Challenge] = []
    for piece in _PIECE.finditer(header):
        quoted, plain = piece["quoted"], piece["plain"]
        if quoted is None and plain is None:
            found.append(Challenge(piece["word"].lower(), {}))
        elif found:
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1].said[piece["word"].lower()] = value
    return found
