"""Images in registries: a name's manifest and config, and blobs that go on where they broke off.

Mirrors are asked before the registry that they stand for: what they lack or get wrong, it is asked
for. Whatever says that it may pass is tried again, more and more slowly.
"""

import hashlib
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Self, TypeVar

import anyio
import httpx2

from obuilder.errors import BadImage, DigestMismatch, FetchError, NotFound, Unreachable
from obuilder.oci.config import Config, base_of, decode
from obuilder.oci.endpoint import Endpoint, Passing, read
from obuilder.oci.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    NESTED,
    Descriptor,
    Manifest,
    check_document,
    check_layer,
    form_of,
    index_or_manifest,
    of_platform,
)
from obuilder.oci.parts import DOCUMENT
from obuilder.oci.platforms import accepted, normalised
from obuilder.oci.reference import Reference, is_sha256
from obuilder.plan.model import Base
from obuilder.values import Platform, RegistrySettings

T = TypeVar("T")

_ACCEPT = {"Accept": f"{INDEX}, {MANIFEST}, {DOCKER_INDEX}, {DOCKER_MANIFEST}"}
TRIES, _MIRRORS_TRIES = 5, 2
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 60.0
"""Who asks for more patience than that is not waited for."""
_PROGRESS = 1 << 16
"""Bytes that an answer must have brought for its end not to count as a try."""
_PIECE, _LATEST = 1 << 20, 0.25
"""Bytes after which they are handed over, and seconds: of slow ones a killed pull loses few."""
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

Take = Callable[[bytes], Awaitable[None]]
"""Takes the next bytes of a blob."""


class Patience:
    """How often something is tried again, and with which pauses."""

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._failed = 0

    async def after(self, error: Passing) -> None:
        """Wait until it is time to try again. Raises the error if it is not worth it any more."""
        self._failed += 1
        if self._failed == self._tries:
            raise error
        if error.after > _LONGEST_WAIT:
            raise Unreachable(
                f"{error.message}; it says to come back in {error.after:.0f} s", hint=error.hint
            ) from error
        pause = _FIRST_WAIT * 2 ** (self._failed - 1)
        await anyio.sleep(max(pause * random.uniform(0.75, 1.25), error.after))  # noqa: S311

    def reset(self) -> None:
        """It went on: what failed before does not count."""
        self._failed = 0


