"""Images in a tar archive, itself compressed or not: its parts are read where they lie.

A layer's `source`, which `opened` takes, is `OFFSET+SIZE:PATH` of what is in an archive, or the
path of a file of its own.
"""

import posixpath
import re
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from obuilder.errors import BadImage
from obuilder.oci.parts import DOCUMENT
from obuilder.oci.streams import MOST_DATA, UNREADABLE, Window, decompressed, read_tar

_DOCUMENTS = 4 * DOCUMENT
"""Bytes of all documents in one archive: they are held in memory."""
_MEMBERS = 100_000
_HOPS = 8
_IN_ARCHIVE = re.compile(r"(\d+)\+(\d+):(.+)", re.DOTALL)


class Archive:
    """Parts that are members of a tar archive, itself compressed or not.

    Only its headers and its documents are read, once; nothing that it names touches a file system.
    """

    def __init__(self, file: BinaryIO, place: str) -> None:
        """Look through `file`, which must be seekable. BadImage."""
        self.place = place
        self._spans: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        self._documents: dict[str, bytes] = {}
        self._twice: set[str] = set()
        self._room = _DOCUMENTS
        try:
            with read_tar(file, seek=True) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined,unused-ignore] # else all stay in memory
                    self._add(tar, member)
        except BadImage as error:
            raise BadImage(f"{place}: {error.message}") from error
        except UNREADABLE as error:
            raise BadImage(f"{place} is damaged or no tar archive: {error}") from error
        except (ValueError, OverflowError) as error:  # numbers that make no sense
            raise BadImage(f"{place} is damaged: {error}") from error

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = posixpath.normpath(member.name)
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise BadImage(f"the archive names a file outside of itself: {member.name!r}")
        if len(self._spans) + len(self._links) >= _MEMBERS:
            raise BadImage(f"the archive has more than {_MEMBERS} files")
        if member.isdir():
            return
        if name in self._spans or name in self._links:
            self._twice.add(name)
        if member.issym():
            self._links[name] = posixpath.join(posixpath.dirname(name), member.linkname)
        elif member.islnk():
            self._links[name] = member.linkname
        elif member.isreg() and member.sparse is None:  # type: ignore[attr-defined,unused-ignore]
            self._spans[name] = (member.offset_data, member.size)
            if member.offset_data + member.size > MOST_DATA:
                raise BadImage(f"the archive is absurdly large at {member.name!r}")
            if member.size <= min(DOCUMENT, self._room):
                self._keep(tar, member, name)
        else:
            raise BadImage(f"the archive has a member of a kind no image has: {member.name!r}")

    def _keep(self, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
        """Keep what may be a document: to come back for it is dear in a compressed archive."""
        content = tar.extractfile(member)
        assert content is not None
        head = content.read(1)
        if head in (b"{", b"["):
            self._documents[name] = data = head + content.read()
            self._room -= len(data)

    def __contains__(self, path: str) -> bool:
        return path in self._spans or path in self._links

    def document(self, path: str) -> bytes:
        """The content of a JSON part. BadImage."""
        name, _ = self._found(path)
        if name not in self._documents:
            raise BadImage(f"{self.place}: {path} is malformed, or absurdly large")
        return self._documents[name]

    def span(self, path: str) -> tuple[int, int]:
        """Offset and size of a part in the content of the archive. BadImage."""
        return self._found(path)[1]

    def source(self, path: str) -> str:
        """Where `opened` finds a layer. BadImage if it is not there."""
        offset, size = self.span(path)
        return f"{offset}+{size}:{self.place}"

    def _found(self, path: str) -> tuple[str, tuple[int, int]]:
        name = posixpath.normpath(path)
        for _ in range(_HOPS):
            if name in self._twice:
                raise BadImage(f"{self.place} has {name} twice")
            if name in self._spans:
                return name, self._spans[name]
            if name not in self._links:
                break
            name = posixpath.normpath(self._links[name])
        raise BadImage(f"{self.place} lacks a part of its image: there is no {path!r} in it")


@contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """The bytes of a layer, as they lie there. BadImage."""
    within = _IN_ARCHIVE.fullmatch(source)
    path = within[3] if within else source
    try:
        with ExitStack() as stack:
            file: BinaryIO = stack.enter_context(open(path, "rb"))
            if within:
                file = stack.enter_context(decompressed(file))
                file.seek(int(within[1]))
                file = Window(file, int(within[2]))  # type: ignore[assignment] # reads like one
            yield file
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadImage(f"can't read {path}: {reason}") from error
