"""An entry of a cache in another place: what a step came to, as a row of layers, signed or not.

It names all that a result stands on, so one look-up is enough to know it, and to make it. Entries are
DSSE envelopes; nothing in one is believed before it was `opened`.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from obuilder.errors import BadImage, Denied
from obuilder.oci.manifest import Descriptor, check_layer
from obuilder.oci.pack import Blob
from obuilder.oci.reference import is_sha256
from obuilder.values import Key

TYPE_CHECKING = False
if TYPE_CHECKING:  # most caches have no keys
    from obuilder.oci.signing import PrivateKey, PublicKey

_TYPE = "application/vnd.obuilder.cache.entry.v1+json"
_LOG = "application/vnd.obuilder.log.v1"
LOG = 1 << 20
"""Bytes of a log that goes along."""
_MOST_LINKS = 10_000
_KINDS = ("layer", "run", "copy")


class Log(Struct, frozen=True):
    """Where the log of a step is."""

    digest: str
    size: int

    @property
    def descriptor(self) -> Descriptor:
        """How a manifest names it."""
        return Descriptor(self.digest, _LOG, self.size)


class Link(Struct, frozen=True):
    """What `key` is to `base`: a layer. Without one it is the layer of a base image (kind layer),
    which comes from where the image does. The rest is as in `Record`.
    """

    key: Key
    base: Key | None
    kind: str
    heading: str
    stage: str
    created: float
    seconds: float
    layer: Blob | None = None
    log: Log | None = None

    def blobs(self) -> list[Descriptor]:
        """What it needs."""
        found = [] if self.layer is None else [self.layer.descriptor]
        return found if self.log is None else [*found, self.log.descriptor]


class Entry(Struct, frozen=True):
    """`key` names a step, and the last of `links`, the lowest first, is what it came to.

    `single`: made where all files are of one owner, so that only such stores can take it.
    """

    key: Key
    links: tuple[Link, ...]
    single: bool = False

    @property
    def result(self) -> Key:
        """The key of what the step came to."""
        return self.links[-1].key

    def blobs(self) -> list[Descriptor]:
        """All that it needs, each once."""
        found = {one.digest: one for link in self.links for one in link.blobs()}
        return list(found.values())


class Remote(Struct, frozen=True):
    """A result that only a cache in another place has: which one, and how it is made."""

    place: str
    link: Link


class _Signature(Struct):
    keyid: str
    sig: bytes


class _Envelope(Struct, rename={"payload_type": "payloadType"}):
    payload_type: str
    payload: bytes
    signatures: list[_Signature] = []


def _signed(payload: bytes) -> bytes:
    """What a signature is of: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(_TYPE), _TYPE.encode(), len(payload), payload)


def sealed(entry: Entry, key: "PrivateKey | None") -> bytes:
    """An entry as it is kept, signed if there is a key."""
    payload = msgspec.json.encode(entry)
    signatures = []
    if key is not None:
        signatures = [_Signature(key.public.id, key.sign(_signed(payload)))]
    return msgspec.json.encode(_Envelope(_TYPE, payload, signatures))


def opened(data: bytes, wanted: Key, keys: "Sequence[PublicKey]") -> Entry:
    """The entry of `wanted` that was kept. BadImage; Denied if none of `keys` has signed it."""
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        payload = envelope.payload
        if envelope.payload_type != _TYPE:
            raise BadImage(f"the entry of {wanted[:12]} is of the type {envelope.payload_type!r}")
        if keys and not any(
            key.verify(signature.sig, _signed(payload))
            for key in keys
            for signature in envelope.signatures[:16]
        ):
            said = "by another key" if envelope.signatures else "by nobody"
            raise Denied(f"the entry of {wanted[:12]} is signed {said}")
        entry = msgspec.json.decode(payload, type=Entry)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadImage(f"the entry of {wanted[:12]} is malformed: {error}") from error
    _check(entry, wanted)
    return entry


def _check(entry: Entry, wanted: Key) -> None:
    """BadImage: an entry that can't be one."""

    def want(condition: object, what: str) -> None:
        if not condition:
            raise BadImage(f"the entry of {wanted[:12]} is malformed: {what}")

    want(entry.key == wanted, f"it is of {entry.key[:12]}")
    want(0 < len(entry.links) <= _MOST_LINKS, "it has no links")
    below: Key | None = None
    seen = set[Key]()
    for link in entry.links:
        want(is_sha256(f"sha256:{link.key}"), "a key is none")
        want(link.base == below and link.key not in seen, "its links are not in a row")
        want(link.kind in _KINDS, f"it has a {link.kind!r}")
        want(link.layer is not None or link.kind == "layer", "a step has no layer")
        if link.layer is not None:
            check_layer(link.layer.descriptor, f"the entry of {wanted[:12]}")
            want(is_sha256(link.layer.diff), "a layer's content has no digest")
        if link.log is not None:
            want(is_sha256(link.log.digest) and 0 <= link.log.size <= LOG, "a log is none")
        below = link.key
        seen.add(link.key)


def capped(log: bytes) -> bytes:
    """As much of a log as goes along: its start and its end."""
    if len(log) <= LOG:
        return log
    half = LOG // 2 - 64
    left_out = b"\n[... %d bytes left out ...]\n" % (len(log) - 2 * half)
    return log[:half] + left_out + log[-half:]
