"""Unpacking a layer, which may be hostile: nothing it says reaches outside of the root."""

import errno
import os
import stat
import tarfile
from collections.abc import Callable
from typing import BinaryIO

from obuilder.errors import BadImage, of_disk
from obuilder.oci.streams import (
    DAMAGED,
    MOST_DATA,
    UNREADABLE,
    Counted,
    Hashed,
    Padded,
    decompressed,
    read_tar,
)
from obuilder.system.files import InRoot, kept_xattr, remove_at, write_all
from obuilder.values import IdMap

_SIZE = 1 << 43
"""Apparent size of one file, holes included."""
_DEPTH = 500
_BLOCK = 1 << 20
_LATEST = 1 << 33


def unpack(
    file: BinaryIO,
    root: str,
    idmap: IdMap,
    note: Callable[[str], None],
    *,
    whiteouts: bool = True,
) -> None:
    """Put the layer in the tar stream `file` over what is in `root`. BadImage, StoreFull.

    Whiteouts remove what is below (without `whiteouts` their names are names like any other);
    owners are shifted by `idmap`; devices are left out with a note. Symlinks on the way are
    followed inside the root; `..` is refused.
    """
    what = ""
    try:
        with InRoot(root) as inside, read_tar(file) as tar:
            layer = _Layer(tar, inside, idmap, note, whiteouts=whiteouts)
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined,unused-ignore] # else all stay in memory
                what = member.name
                layer.put(member)
            layer.finish()
    except DAMAGED as error:
        raise BadImage(f"the layer is damaged: {error}") from error
    except OSError as error:
        raise of_disk(f"can't unpack {what!r}", error, BadImage) from error
    except (ValueError, OverflowError) as error:
        raise BadImage(f"can't unpack {what!r}: {error}") from error


def unpack_blob(
    blob: BinaryIO,
    digest: str,
    what: str,
    root: str,
    idmap: IdMap,
    note: Callable[[str], None],
    *,
    most: int | None = None,
) -> None:
    """Unpack a layer, compressed or not, whose content uncompressed must be of `digest`.

    There may be `most` bytes of it. `what` is what messages call it. DigestMismatch, BadImage,
    StoreFull.
    """
    try:
        packed = Counted(blob)
        with decompressed(packed) as content:
            hashed = Hashed(content, packed, most)
            unpack(Padded(hashed), root, idmap, note)  # type: ignore[arg-type] # reads like one
            hashed.finish(digest, what)
    except UNREADABLE as error:
        raise BadImage(f"{what} is damaged: {error}") from error


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise BadImage(f"the layer names a file outside of its root: {name!r}")
    if len(parts) > _DEPTH:
        raise BadImage(f"the layer has a file {len(parts)} directories deep")
    return parts