class Repository:
    """The images of one name in a registry. To be closed, or used in an `async with`."""

    def __init__(self, reference: Reference, settings: Mapping[str, RegistrySettings]) -> None:
        """Nothing is asked yet. ConfigError."""
        self.name = f"{reference.registry}/{reference.repository}"
        self._path = reference.repository
        self._scope = f"repository:{reference.repository}:pull"
        own = settings.get(reference.registry, RegistrySettings())
        places = [*own.mirrors, reference.registry]
        self._endpoints = [Endpoint(place, settings) for place in places]

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Let go of connections."""
        for endpoint in self._endpoints:
            await endpoint.close()

    async def digest(self, wanted: str) -> str | None:
        """The digest that a tag stands for now; None if only its content would tell."""

        async def ask(endpoint: Endpoint) -> str | None:
            path = f"{self._path}/manifests/{wanted}"
            async with endpoint.ask("HEAD", path, scope=self._scope, headers=_ACCEPT) as response:
                said: str = response.headers.get("docker-content-digest", "")
                return said if is_sha256(said) else None

        return await self._asked(lambda endpoint, tries: patiently(endpoint, ask, tries))

    async def manifest(self, wanted: str) -> tuple[Descriptor, bytes]:
        """What a tag or a digest stands for: its digest and type, and its content, checked."""

        async def ask(endpoint: Endpoint) -> tuple[Descriptor, bytes]:
            path = f"{self._path}/manifests/{wanted}"
            async with endpoint.ask("GET", path, scope=self._scope, headers=_ACCEPT) as response:
                data = await self._whole(response, wanted)
                kind = response.headers.get("content-type", "").partition(";")[0].strip()
                said = response.headers.get("docker-content-digest", "")
            found = Descriptor(f"sha256:{hashlib.sha256(data).hexdigest()}", kind, len(data))
            expected = wanted if is_sha256(wanted) else said
            if is_sha256(expected) and found.digest != expected:
                raise DigestMismatch(
                    f"{endpoint.host} gives something else for {self.name} than {expected}"
                )
            return found, data

        return await self._asked(lambda endpoint, tries: patiently(endpoint, ask, tries))

    async def document(self, found: Descriptor) -> bytes:
        """A small blob, checked. DigestMismatch, BadImage, NotFound."""
        check_document(found, self.name)

        async def ask(endpoint: Endpoint) -> bytes:
            path = f"{self._path}/blobs/{found.digest}"
            async with endpoint.ask("GET", path, scope=self._scope) as response:
                data = await self._whole(response, found.digest)
            found.check(data, f"{self.name}@{found.digest}")
            return data

        return await self._asked(lambda endpoint, tries: patiently(endpoint, ask, tries))

    async def _whole(self, response: httpx2.Response, what: str) -> bytes:
        data = await read(response, DOCUMENT + 1)
        if len(data) > DOCUMENT:
            raise BadImage(f"{self.name}: {what} is absurdly large")
        return data

    async def blob(self, digest: str, size: int, take: Take, *, start: int = 0) -> None:
        """Hand over the bytes of a blob from `start` on; who takes them checks the digest.

        An answer that breaks off is gone on with. Unreachable, NotFound, Denied; DigestMismatch
        if there are not `size` bytes.
        """
        transfer = _Transfer(f"{self.name}@{digest}", size, start, take)

        async def ask(endpoint: Endpoint, tries: int) -> None:
            patience = Patience(tries)
            while transfer.got < size:
                before = transfer.got
                try:
                    async with endpoint.ask(
                        "GET", f"{self._path}/blobs/{digest}",
                        scope=self._scope, headers=transfer.headers,
                    ) as response:  # fmt: skip
                        await transfer.read(response)
                except Passing as error:
                    if transfer.got - before >= _PROGRESS:
                        patience.reset()
                    else:
                        await patience.after(error)

        await self._asked(ask)

    async def _asked(self, ask: Callable[[Endpoint, int], Awaitable[T]]) -> T:
        """The first answer that an endpoint has. If none has, what the last one says."""
        *mirrors, last = self._endpoints
        for mirror in mirrors:
            try:
                return await ask(mirror, _MIRRORS_TRIES)
            except FetchError:
                continue
        return await ask(last, TRIES)


async def patiently(
    endpoint: Endpoint, ask: Callable[[Endpoint], Awaitable[T]], tries: int = TRIES
) -> T:
    """The answer of an endpoint, asked again while that may help."""
    patience = Patience(tries)
    while True:
        try:
            return await ask(endpoint)
        except Passing as error:
            await patience.after(error)


class _Transfer:
    """A blob on its way: `got` of its bytes were taken."""

    def __init__(self, what: str, size: int, got: int, take: Take) -> None:
        self._what, self._size, self._take = what, size, take
        self.got = got

    @property
    def headers(self) -> dict[str, str]:
        """What asks for the rest."""
        return {"Range": f"bytes={self.got}-"} if self.got else {}

    async def read(self, response: httpx2.Response) -> None:
        """Take what an answer brings, also of one that breaks off. Passing if that is not all."""
        skipped = self._skipped(response)
        pending, handed = bytearray(), time.monotonic()
        try:
            async for data in response.aiter_raw():
                piece = data[skipped:]
                skipped -= len(data) - len(piece)
                pending += piece
                if self.got + len(pending) > self._size:
                    raise DigestMismatch(
                        f"{self._what} has more than the {self._size} bytes it should have"
                    )
                if len(pending) >= _PIECE or time.monotonic() - handed > _LATEST:
                    await self._hand_over(pending)
                    handed = time.monotonic()
        except httpx2.TransportError:
            await self._hand_over(pending)
            raise
        await self._hand_over(pending)
        if self.got < self._size:
            raise Passing(f"{self._what} ends after {self.got} of {self._size} bytes")

    def _skipped(self, response: httpx2.Response) -> int:
        """How many bytes at the start of an answer are known already. DigestMismatch."""
        if response.status_code == 206:
            found = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or int(found[1]) != self.got:
                raise Unreachable(f"{self._what}: another part of it comes than was asked for")
            skipped, said = 0, found[2]
        else:
            skipped, said = self.got, response.headers.get("content-length", "*")
        if said not in ("*", str(self._size)):
            raise DigestMismatch(f"{self._what} has {said} bytes, and should have {self._size}")
        return skipped

    async def _hand_over(self, pending: bytearray) -> None:
        if pending:
            await self._take(bytes(pending))
            self.got += len(pending)
            pending.clear()


async def resolve(
    name: str, repository: Repository, reference: Reference, platform: Platform
) -> Base:
    """The image that a name stands for now, for a platform. NotFound, BadImage, DigestMismatch.

    Its digest is that of what the name stands for, which may be an index: the same for every
    platform. `blob_of` says where its layers are.
    """
    top, data = await repository.manifest(reference.wanted)
    found, digest = top, top.digest
    for _ in range(NESTED):
        what = f"{repository.name}@{found.digest}"
        image = index_or_manifest(data, what, found.media_type)
        if isinstance(image, Manifest):
            break
        found = of_platform(image.manifests, platform, name)
        check_document(found, what)
        _, data = await repository.manifest(found.digest)
    else:
        raise BadImage(f"{name}: an index in an index in an index")
    config = decode(await repository.document(image.config), Config, f"the config of {name}")
    has = Platform(config.os, config.architecture, config.variant)
    if config.architecture and normalised(has) not in accepted(platform):
        raise NotFound(f"{name} has no image for {platform}", hint=f"it is for {has}")
    for layer in image.layers:
        check_layer(layer, name)
    sources = [f"{x.digest} {x.size} {form_of(x.media_type)}" for x in image.layers]
    return base_of(name, digest, config, sources)
