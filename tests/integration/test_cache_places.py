"""Every kind of cache keeps the same promises (backends.caches.Place)."""

import hashlib
import io
import os

import pytest

from caches import KINDS, Shelf, shelf
from obuilder.backends.caches import Place, open_place
from obuilder.errors import Denied, DigestMismatch, NotFound, Unreachable
from obuilder.oci.manifest import Descriptor
from obuilder.values import CacheSettings, Key

__all__ = ["shelf"]
pytestmark = [
    pytest.mark.needs("registry"), pytest.mark.anyio, pytest.mark.xdist_group("caches")
]  # fmt: skip

BIG = os.urandom(17 << 20)
"""More than is sent in one piece anywhere."""
DIGEST = f"sha256:{hashlib.sha256(BIG).hexdigest()}"
KEY, OTHER = Key("0" * 63 + "1"), Key("0" * 63 + "2")


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> str:
    cache = shelf.cache(request.param)
    for variable, value in cache.variables.items():
        monkeypatch.setenv(variable, value)
    return cache.name


def place(name: str) -> Place:
    return open_place(name, CacheSettings(), {})


async def blob(place: Place, digest: str, size: int, start: int = 0) -> bytes:
    found = bytearray()

    async def take(data: bytes) -> None:
        found.extend(data)

    await place.blob(digest, size, take, start=start)
    return bytes(found)


async def test_entries_and_blobs(name: str) -> None:
    here, there = place(name), place(name)
    assert await here.entry(KEY) is None
    assert not await here.has(DIGEST, len(BIG))
    with pytest.raises(NotFound):
        await blob(here, DIGEST, len(BIG))
    heard = list[int]()
    await here.put(DIGEST, len(BIG), io.BytesIO(BIG), heard.append)
    assert heard[-1] == len(BIG)
    assert heard == sorted(heard)
    assert await there.has(DIGEST, len(BIG))
    assert await blob(there, DIGEST, len(BIG)) == BIG
    assert await blob(there, DIGEST, len(BIG), len(BIG) - 7) == BIG[-7:]
    with pytest.raises(DigestMismatch):
        await blob(there, DIGEST, len(BIG) - 1)
    needs = [Descriptor(DIGEST, "application/vnd.oci.image.layer.v1.tar", len(BIG))]
    await here.put_entry(KEY, b"first", needs)
    await here.put_entry(KEY, b"second", needs)
    await here.put_entry(OTHER, b"other", [])
    await here.finish()
    assert await there.entry(KEY) == b"second"
    assert await there.entry(OTHER) == b"other"
    for one in (here, there):
        await one.close()


async def test_who_is_not_let_in(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", shelf.docker_config())
    stranger = place(shelf.cache("registry").name)
    with pytest.raises(Denied):
        await stranger.entry(KEY)
    await stranger.close()
    cache = shelf.cache("s3")
    for variable, value in cache.variables.items():
        monkeypatch.setenv(variable, value)
    nowhere = place("s3://no-such-bucket-of-anybody/x")
    with pytest.raises(Unreachable, match="no such bucket"):
        await nowhere.entry(KEY)
