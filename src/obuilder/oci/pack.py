"""Layers as blobs: compressed the same way every time, and kept in files without names."""

import hashlib
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from typing import BinaryIO, Protocol

from msgspec import Struct

from obuilder.errors import of_disk
from obuilder.oci.deflate import BLOCK, Gzip
from obuilder.oci.manifest import LAYER, Descriptor, Form
from obuilder.oci.streams import decompressed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_SUFFIXES: dict[Form, str] = {"tar": "", "gzip": "+gzip", "zstd": "+zstd"}
_ZSTD_LEVEL = 3
_PIECE = 1 << 18


class Blob(Struct, frozen=True):
    """A packed layer: the digest of its content (`diff`), and digest and size of the blob."""

    diff: str
    digest: str
    size: int
    form: Form

    @property
    def descriptor(self) -> Descriptor:
        """How a manifest names it."""
        return Descriptor(self.digest, LAYER + _SUFFIXES[self.form], self.size)


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class Packer:
    """A file to write a layer to, which is packed into `target`. `finish` tells what came of it.

    To be closed.
    """

    def __init__(self, target: BinaryIO, form: Form) -> None:
        self._target, self._form = target, form
        self._compressor: _Compressor | None = None
        if form == "gzip":
            self._compressor = Gzip()
        elif form == "zstd":
            self._compressor = zstd.ZstdCompressor(_ZSTD_LEVEL)
        self._content, self._packed = hashlib.sha256(), hashlib.sha256()
        self._pending = bytearray()
        self.size = 0

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        self._pending += data
        while len(self._pending) >= BLOCK:
            self._take(bytes(self._pending[:BLOCK]))
            del self._pending[:BLOCK]
        return len(data)

    def _take(self, data: bytes) -> None:
        self._content.update(data)
        self._keep(data if self._compressor is None else self._compressor.compress(data))

    def _keep(self, data: bytes) -> None:
        self._packed.update(data)
        self.size += len(data)
        self._target.write(data)

    def finish(self) -> Blob:
        """End it."""
        self._take(bytes(self._pending))
        if self._compressor is not None:
            self._keep(self._compressor.flush())
        self._target.flush()
        return Blob(
            f"sha256:{self._content.hexdigest()}", f"sha256:{self._packed.hexdigest()}",
            self.size, self._form,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of what packed it."""
        if isinstance(self._compressor, Gzip):
            self._compressor.close()


def scratch(directory: str) -> BinaryIO:
    """A file without a name in `directory`. Whoever closes it, however they end, leaves nothing."""
    return tempfile.TemporaryFile(dir=directory)


def packed(write: Callable[[BinaryIO], None], directory: str, form: Form) -> tuple[Blob, BinaryIO]:
    """What `write` writes, packed into a scratch file that stands at its start. StoreFull."""
    file = scratch(directory)
    try:
        with closing(Packer(file, form)) as packer:
            write(packer)  # type: ignore[arg-type] # writes like one
            blob = packer.finish()
        file.seek(0)
    except OSError as error:
        file.close()
        raise of_disk("can't pack a layer", error) from error
    except BaseException:
        file.close()
        raise
    return blob, file


def inspected(file: BinaryIO) -> Blob:
    """What a blob is that came from elsewhere, by reading all of it; it is left at its start.

    BadImage, or an error of `streams.UNREADABLE`, if it is damaged.
    """
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # reads like one
    size = file.tell()
    file.seek(0)
    head = file.read(4)
    form: Form = (
        "gzip" if head[:2] == b"\x1f\x8b" else "zstd" if head == b"\x28\xb5\x2f\xfd" else "tar"
    )
    file.seek(0)
    content = hashlib.sha256()
    with decompressed(file) as data:
        while piece := data.read(_PIECE):
            content.update(piece)
    file.seek(0)
    return Blob(f"sha256:{content.hexdigest()}", f"sha256:{digest}", size, form)


def repacked(file: BinaryIO, directory: str, form: Form) -> tuple[Blob, BinaryIO]:
    """The same layer in another form; `file` is closed."""

    def write(out: BinaryIO) -> None:
        with decompressed(file) as data:
            while piece := data.read(_PIECE):
                out.write(piece)

    with file:
        return packed(write, directory, form)
