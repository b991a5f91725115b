"""A mounted redirect: the kernel's requests come through libfuse, and are answered."""

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from obuilder.errors import BackendUnavailable
from obuilder.redirect.bases import become
from obuilder.redirect.libfuse import (
    OPERATIONS,
    Arguments,
    EntryReply,
    Operations,
    Stat,
    StatFs,
    declare,
    fill,
    lib,
    prototype,
    text_pointer,
)
from obuilder.redirect.requests import Change, Entry, Requests
from obuilder.redirect.tree import ROOT

_NOW = 1.0
_SPACE = (
    "bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax",
)  # fmt: skip

_OWN = frozenset({"forget", "forget_multi", "release", "releasedir"})
"""Requests of the kernel's own, which lets go of something: no rights are needed for that."""

_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _ATIME_NOW, _MTIME_NOW = 1, 2, 4, 8, 16, 32, 128, 256


def _change(given: Any, wanted: int) -> Change:
    both, now = _ATIME_NOW | _MTIME_NOW, time.time_ns()

    def moment(at: Any, explicit: int, current: int) -> int | None:
        if wanted & current:
            return now
        return at.tv_sec * 10**9 + at.tv_nsec if wanted & explicit else None

    return Change(
        mode=given.st_mode if wanted & _MODE else None,
        uid=given.st_uid if wanted & _UID else -1,
        gid=given.st_gid if wanted & _GID else -1,
        size=given.st_size if wanted & _SIZE else None,
        accessed=moment(given.st_atimespec, _ATIME, _ATIME_NOW),
        modified=moment(given.st_mtimespec, _MTIME, _MTIME_NOW),
        touched=wanted & both == both,
    )


