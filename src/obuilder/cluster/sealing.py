"""What is signed and sealed: jobs by their clients, pools and clients by the cluster, secrets to a pool.

A secret is sealed as HPKE does it in spirit: a key of one use (X25519) with the pool's, HKDF, and
ChaCha20-Poly1305; only workers of the pool can open it.
"""

from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from obuilder.cluster.credentials import Credentials
from obuilder.cluster.messages import Client, Job, Pool, Signed, decode, encode
from obuilder.cluster.nkeys import Key, verified
from obuilder.errors import Refused

_SIZE = 32
_JOB = b"job\0"
R = TypeVar("R", Pool, Client)


def sign(job: bytes, credentials: Credentials) -> Signed:
    """A job's bytes with its client's signature."""
    key = credentials.key
    return Signed(job=job, key=key.public, signature=key.sign(_JOB + job))


def opened(signed: Signed, client: Client, cluster: str) -> Job:
    """The job that a key of `client` signed, whose record the cluster's key signed; or that key itself,
    by which an administrator runs a client's job again. Refused, Incompatible.
    """
    if not check_client(client, cluster):
        raise Refused(f"the cluster's key did not sign who {client.name} is")
    if client.revoked or signed.key not in (*client.keys, cluster):
        raise Refused(f"that job is signed by no key of {client.name}")
    if not verified(signed.key, _JOB + signed.job, signed.signature):
        raise Refused("the job's signature is wrong")
    job = decode(signed.job, Job)
    if job.client != client.name:
        raise Refused(f"a job of {job.client} was signed by {client.name}")
    return job


def sign_record(record: R, key: Key) -> R:
    """A record of a pool or client with the cluster's signature."""
    return msgspec.structs.replace(record, signature=key.sign(_signed_part(record)))


def check_pool(pool: Pool, cluster: str) -> bool:
    """Whether the cluster's key signed a pool."""
    return verified(cluster, _signed_part(pool), pool.signature)


def check_client(client: Client, cluster: str) -> bool:
    """Whether the cluster's key signed a client."""
    return verified(cluster, _signed_part(client), client.signature)


def _signed_part(record: Pool | Client) -> bytes:
    kind = type(record).__name__.encode() + b"\0"
    return kind + encode(msgspec.structs.replace(record, signature=b""))


def seal(key: bytes, value: bytes) -> bytes:
    """A secret for the workers of the pool of that public key."""
    once = X25519PrivateKey.generate()
    public = once.public_key().public_bytes_raw()
    shared = once.exchange(X25519PublicKey.from_public_bytes(key))
    return public + ChaCha20Poly1305(_key(shared, public + key)).encrypt(bytes(12), value, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """A secret, by the pool's private key. Refused."""
    private = X25519PrivateKey.from_private_bytes(key)
    once, rest = sealed[:_SIZE], sealed[_SIZE:]
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(once))
        salt = once + private.public_key().public_bytes_raw()
        return ChaCha20Poly1305(_key(shared, salt)).decrypt(bytes(12), rest, None)
    except (InvalidTag, ValueError) as error:
        raise Refused("a secret is not sealed for this pool") from error


def _key(shared: bytes, salt: bytes) -> bytes:
    derived = HKDF(hashes.SHA256(), length=_SIZE, salt=salt, info=b"obuilder secret")
    return derived.derive(shared)
