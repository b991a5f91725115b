"""NATS's keys and tokens: ed25519 keys as text ("NKEYs"), and claims that such keys sign (JWT).

A key is written in base32 with its kind before it and a check after it, so that a seed is not taken
for a public key, nor a user for an account.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from obuilder.errors import ConfigError

Kind = Literal["operator", "account", "user"]
_PREFIX: Mapping[Kind, int] = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
_SEED = 18 << 3


class Key:
    """A private key of one kind."""

    def __init__(self, kind: Kind, raw: bytes) -> None:
        self.kind, self._raw = kind, raw
        self._key = Ed25519PrivateKey.from_private_bytes(raw)
        self.public = _text(bytes([_PREFIX[kind]]) + self._key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        """Nothing secret."""
        return f"Key({self.public})"

    @classmethod
    def new(cls, kind: Kind) -> "Key":
        """A key that nobody else has."""
        return cls(kind, os.urandom(32))

    @classmethod
    def derived(cls, kind: Kind, master: bytes, name: str) -> "Key":
        """The key that a master secret has for a name."""
        return cls(kind, derive(master, f"{kind} {name}"))

    @classmethod
    def parse(cls, seed: str) -> "Key":
        """A key from its seed. ConfigError."""
        raw = _raw(seed)
        kinds = {number: kind for kind, number in _PREFIX.items()}
        if len(raw) == 34 and raw[0] & 0xF8 == _SEED:
            kind = kinds.get((raw[0] & 7) << 5 | raw[1] >> 3)
            if kind:
                return cls(kind, raw[2:])
        raise ConfigError("that is no seed of a key")

    @property
    def seed(self) -> str:
        """The private key as text."""
        prefix = _PREFIX[self.kind]
        return _text(bytes([_SEED | prefix >> 5, (prefix & 31) << 3]) + self._raw)

    def sign(self, data: bytes) -> bytes:
        """The signature of bytes."""
        return self._key.sign(data)


def derive(master: bytes, name: str) -> bytes:
    """32 secret bytes of a name's own."""
    return hmac.digest(master, f"obuilder {name}".encode(), "sha256")


def verified(public: str, data: bytes, signature: bytes) -> bool:
    """Whether the holder of a public key signed `data`."""
    try:
        raw = _raw(public)
        Ed25519PublicKey.from_public_bytes(raw[1:]).verify(signature, data)
    except (ConfigError, InvalidSignature, ValueError):
        return False
    return True


def token(signer: Key, subject: str, name: str, claims: Mapping[str, Any]) -> str:
    """A token that says `claims` of the holder of the public key `subject`."""
    body = {
        "iat": int(time.time()), "iss": signer.public, "sub": subject, "name": name,
        "nats": {"version": 2, **claims},
    }  # fmt: skip
    body["jti"] = base64.b32encode(hashlib.sha256(_json(body)).digest()).decode().rstrip("=")
    parts = [_url64(_json({"typ": "JWT", "alg": "ed25519-nkey"})), _url64(_json(body))]
    return ".".join([*parts, _url64(signer.sign(".".join(parts).encode()))])


def claims_of(text: str) -> dict[str, Any]:
    """What a token says, unchecked. ConfigError."""
    try:
        part = text.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError) as error:
        raise ConfigError("that is no token of NATS") from error
    return dict(found)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _text(data: bytes) -> str:
    check = binascii.crc_hqx(data, 0).to_bytes(2, "little")
    return base64.b32encode(data + check).decode().rstrip("=")


def _raw(text: str) -> bytes:
    """The bytes of a key without their check. ConfigError."""
    try:
        data = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error as error:
        raise ConfigError("that is no key of NATS") from error
    if len(data) < 3 or binascii.crc_hqx(data[:-2], 0) != int.from_bytes(data[-2:], "little"):
        raise ConfigError("that key of NATS is damaged")
    return data[:-2]
