"""`micro`: a tiny root made of the host's own static shell, without any network."""

import hashlib
import os
from collections.abc import Callable

from obuilder.backends.fetchers import LocalFetcher, directory_of
from obuilder.errors import BackendUnavailable, DigestMismatch
from obuilder.oci.platforms import host_platform
from obuilder.plan.model import Base, Layer
from obuilder.values import IdMap, Platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.backends.protocols import Progress, Root

_LAYOUT = b"micro 1\0"
"""Goes into the digest: change it with whatever this module puts beside the shell."""

_PLACES = (
    "/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox", "/usr/sbin/busybox",
    "/bin/busybox.static",
)  # fmt: skip
_PT_INTERP = 3

_DIRECTORIES = (
    ("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("proc", 0o755),
    ("root", 0o700), ("run", 0o755), ("sys", 0o755), ("tmp", 0o1777), ("usr", 0o755),
    ("usr/bin", 0o755), ("var", 0o755), ("var/tmp", 0o1777),
)  # fmt: skip
_FILES = (
    ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", b"root:x:0:\nnogroup:x:65534:\n"),
)
_BASH = b'#!/bin/sh\nexec /bin/sh "$@"\n'


class MicroFetcher(LocalFetcher):
    """One layer: busybox with a name for each of its commands, and the usual directories."""

    async def resolve(self, name: str, platform: Platform) -> Base:
        """The image of the host's busybox as it is now. BackendUnavailable without one."""
        path, content = self._program()
        digest = _digest(content)
        return Base(name, digest, host_platform(), (Layer(digest, path),))

    def _program(self) -> tuple[str, str]:
        """The path of the host's busybox and the digest of its content."""
        path = static_busybox()
        if path is None:
            raise BackendUnavailable(
                "the image micro is made of a statically linked busybox, and there is none here",
                hint="install the package busybox-static (Debian, Ubuntu, Alpine) or busybox (Fedora)",
            )
        with open(path, "rb") as file:
            content = self._remembered(
                path, os.fstat(file.fileno()),
                lambda: hashlib.file_digest(file, "sha256").hexdigest(),
            )  # fmt: skip
        return path, content

    async def fetch(
        self,
        base: Base,
        index: int,
        *,
        into: "Root",
        idmap: IdMap,
        output: Callable[[bytes], None],  # the protocol's
        progress: "Progress | None" = None,
    ) -> None:
        """Put the files. DigestMismatch if the host's busybox is another one by now."""
        from anyio import to_thread

        layer = base.layers[index]
        await to_thread.run_sync(_fill, directory_of(into), layer, idmap)


def _digest(content: str) -> str:
    return "sha256:" + hashlib.sha256(_LAYOUT + content.encode()).hexdigest()


def static_busybox() -> str | None:
    """Where the host has a busybox that needs no loader; None if it has none."""
    for path in _PLACES:
        try:
            with open(path, "rb") as file:
                if _is_static(file.read(4096)):
                    return os.path.realpath(path)
        except OSError:
            continue
    return None


def _is_static(head: bytes) -> bool:
    """Whether a program asks for no loader, as far as its first bytes tell."""
    if head[:4] != b"\x7fELF" or len(head) < 64:
        return False
    wide, order = head[4] == 2, "little" if head[5] == 1 else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(head[start : start + size], order)  # type: ignore[arg-type] # one of two

    table = number(32, 8) if wide else number(28, 4)
    size, count = (number(54, 2), number(56, 2)) if wide else (number(42, 2), number(44, 2))
    kinds = [number(table + size * at, 4) for at in range(count)]
    return table + size * count <= len(head) and _PT_INTERP not in kinds


def _commands(program: bytes) -> list[str]:
    """The commands a busybox has: it keeps their names in one sorted run of C strings."""
    start = program.find(b"\0[\0[[\0")
    end = program.find(b"\0\0", start + 1)
    names = program[start + 1 : end].split(b"\0") if 0 <= start < end else []
    found = [name.decode("ascii", "replace") for name in names]
    return found if "sh" in found and "env" in found else ["cat", "env", "ls", "sh"]


def _fill(root: str, layer: Layer, idmap: IdMap) -> None:
    with open(layer.source, "rb") as file:
        program = file.read()
    if _digest(hashlib.sha256(program).hexdigest()) != layer.digest:
        raise DigestMismatch(
            f"{layer.source} changed while the build ran", hint="run the build again"
        )
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, mode in _DIRECTORIES:
            os.mkdir(path, dir_fd=at)
            os.chmod(path, mode, dir_fd=at)
            _own(path, at, idmap)
        _write("bin/busybox", program, 0o755, at, idmap)
        for name in _commands(program):
            if name not in ("busybox", "bash") and "/" not in name:
                os.link("bin/busybox", f"bin/{name}", src_dir_fd=at, dst_dir_fd=at)
        os.link("bin/busybox", "usr/bin/env", src_dir_fd=at, dst_dir_fd=at)
        _write("bin/bash", _BASH, 0o755, at, idmap)
        for path, content in _FILES:
            _write(path, content, 0o644, at, idmap)
        for path, _ in reversed(_DIRECTORIES):
            os.utime(path, (0, 0), dir_fd=at)
    finally:
        os.close(at)


def _write(path: str, content: bytes, mode: int, at: int, idmap: IdMap) -> None:
    from obuilder.system.files import write_all

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=at)
    try:
        write_all(fd, content)
        _own(fd, None, idmap)
        os.fchmod(fd, mode)
        os.utime(fd, (0, 0))
    finally:
        os.close(fd)


def _own(path: str | int, at: int | None, idmap: IdMap) -> None:
    if not idmap.single:
        os.chown(path, idmap.to_disk(0), idmap.to_disk(0), dir_fd=at)