class Mount:
    """A mounted redirect; `serve` answers the kernel until it is told to stop."""

    def __init__(self, mountpoint: str, requests: Requests, *, name: str) -> None:
        """BackendUnavailable if it can't be mounted."""
        declare()
        self._requests = requests
        self._operations = Operations()
        for operation, arguments in OPERATIONS:
            if arguments is not None:
                method = getattr(self, f"_{operation}")
                answer = prototype(arguments)(self._answering(method, own=operation in _OWN))
                setattr(self._operations, operation, answer)
        words = [b"redirect", b"-o", f"allow_other,nosuid,nodev,fsname={name}".encode()]
        self._words = (text_pointer * len(words))(*words)
        command = Arguments(len(words), self._words, 0)
        self._session = lib.fuse_session_new(
            ctypes.byref(command), ctypes.byref(self._operations),
            ctypes.sizeof(self._operations), None,
        )  # fmt: skip
        if not self._session or lib.fuse_session_mount(self._session, os.fsencode(mountpoint)):
            raise BackendUnavailable(
                f"no file system of FUSE could be mounted on {mountpoint}",
                hint="that takes root and /dev/fuse; on macOS, macFUSE allowed to load",
            )

    def serve(self, stop: int) -> None:
        """Answer until `stop`, a descriptor, is at its end, or SIGTERM comes. Then it is unmounted."""
        main = threading.main_thread().ident
        assert main is not None

        def watch() -> None:
            while os.read(stop, 1):
                pass
            signal.pthread_kill(main, signal.SIGTERM)

        lib.fuse_set_signal_handlers(self._session)
        threading.Thread(target=watch, daemon=True).start()
        lib.fuse_session_loop(self._session)
        become(0, 0)
        lib.fuse_session_unmount(self._session)
        lib.fuse_session_destroy(self._session)

    def _answering(self, method: Callable[..., None], *, own: bool) -> Callable[..., None]:
        def answer(request: int, *arguments: Any) -> None:
            try:
                caller = lib.fuse_req_ctx(request).contents
                if not own:
                    become(caller.uid, caller.gid, caller.pid)
                method(request, caller.uid, *arguments)
            except OSError as error:
                lib.fuse_reply_err(request, error.errno or errno.EIO)
            except Exception as error:  # noqa: BLE001 - whoever asked must get an answer
                # No traceback: its source may be below the mount, and nobody would answer.
                os.write(2, f"{method.__name__}: {error!r}\n".encode())
                lib.fuse_reply_err(request, errno.EIO)

        return answer

    # --- answers -------------------------------------------------------------------------------

    @staticmethod
    def _entry_of(found: Entry) -> EntryReply:
        entry = EntryReply(
            number=found.number, generation=1, known=found.known, attributes_known=_NOW
        )
        fill(entry.attributes, found.status)
        return entry

    def _reply_entry(self, request: int, found: Entry) -> None:
        lib.fuse_reply_entry(request, ctypes.byref(self._entry_of(found)))

    @staticmethod
    def _reply_attributes(request: int, number: int, status: os.stat_result) -> None:
        attributes = Stat()
        fill(attributes, status)
        lib.fuse_reply_attr(request, ctypes.byref(attributes), 0.0 if number == ROOT else _NOW)

    @staticmethod
    def _reply_done(request: int) -> None:
        lib.fuse_reply_err(request, 0)

    @staticmethod
    def _reply_sized(request: int, data: bytes, size: int) -> None:
        if size == 0:
            lib.fuse_reply_xattr(request, len(data))
        elif len(data) > size:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        else:
            lib.fuse_reply_buf(request, data, len(data))

    # --- requests, in the order of the table -----------------------------------------------------

    def _lookup(self, request: int, user: int, parent: int, name: bytes) -> None:
        self._reply_entry(request, self._requests.lookup(user, parent, os.fsdecode(name)))

    def _forget(self, request: int, user: int, number: int, times: int) -> None:
        self._requests.forget(number, times)
        lib.fuse_reply_none(request)

    def _forget_multi(self, request: int, user: int, count: int, found: Any) -> None:
        for at in range(count):
            self._requests.forget(found[at].number, found[at].times)
        lib.fuse_reply_none(request)

    def _getattr(self, request: int, user: int, number: int, info: Any) -> None:
        fd = info.contents.fh if info and number != ROOT else None
        self._reply_attributes(request, number, self._requests.getattr(user, number, fd))

    def _setattr(
        self, request: int, user: int, number: int, given: Any, wanted: int, info: Any
    ) -> None:
        fd = info.contents.fh if info else None
        change = _change(given.contents, wanted)
        self._reply_attributes(request, number, self._requests.setattr(user, number, change, fd))

    def _readlink(self, request: int, user: int, number: int) -> None:
        lib.fuse_reply_readlink(request, self._requests.readlink(user, number))

    def _mknod(
        self, request: int, user: int, parent: int, name: bytes, mode: int, device: int
    ) -> None:
        self._reply_entry(
            request, self._requests.mknod(user, parent, os.fsdecode(name), mode, device)
        )

    def _mkdir(self, request: int, user: int, parent: int, name: bytes, mode: int) -> None:
        self._reply_entry(request, self._requests.mkdir(user, parent, os.fsdecode(name), mode))

    def _unlink(self, request: int, user: int, parent: int, name: bytes) -> None:
        self._requests.unlink(user, parent, os.fsdecode(name))
        self._reply_done(request)

    def _rmdir(self, request: int, user: int, parent: int, name: bytes) -> None:
        self._requests.rmdir(user, parent, os.fsdecode(name))
        self._reply_done(request)

    def _symlink(self, request: int, user: int, target: bytes, parent: int, name: bytes) -> None:
        self._reply_entry(
            request,
            self._requests.symlink(user, os.fsdecode(target), parent, os.fsdecode(name)),
        )

    def _rename(
        self, request: int, user: int, parent: int, name: bytes, new_parent: int, new_name: bytes,
        flags: int,
    ) -> None:  # fmt: skip
        old, new = os.fsdecode(name), os.fsdecode(new_name)
        self._requests.rename(user, parent, old, new_parent, new, flags)
        self._reply_done(request)

    def _link(self, request: int, user: int, number: int, parent: int, name: bytes) -> None:
        self._reply_entry(request, self._requests.link(user, number, parent, os.fsdecode(name)))

    def _open(self, request: int, user: int, number: int, info: Any) -> None:
        info.contents.fh = self._requests.open(user, number, info.contents.flags)
        lib.fuse_reply_open(request, info)

    def _read(self, request: int, user: int, number: int, size: int, start: int, info: Any) -> None:
        data = os.pread(info.contents.fh, size, start)
        lib.fuse_reply_buf(request, data, len(data))

    def _write(
        self, request: int, user: int, number: int, data: int, size: int, start: int, info: Any
    ) -> None:
        written = os.pwrite(info.contents.fh, ctypes.string_at(data, size), start)
        lib.fuse_reply_write(request, written)

    def _flush(self, request: int, user: int, number: int, info: Any) -> None:
        self._reply_done(request)

    def _release(self, request: int, user: int, number: int, info: Any) -> None:
        self._requests.release(number, info.contents.fh)
        self._reply_done(request)

    def _fsync(self, request: int, user: int, number: int, data_only: int, info: Any) -> None:
        os.fsync(info.contents.fh)
        self._reply_done(request)

    def _opendir(self, request: int, user: int, number: int, info: Any) -> None:
        info.contents.fh = self._requests.opendir(user, number)
        lib.fuse_reply_open(request, info)

    def _readdir(
        self, request: int, user: int, number: int, size: int, start: int, info: Any
    ) -> None:
        buffer, used = ctypes.create_string_buffer(size), 0
        attributes = Stat()
        for at, (name, status) in enumerate(
            self._requests.readdir(info.contents.fh)[start:], start
        ):
            attributes.st_ino, attributes.st_mode = status.st_ino, status.st_mode
            taken = lib.fuse_add_direntry(
                request, ctypes.byref(buffer, used), size - used, os.fsencode(name),
                ctypes.byref(attributes), at + 1,
            )  # fmt: skip
            if taken > size - used:
                break
            used += taken
        lib.fuse_reply_buf(request, buffer.raw[:used], used)

    def _releasedir(self, request: int, user: int, number: int, info: Any) -> None:
        self._requests.releasedir(info.contents.fh)
        self._reply_done(request)

    def _fsyncdir(self, request: int, user: int, number: int, data_only: int, info: Any) -> None:
        self._requests.fsyncdir(user, number)
        self._reply_done(request)

    def _statfs(self, request: int, user: int, number: int) -> None:
        found, reply = self._requests.statfs(user, number), StatFs()
        for name in _SPACE:
            setattr(reply, f"f_{name}", getattr(found, f"f_{name}"))
        lib.fuse_reply_statfs(request, ctypes.byref(reply))

    def _setxattr(
        self, request: int, user: int, number: int, name: bytes, value: int, size: int, flags: int
    ) -> None:
        data = ctypes.string_at(value, size)
        self._requests.setxattr(user, number, os.fsdecode(name), data, flags)
        self._reply_done(request)

    def _getxattr(self, request: int, user: int, number: int, name: bytes, size: int) -> None:
        value = self._requests.getxattr(user, number, os.fsdecode(name))
        self._reply_sized(request, value, size)

    def _listxattr(self, request: int, user: int, number: int, size: int) -> None:
        self._reply_sized(request, self._requests.listxattr(user, number), size)

    def _removexattr(self, request: int, user: int, number: int, name: bytes) -> None:
        self._requests.removexattr(user, number, os.fsdecode(name))
        self._reply_done(request)

    def _access(self, request: int, user: int, number: int, mask: int) -> None:
        self._requests.access(user, number, mask)
        self._reply_done(request)

    def _create(
        self, request: int, user: int, parent: int, name: bytes, mode: int, info: Any
    ) -> None:
        entry, fd = self._requests.create(
            user, parent, os.fsdecode(name), mode, info.contents.flags
        )
        info.contents.fh = fd
        lib.fuse_reply_create(request, ctypes.byref(self._entry_of(entry)), info)

    def _fallocate(
        self, request: int, user: int, number: int, mode: int, start: int, size: int, info: Any
    ) -> None:
        self._requests.allocate(info.contents.fh, mode, start, size)
        self._reply_done(request)

    def _copy_file_range(
        self, request: int, user: int, number: int, start: int, info: Any, target: int, to: int,
        target_info: Any, size: int, flags: int,
    ) -> None:  # fmt: skip
        copied = self._requests.copy(info.contents.fh, start, target_info.contents.fh, to, size)
        lib.fuse_reply_write(request, copied)

    def _lseek(
        self, request: int, user: int, number: int, start: int, whence: int, info: Any
    ) -> None:
        lib.fuse_reply_lseek(request, os.lseek(info.contents.fh, start, whence))
