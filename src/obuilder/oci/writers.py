"""Where images go on this machine: layouts, archives of layouts, archives for `docker load`.

Each takes layers, and at last the images that they are of: a layout's index is there when all else
is. Everything here blocks; what goes wrong is an OSError.
"""

import fcntl
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from shutil import copyfileobj
from typing import Any, BinaryIO, Protocol

import msgspec
from msgspec import Struct

from obuilder.errors import NotFound, UsageError
from obuilder.oci.assemble import Document, Image, described
from obuilder.oci.attached import Attached
from obuilder.oci.manifest import Descriptor
from obuilder.oci.members import Out, end
from obuilder.oci.pack import Blob
from obuilder.oci.parts import DOCUMENT
from obuilder.oci.reference import Reference, is_sha256
from obuilder.system.replacing import replacing

_PIECE = 1 << 20
_TAG = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class Finished(Struct, frozen=True):
    """What was made: images, the index of them if there is one, the names for that, and what goes
    along with each.
    """

    images: tuple[Image, ...]
    index: Document | None
    names: tuple[str, ...]
    attached: tuple[Attached, ...] = ()

    @property
    def top(self) -> Document:
        """What the names are for."""
        return self.images[0].manifest if self.index is None else self.index

    def contents(self, there: Mapping[str, bytes]) -> tuple[list[Document], list[dict[str, Any]]]:
        """Configs, manifests and indexes, each after what it names, and what the index of a layout
        has of them: an entry for each name. `there` has documents of the layout by tag.
        """
        documents = [part for image in self.images for part in (image.config, image.manifest)]
        if self.index is not None:
            documents.append(self.index)
        top = self.index.descriptor if self.index is not None else described(self.images[0])
        entries = [_entry(top, _named(name)) for name in self.names]
        for attached in self.attached:
            artifacts = attached.whole(there)
            listing = attached.listing(artifacts, there)
            for artifact in artifacts:
                documents += [*artifact.blobs, artifact.manifest]
                if artifact.tag:
                    entries.append(_entry(artifact.manifest.descriptor, {_TAG: artifact.tag}))
            documents.append(listing)
            entries.append(_entry(listing.descriptor, {_TAG: attached.tag}))
        return documents, entries


class Writer(Protocol):
    """Takes images."""

    def has(self, blob: Blob) -> bool:
        """Whether it has a layer already."""

    def put(self, blob: Blob, file: BinaryIO) -> None:
        """Take a layer that it does not have."""

    def finish(self, made: Finished) -> None:
        """Take the rest."""


