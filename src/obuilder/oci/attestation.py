"""What is said of an image, and signed, in the forms that others read: in-toto, DSSE, cosign.

Pure: keys come from `signing`, or from anything else that signs bytes.
"""

import base64
from typing import Any, Protocol

import msgspec

IN_TOTO = "application/vnd.in-toto+json"
SPDX = "application/spdx+json"
DSSE = "application/vnd.dsse.envelope.v1+json"
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
SPDX_TYPE = "https://spdx.dev/Document"
SIGNATURE = "dev.cosignproject.cosign/signature"
"""The annotation that has a signature of a layer."""
_STATEMENT = "https://in-toto.io/Statement/v1"


class Signer(Protocol):
    """A private key."""

    def sign(self, data: bytes) -> bytes:
        """The signature of data."""


def statement(name: str, digest: str, kind: str, predicate: bytes) -> bytes:
    """A statement of in-toto: of the image `name`, whose manifest is `digest`, that is said.

    `kind` is the predicate's type, `predicate` its JSON.
    """
    return msgspec.json.encode(
        {
            "_type": _STATEMENT,
            "subject": [{"name": name, "digest": _digests(digest)}],
            "predicateType": kind,
            "predicate": msgspec.Raw(predicate),
        }
    )


def envelope(statement: bytes, key: Signer) -> bytes:
    """A statement with its signature: an envelope of DSSE."""
    signature = key.sign(pre_authentication(IN_TOTO, statement))
    return msgspec.json.encode(
        {
            "payloadType": IN_TOTO,
            "payload": _text(statement),
            "signatures": [{"keyid": "", "sig": _text(signature)}],
        }
    )


def pre_authentication(kind: str, payload: bytes) -> bytes:
    """What is signed of a payload of that type, as DSSE has it."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def simple_signing(name: str, digest: str) -> bytes:
    """What is signed of an image: that the manifest `digest` goes by `name`."""
    said: dict[str, Any] = {
        "critical": {
            "identity": {"docker-reference": name},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    return msgspec.json.encode(said)


def signed(payload: bytes, key: Signer) -> dict[str, str]:
    """The annotation of a layer that has this payload."""
    return {SIGNATURE: _text(key.sign(payload))}


def _digests(digest: str) -> dict[str, str]:
    algorithm, _, value = digest.partition(":")
    return {algorithm: value}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