class _Layer:
    def __init__(
        self,
        tar: tarfile.TarFile,
        inside: InRoot,
        idmap: IdMap,
        note: Callable[[str], None],
        *,
        whiteouts: bool,
    ) -> None:
        self._whiteouts = whiteouts
        self._tar, self._inside, self._idmap, self._note = tar, inside, idmap, note
        self._made: set[str] = set()
        self._times: dict[str, int] = {}
        self._data = 0
        self._parents = (-1, -1) if idmap.single else (idmap.to_disk(0), idmap.to_disk(0))

    def put(self, member: tarfile.TarInfo) -> None:
        parts = _parts(member.name)
        if not parts:
            if member.isdir():
                self._dress(self._inside.fd, member)
                self._times[""] = _time(member)
            return
        name, parent = parts[-1], "/".join(parts[:-1])
        if self._whiteouts and name.startswith(".wh."):
            self._whiteout(parent, name)
            return
        at = os.dup(self._inside.directory(parent, make=self._parents))
        try:
            self._entry(member, parts, at)
        finally:
            os.close(at)

    def _entry(self, member: tarfile.TarInfo, parts: list[str], at: int) -> None:
        path, name = "/".join(parts), parts[-1]
        for depth in range(len(parts)):
            self._made.add("/".join(parts[: depth + 1]))
        if member.isdir():
            self._directory(member, path, name, at)
        elif member.islnk():
            self._link(member, path, name, at)
        elif member.issym():
            self._clear(name, at)
            os.symlink(member.linkname, name, dir_fd=at)
            self._own(name, at, member)
            os.utime(name, ns=(_time(member),) * 2, dir_fd=at, follow_symlinks=False)
        elif member.isfifo():
            self._clear(name, at)
            os.mkfifo(name, 0o600, dir_fd=at)
            self._own(name, at, member)
            os.chmod(name, member.mode & 0o7777, dir_fd=at)
            os.utime(name, ns=(_time(member),) * 2, dir_fd=at)
        elif member.ischr() or member.isblk():
            if parts[0] != "dev":  # a step has its own /dev, over whatever is there
                self._note(f"left out the device /{path}\n")
        elif member.isreg():
            self._file(member, name, at)
        else:
            raise BadImage(f"the layer has a member of unknown type: {member.name!r}")

    def finish(self) -> None:
        """Set the times of directories, now that nothing more is put into them."""
        for path, time in self._times.items():
            try:
                os.utime(self._inside.directory(path), ns=(time, time))
            except OSError:  # replaced by a later member
                continue

    def _clear(self, name: str, at: int) -> None:
        """Make room for `name`, whatever is there."""
        try:
            before = os.stat(name, dir_fd=at, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISREG(before.st_mode):
            os.unlink(name, dir_fd=at)
            return
        remove_at(name, at=at)
        self._inside.forget()  # what is known of directories may have led through it

    def _directory(self, member: tarfile.TarInfo, path: str, name: str, at: int) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=at)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                self._clear(name, at)
                os.mkdir(name, 0o700, dir_fd=at)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        try:
            self._dress(fd, member)
        finally:
            os.close(fd)
        self._times[path] = _time(member)

    def _file(self, member: tarfile.TarInfo, name: str, at: int) -> None:
        pieces: list[tuple[int, int]] = [(0, member.size)]
        if member.sparse is not None:  # type: ignore[attr-defined,unused-ignore]
            pieces = list(member.sparse)  # type: ignore[arg-type,attr-defined,unused-ignore]
        self._data += sum(size for _, size in pieces)
        if member.size > _SIZE or self._data > MOST_DATA:
            raise BadImage(f"the layer is absurdly large at {member.name!r}")
        self._clear(name, at)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=at)
        try:
            buffered = self._tar.extractfile(member)
            assert buffered is not None
            # a buffered one wants a seekable archive; below it, skipping forward is enough
            content: BinaryIO = buffered.raw  # type: ignore[attr-defined,unused-ignore]
            for start, size in pieces:
                if start < 0 or size < 0 or start + size > member.size:
                    raise BadImage(f"the layer has a malformed sparse file, {member.name!r}")
                if not size:
                    continue
                content.seek(start)
                os.lseek(fd, start, os.SEEK_SET)
                left = size
                while left:
                    data = content.read(min(_BLOCK, left))
                    if not data:
                        raise BadImage(f"the layer ends within {member.name!r}")
                    write_all(fd, data)
                    left -= len(data)
            os.ftruncate(fd, member.size)
            self._dress(fd, member)
            os.utime(fd, ns=(_time(member),) * 2)
        finally:
            os.close(fd)

    def _link(self, member: tarfile.TarInfo, path: str, name: str, at: int) -> None:
        parts = _parts(member.linkname)
        if not parts:
            raise BadImage(f"{member.name!r} can't be a hard link to the root directory")
        if "/".join(parts) == path:
            return
        source = os.dup(self._inside.directory("/".join(parts[:-1])))
        try:
            os.stat(parts[-1], dir_fd=source, follow_symlinks=False)
            self._clear(name, at)
            os.link(parts[-1], name, src_dir_fd=source, dst_dir_fd=at, follow_symlinks=False)
        finally:
            os.close(source)

    def _whiteout(self, parent: str, name: str) -> None:
        try:
            at = os.dup(self._inside.directory(parent))
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            if name == ".wh..wh..opq":
                self._empty(at, parent)
            elif not name.startswith(".wh..wh."):
                target = name[4:]
                if target in ("", ".", ".."):
                    raise BadImage(f"the layer has a whiteout of {target!r}")
                if (f"{parent}/{target}" if parent else target) not in self._made:
                    remove_at(target, at=at)
        finally:
            os.close(at)
        self._inside.forget()

    def _empty(self, at: int, parent: str) -> None:
        """Remove what layers below put into a directory, and nothing that this one did."""
        for name in os.listdir(at):
            path = f"{parent}/{name}" if parent else name
            if path not in self._made:
                remove_at(name, at=at)
            elif stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(name, flags, dir_fd=at)
                try:
                    self._empty(fd, path)
                finally:
                    os.close(fd)

    def _own(self, name: str, at: int, member: tarfile.TarInfo) -> None:
        if not self._idmap.single:
            owner = self._idmap.to_disk(member.uid), self._idmap.to_disk(member.gid)
            os.chown(name, *owner, dir_fd=at, follow_symlinks=False)

    def _dress(self, fd: int, member: tarfile.TarInfo) -> None:
        if not self._idmap.single:
            os.fchown(fd, self._idmap.to_disk(member.uid), self._idmap.to_disk(member.gid))
        for key, value in member.pax_headers.items():
            name = key.removeprefix("SCHILY.xattr.")
            if name != key and kept_xattr(name):
                try:
                    os.setxattr(fd, name, value.encode("utf-8", "surrogateescape"))
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP):
                        raise
        os.fchmod(fd, member.mode & 0o7777)


def _time(member: tarfile.TarInfo) -> int:
    """Nanoseconds: a float, which is what the record's text is read as, can't hold them."""
    whole, _, part = member.pax_headers.get("mtime", "").partition(".")
    if whole.isdecimal() and (not part or part.isdecimal()):
        seconds, rest = int(whole), int(part[:9].ljust(9, "0"))
    else:
        seconds, rest = int(max(member.mtime, 0)), 0
    return min(seconds, _LATEST) * 1_000_000_000 + rest