class Layout:
    """An OCI image layout in a directory, which may have images already: their names go over."""

    def __init__(self, path: str) -> None:
        """UsageError: the directory is something else."""
        self._path = path
        self._blobs = os.path.join(path, "blobs", "sha256")
        self._index = os.path.join(path, "index.json")
        there = os.path.exists(os.path.join(path, "oci-layout"))
        if not there and os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
            raise UsageError(
                f"{path} is no image layout, and not empty", hint="name a new directory"
            )

    def has(self, blob: Blob) -> bool:
        """See `Writer`."""
        try:
            return os.stat(self._blob(blob.digest)).st_size == blob.size
        except FileNotFoundError:
            return False

    def put(self, blob: Blob, file: BinaryIO) -> None:
        """See `Writer`."""
        self.write(blob.digest, file)

    def finish(self, made: Finished) -> None:
        """See `Writer`."""
        with self._locked():
            before = _manifests(self._index)
            tags = {tag for attached in made.attached for tag in attached.tags}
            there = {tag: self._read(one) for one in before if (tag := _tag(one)) in tags and tag}
            documents, entries = made.contents(there)
            for document in documents:
                self.write(document.descriptor.digest, io.BytesIO(document.data))
            self._list(before, entries)

    def write(self, digest: str, content: BinaryIO) -> None:
        """Take a blob, whatever it is."""
        self._write(self._blob(digest), content)

    def add(self, entries: list[dict[str, Any]]) -> None:
        """Take entries of the index, in place of those of the same tags; others may do so meanwhile."""
        with self._locked():
            self._list(_manifests(self._index), entries)

    def _list(self, before: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
        names = {entry["annotations"][_TAG] for entry in entries}
        others = [one for one in before if not names & {_tag(one)}]
        self._write(self._index, io.BytesIO(_index_json([*others, *entries])))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._begin()
        with open(os.path.join(self._path, "oci-layout"), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _begin(self) -> None:
        """What was begun and failed is a layout all the same, to be gone on with."""
        layout = os.path.join(self._path, "oci-layout")
        if not os.path.exists(self._blobs) or not os.path.exists(layout):
            os.makedirs(self._blobs, exist_ok=True)
            with replacing(layout) as file:
                file.write(_LAYOUT)

    def _blob(self, digest: str) -> str:
        return os.path.join(self._blobs, digest.partition(":")[2])

    def _read(self, entry: dict[str, Any]) -> bytes:
        """A document that the index names; nothing, if it is not there."""
        digest = str(entry.get("digest"))
        try:
            with open(self._blob(digest), "rb") as file:
                return file.read(DOCUMENT) if is_sha256(digest) else b""
        except OSError:
            return b""

    def _write(self, path: str, content: BinaryIO) -> None:
        """Write a file, at once or not at all."""
        self._begin()
        with replacing(path) as file:
            copyfileobj(content, file, _PIECE)


class _Archive:
    """Members of a tar archive, the same for the same content, to a file that need not seek."""

    def __init__(self, file: BinaryIO) -> None:
        self._out = Out(file.write)
        self._tar = tarfile.TarFile(fileobj=self._out, mode="w", copybufsize=_PIECE)  # type: ignore[arg-type] # all it uses
        self._names: set[str] = set()

    def add(self, name: str, size: int, content: BinaryIO) -> None:
        """Add a file, unless it is there."""
        if name not in self._names:
            self._names.add(name)
            member = tarfile.TarInfo(name)
            member.size = size
            self._tar.addfile(member, content)

    def data(self, name: str, data: bytes) -> None:
        """Add a small file."""
        self.add(name, len(data), io.BytesIO(data))

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def finish(self) -> None:
        """Write the end."""
        end(self._tar, self._out)


class OciArchive:
    """An OCI image layout in a tar archive."""

    def __init__(self, file: BinaryIO) -> None:
        self._archive = _Archive(file)

    def has(self, blob: Blob) -> bool:
        """See `Writer`."""
        return _path(blob.digest) in self._archive

    def put(self, blob: Blob, file: BinaryIO) -> None:
        """See `Writer`."""
        self._archive.add(_path(blob.digest), blob.size, file)

    def finish(self, made: Finished) -> None:
        """See `Writer`."""
        documents, entries = made.contents({})
        for document in documents:
            self._archive.data(_path(document.descriptor.digest), document.data)
        self._archive.data("index.json", _index_json(entries))
        self._archive.data("oci-layout", _LAYOUT)
        self._archive.finish()


class DockerArchive:
    """What `docker load` takes, any version: one image, with plain layers."""

    def __init__(self, file: BinaryIO) -> None:
        self._archive = _Archive(file)

    def has(self, blob: Blob) -> bool:
        """See `Writer`."""
        return _layer(blob) in self._archive

    def put(self, blob: Blob, file: BinaryIO) -> None:
        """See `Writer`."""
        self._archive.add(_layer(blob), blob.size, file)

    def finish(self, made: Finished) -> None:
        """See `Writer`."""
        (image,) = made.images
        config = f"{image.config.descriptor.digest.partition(':')[2]}.json"
        self._archive.data(config, image.config.data)
        listed = [
            {
                "Config": config, "RepoTags": list(made.names),
                "Layers": [_layer(blob) for blob in image.layers],
            }
        ]  # fmt: skip
        self._archive.data("manifest.json", msgspec.json.encode(listed))
        self._archive.finish()


def _entry(found: Descriptor, annotations: dict[str, str]) -> dict[str, Any]:
    return {**msgspec.to_builtins(found), "annotations": annotations}


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _layer(blob: Blob) -> str:
    return f"{blob.digest.partition(':')[2]}.tar"


def _index_json(manifests: list[dict[str, Any]]) -> bytes:
    return msgspec.json.encode({"schemaVersion": 2, "manifests": manifests})


def _manifests(index: str) -> list[dict[str, Any]]:
    """What a layout has already. UsageError."""
    try:
        with open(index, "rb") as file:
            said = msgspec.json.decode(file.read(), type=dict[str, Any])
    except FileNotFoundError:
        return []
    except msgspec.MsgspecError as error:
        raise UsageError(f"{index} is damaged: {error}", hint="name a new directory") from error
    found = said.get("manifests")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _tag(entry: dict[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    return annotations.get(_TAG) if isinstance(annotations, dict) else None


def _named(name: str) -> dict[str, str]:
    """How a name stands in an index: a tag alone as it is, a whole name as Docker means it too."""
    if "/" not in name and ":" not in name:
        return {_TAG: name}
    try:
        return {_FULL_NAME: str(Reference.parse(name)), _TAG: name}
    except NotFound:
        return {_TAG: name}
