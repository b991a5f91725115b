"""Keys that sign: ed25519, or ECDSA on P-256 with SHA-256, in the files that openssl and cosign have.

    key = load_private("release.key", password)
    signature = key.sign(data)
    key.public.verify(signature, data)

Signatures are the same for the same data: ed25519's always are, those of ECDSA by RFC 6979 where the
library's OpenSSL can do that. The libraries are the extra `sign`: import this module where a key is
really used, which raises BackendUnavailable if they are missing.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable

import msgspec
from msgspec import Struct

from obuilder.errors import BackendUnavailable, UsageError
from obuilder.oci.attestation import ALGORITHMS, Algorithm

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import (
        ECDSA,
        SECP256R1,
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
        generate_private_key,
    )
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_der_private_key,
        load_pem_private_key,
        load_pem_public_key,
    )
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox
except ImportError as _error:
    raise BackendUnavailable(
        f"signatures need cryptography and PyNaCl: {_error}", hint="pip install obuilder[sign]"
    ) from _error

Password = Callable[[], bytes]
"""Asked for a key's password, once it is known that it has one."""

_SEALED = re.compile(
    rb"-----BEGIN ENCRYPTED (?P<kind>SIGSTORE|COSIGN) PRIVATE KEY-----(?P<body>[\w+/=\s]+)"
    rb"-----END ENCRYPTED (?P=kind) PRIVATE KEY-----"
)
_MOST = 64 << 10
"""Bytes of a file with a key."""
_COST = 1 << 16
"""What trying a password costs, as cosign has it: 64 MB and a quarter of a second."""
_MOST_MEMORY = 1 << 28
"""Bytes that trying a password may take: a file names its own price."""
_LINE = 64


class _Parameters(Struct):
    N: int
    r: int
    p: int


class _Kdf(Struct):
    name: str
    params: _Parameters
    salt: bytes


class _Cipher(Struct):
    name: str
    nonce: bytes


class _Sealed(Struct):
    """What is in cosign's file of a private key."""

    kdf: _Kdf
    cipher: _Cipher
    ciphertext: bytes


class PublicKey:
    """What signatures are checked with."""

    def __init__(self, key: EllipticCurvePublicKey | Ed25519PublicKey) -> None:
        self._key = key

    @property
    def algorithm(self) -> Algorithm:
        """Its kind."""
        return "ed25519" if isinstance(self._key, Ed25519PublicKey) else "ecdsa-p256"

    @property
    def pem(self) -> bytes:
        """The key as a file: SubjectPublicKeyInfo in PEM, which openssl and cosign read."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def id(self) -> str:
        """What tells it from others: the SHA-256 of its SubjectPublicKeyInfo, in hexadecimal."""
        data = self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(data).hexdigest()

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether the private key has signed `data`."""
        try:
            if isinstance(self._key, Ed25519PublicKey):
                self._key.verify(signature, data)
            else:
                self._key.verify(signature, data, ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """What signs."""

    def __init__(self, key: EllipticCurvePrivateKey | Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @property
    def algorithm(self) -> Algorithm:
        """Its kind."""
        return self.public.algorithm

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`: 64 bytes of ed25519, or a DER sequence of ECDSA."""
        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.sign(data)
        try:
            return self._key.sign(data, ECDSA(SHA256(), deterministic_signing=True))
        except UnsupportedAlgorithm:  # an old OpenSSL: another signature each time, as cosign's are
            return self._key.sign(data, ECDSA(SHA256()))

    def sealed(self, password: bytes) -> bytes:
        """The key as a file of cosign's, which always has a password, be it the empty one."""
        plain = self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        parameters, salt, nonce = _Parameters(_COST, 8, 1), os.urandom(32), os.urandom(24)
        box = SecretBox(_stretched(password, salt, parameters))
        said = _Sealed(
            _Kdf("scrypt", parameters, salt),
            _Cipher("nacl/secretbox", nonce),
            box.encrypt(plain, nonce).ciphertext,
        )
        body = base64.b64encode(msgspec.json.encode(said)).decode()
        kind = "ENCRYPTED SIGSTORE PRIVATE KEY"
        lines = [body[at : at + _LINE] for at in range(0, len(body), _LINE)]
        return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""]).encode()


def generate(algorithm: Algorithm = "ecdsa-p256") -> PrivateKey:
    """A new key."""
    if algorithm == "ed25519":
        return PrivateKey(Ed25519PrivateKey.generate())
    return PrivateKey(generate_private_key(SECP256R1()))


def load_private(path: str, password: Password = bytes) -> PrivateKey:
    """The private key in a file: PKCS #8 or SEC 1 in PEM, plain or with a password, or cosign's.

    A password that nobody is asked for is the empty one. UsageError.
    """
    data = _read(path)
    sealed = _SEALED.search(data)
    try:
        if sealed is not None:
            key = load_der_private_key(_opened(sealed["body"], password(), path), None)
        else:
            try:
                key = load_pem_private_key(data, None)
            except TypeError:  # it has a password
                key = load_pem_private_key(data, password() or b"\0")
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm) as error:
        if "assword" in str(error):
            raise _wrong_password(path) from error
        raise UsageError(
            f"{path} has no private key that can be read", hint="`obuilder key new` makes one"
        ) from error
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    ):
        return PrivateKey(key)
    raise _other_kind(path)


def load_public(path: str) -> PublicKey:
    """The public key in a file: SubjectPublicKeyInfo in PEM. UsageError."""
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{path} has no public key that can be read",
            hint="`obuilder key public FILE` prints that of a private one",
        ) from error
    if isinstance(key, Ed25519PublicKey) or (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    ):
        return PublicKey(key)
    raise _other_kind(path)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise UsageError(f"can't read the key {path}: {error.strerror}") from error
    if len(data) > _MOST:
        raise UsageError(f"{path} is too large for a key")
    return data


def _opened(body: bytes, password: bytes, path: str) -> bytes:
    """What is in cosign's file. ValueError, UsageError."""
    try:
        said = msgspec.json.decode(base64.b64decode(body), type=_Sealed)
    except (msgspec.MsgspecError, binascii.Error) as error:
        raise ValueError(str(error)) from error
    if said.kdf.name != "scrypt" or said.cipher.name != "nacl/secretbox":
        raise ValueError(f"a key of {said.kdf.name} and {said.cipher.name}")
    box = SecretBox(_stretched(password, said.kdf.salt, said.kdf.params))
    try:
        return box.decrypt(said.ciphertext, said.cipher.nonce)
    except CryptoError as error:
        raise _wrong_password(path) from error


def _stretched(password: bytes, salt: bytes, cost: _Parameters) -> bytes:
    """A key made of a password. ValueError if that would take too much."""
    return hashlib.scrypt(
        password, salt=salt, n=cost.N, r=cost.r, p=cost.p, maxmem=_MOST_MEMORY, dklen=32
    )


def _wrong_password(path: str) -> UsageError:
    return UsageError(
        f"the key {path} has another password", hint="give it in COSIGN_PASSWORD, or when asked"
    )


def _other_kind(path: str) -> UsageError:
    kinds = " or ".join(ALGORITHMS)
    return UsageError(f"the key {path} is of another kind than {kinds}")
