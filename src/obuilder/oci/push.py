"""Images into registries: what is there already is not sent, what breaks off goes on.

A blob is there, or another repository of the registry lends it (a mount), or it is sent: a small one
whole, a large one piece by piece, each of which is sent again, where it broke off, if that may help.
"""

import io
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import BinaryIO, Self

import httpx2

from obuilder.errors import BadImage, Denied, DigestMismatch, NotFound, Unreachable
from obuilder.oci.assemble import Document
from obuilder.oci.attached import Attached
from obuilder.oci.endpoint import Content, Endpoint, Passing, read
from obuilder.oci.manifest import INDEX, MANIFEST, Descriptor
from obuilder.oci.parts import DOCUMENT
from obuilder.oci.reference import Reference
from obuilder.oci.registry import TRIES, Patience, patiently
from obuilder.values import RegistrySettings

_WHOLE = 8 << 20
"""Bytes of the largest blob that is sent in one request."""
_CHUNK = 16 << 20
_PIECE = 1 << 18
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")

Progress = Callable[[int], None]
"""Takes how many bytes of a blob are there."""


class Target:
    """A repository that images are pushed to. To be closed, or used in an `async with`."""

    def __init__(self, reference: Reference, settings: Mapping[str, RegistrySettings]) -> None:
        """Nothing is asked yet. ConfigError."""
        self.name = f"{reference.registry}/{reference.repository}"
        self._registry, self._path = reference.registry, reference.repository
        self._scope = f"repository:{self._path}:pull,push"
        self._endpoint = Endpoint(reference.registry, settings)

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Let go of connections."""
        await self._endpoint.close()

    async def has(self, digest: str, origin: Reference | None = None) -> bool:
        """Whether a blob is there, or is by now: lent by `origin`, an image that has it."""

        async def look(endpoint: Endpoint) -> bool:
            path = f"{self._path}/blobs/{digest}"
            try:
                async with endpoint.ask("HEAD", path, scope=self._scope):
                    return True
            except NotFound:
                return False

        if await patiently(self._endpoint, look):
            return True
        if origin is None or origin.registry != self._registry or origin.repository == self._path:
            return False
        return await self._lent(digest, origin.repository)

    async def _lent(self, digest: str, lender: str) -> bool:
        path = f"{self._path}/blobs/uploads/?mount={digest}&from={lender}"
        scope = f"{self._scope} repository:{lender}:pull"

        async def ask(endpoint: Endpoint) -> tuple[int, str]:
            async with endpoint.ask("POST", path, scope=scope, content=_nothing) as response:
                return response.status_code, response.headers.get("location", "")

        try:
            status, upload = await patiently(self._endpoint, ask)
        except (Denied, NotFound, Unreachable):
            return False  # then it is sent, which may go well or says why it can't be
        if status == 201:
            return True
        await self._drop(upload)
        return False

    async def _drop(self, upload: str) -> None:
        """Give up an upload that the registry has begun for us."""
        try:
            async with self._endpoint.ask("DELETE", upload, scope=self._scope):
                pass
        except (Denied, NotFound, Unreachable):
            return  # registries forget them by themselves

    async def put(self, digest: str, size: int, file: BinaryIO, progress: Progress) -> None:
        """Send a blob, the bytes of `file` from its start. Denied, Unreachable."""
        upload = _Upload(self._endpoint, self._path, self._scope, digest, size, file, progress)
        patience = Patience(TRIES)
        while True:
            try:
                await (upload.whole() if size <= _WHOLE else upload.pieces())
                return
            except Passing as error:
                if upload.went_on():
                    patience.reset()
                else:
                    await patience.after(error)
            except NotFound as error:
                raise _no_place(self.name, error) from error

    async def read(self, tag: str) -> bytes | None:
        """The manifest or index that stands under a tag; None if none does. Denied, Unreachable."""

        async def ask(endpoint: Endpoint) -> bytes | None:
            path, headers = f"{self._path}/manifests/{tag}", {"Accept": f"{INDEX}, {MANIFEST}"}
            try:
                async with endpoint.ask(
                    "GET", path, scope=self._scope, headers=headers
                ) as response:
                    data = await read(response, DOCUMENT + 1)
            except NotFound:
                return None
            if len(data) > DOCUMENT:
                raise BadImage(f"{self.name}:{tag} is absurdly large")
            return data

        return await patiently(self._endpoint, ask)

    async def manifest(self, wanted: str, found: Descriptor, data: bytes) -> bool:
        """Put a manifest or an index under a tag, or its digest. Denied, Unreachable.

        Whether the registry lists it by its subject.
        """

        async def ask(endpoint: Endpoint) -> tuple[str, bool]:
            headers = {"Content-Type": found.media_type, "Content-Length": str(len(data))}
            async with endpoint.ask(
                "PUT", f"{self._path}/manifests/{wanted}",
                scope=self._scope, headers=headers, content=lambda: _bytes(data),
            ) as response:  # fmt: skip
                said: str = response.headers.get("docker-content-digest", "")
                return said, "oci-subject" in response.headers

        try:
            said, listed = await patiently(self._endpoint, ask)
        except NotFound as error:
            raise _no_place(self.name, error) from error
        if said and said != found.digest:
            raise DigestMismatch(
                f"{self.name} says that it has {said}, and was sent {found.digest}"
            )
        return listed


async def attach(target: Target, attached: Attached) -> None:
    """Put what goes along with a manifest. Where that is not listed by subject, a tag does it.

    Denied, Unreachable, BadImage.
    """
    there: dict[str, bytes] = {}
    for tag in attached.tags[1:]:
        found = await target.read(tag)
        if found is not None:
            there[tag] = found
    artifacts = attached.whole(there)
    listed = True
    for artifact in artifacts:
        for blob in artifact.blobs:
            await put_document(target, blob)
        found_as = artifact.manifest.descriptor
        listed &= await target.manifest(
            artifact.tag or found_as.digest, found_as, artifact.manifest.data
        )
    if not listed:
        before = await target.read(attached.tag)
        listing = attached.listing(
            artifacts, there if before is None else {**there, attached.tag: before}
        )
        await target.manifest(attached.tag, listing.descriptor, listing.data)


async def put_document(target: Target, document: Document) -> None:
    """Send a small blob, unless it is there."""
    found = document.descriptor
    if not await target.has(found.digest):
        await target.put(found.digest, found.size, io.BytesIO(document.data), lambda _: None)


class _Upload:
    """A blob on its way out."""

    def __init__(
        self, endpoint: Endpoint, path: str, scope: str, digest: str, size: int, file: BinaryIO,
        progress: Progress,
    ) -> None:  # fmt: skip
        self._endpoint, self._path, self._scope = endpoint, path, scope
        self._digest, self._size, self._file, self._progress = digest, size, file, progress
        self._location, self._sent, self._best = "", 0, 0
        self._chunk = _CHUNK

    def went_on(self) -> bool:
        """Whether more is there than at any failure before."""
        more, self._best = self._sent > self._best, max(self._sent, self._best)
        return more

    async def whole(self) -> None:
        """Send it in one request, after one that asks where to."""
        await self._begin()
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(self._size)}
        await self._end(headers, lambda: self._read(0, self._size))

    async def pieces(self) -> None:
        """Send what is not there yet."""
        if self._location:
            await self._look()
        if not self._location:
            await self._begin()
        while self._sent < self._size:
            end = min(self._sent + self._chunk, self._size)
            await self._piece(self._sent, end)
        await self._end({"Content-Length": "0"}, _nothing)

    async def _begin(self) -> None:
        async with self._endpoint.ask(
            "POST", f"{self._path}/blobs/uploads/",
            scope=self._scope, headers={"Content-Length": "0"}, content=_nothing,
        ) as response:  # fmt: skip
            self._take(response)
            least = response.headers.get("oci-chunk-min-length", "")
            if least.isascii() and least.isdecimal():
                self._chunk = max(self._chunk, int(least))
        self._sent = 0

    async def _piece(self, start: int, end: int) -> None:
        headers = {
            "Content-Type": "application/octet-stream", "Content-Length": str(end - start),
            "Content-Range": f"{start}-{end - 1}",
        }  # fmt: skip
        async with self._endpoint.ask(
            "PATCH", self._location,
            scope=self._scope, headers=headers, content=lambda: self._read(start, end),
        ) as response:  # fmt: skip
            self._take(response)
        self._sent = end

    async def _look(self) -> None:
        """How much of it a registry has that broke off; an upload it does not know begins anew."""
        try:
            async with self._endpoint.ask("GET", self._location, scope=self._scope) as response:
                found = _RANGE.fullmatch(response.headers.get("range", ""))
                self._take(response)
        except NotFound:
            self._location = ""
            return
        # Zero bytes are told as 0-0, as one byte is: that one is sent again.
        has = 0 if found is None else int(found[1]) + 1
        self._sent = 0 if has == 1 else has
        if self._sent > self._size:
            self._location = ""

    async def _end(self, headers: Mapping[str, str], content: Content) -> None:
        mark = "&" if "?" in self._location else "?"
        async with self._endpoint.ask(
            "PUT", f"{self._location}{mark}digest={self._digest}",
            scope=self._scope, headers=headers, content=content,
        ):  # fmt: skip
            self._progress(self._size)

    def _take(self, response: httpx2.Response) -> None:
        location = response.headers.get("location", "") or self._location
        if not location:
            raise Unreachable(f"{self._endpoint.host} takes a blob and does not say where")
        self._location = str(response.url.join(location))

    async def _read(self, start: int, end: int) -> AsyncIterator[bytes]:
        self._file.seek(start)
        while start < end:
            data = self._file.read(min(_PIECE, end - start))
            if not data:
                raise Unreachable("a layer became shorter while it was sent")
            start += len(data)
            yield data
            self._progress(start)


async def _bytes(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _nothing() -> AsyncIterator[bytes]:
    return _bytes(b"")


def _no_place(name: str, error: NotFound) -> Unreachable:
    reason = error.message.partition(": ")[2]
    return Unreachable(f"{name} takes no images: {reason}", hint="is that the whole name of it?")
