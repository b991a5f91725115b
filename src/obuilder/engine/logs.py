"""Logs of steps: raw bytes on disk, written once, followed by any process while they grow.

While a step runs its log is `KEY.partial`; whoever holds the key's lock writes it. It becomes
`KEY.log` just before the result is published. A failed attempt's log goes under the key of its kept
root (`failed_key`), where `obuilder log` finds it by either key.
"""

import os
from collections.abc import Callable, Iterable

from obuilder.errors import of_disk
from obuilder.plan.keys import failed_key
from obuilder.values import Key

_CHUNK = 1 << 16


def _path(directory: str, key: Key, suffix: str) -> str:
    return os.path.join(directory, "logs", f"{key}.{suffix}")


def read_log(directory: str, key: Key) -> bytes | None:
    """The log of a result or, when there is none, of the last failed attempt at it."""
    for name in (key, failed_key(key)):
        try:
            with open(_path(directory, name, "log"), "rb") as file:
                return file.read()
        except FileNotFoundError:
            continue
    return None


def put_log(directory: str, key: Key, data: bytes) -> None:
    """Put the whole log of a result that was made elsewhere."""
    path = _path(directory, key, "log")
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def log_size(directory: str, key: Key) -> int | None:
    """Bytes of what `read_log` would give; None if there is no log."""
    for name in (key, failed_key(key)):
        try:
            return os.stat(_path(directory, name, "log")).st_size
        except FileNotFoundError:
            continue
    return None


def replay_log(directory: str, key: Key, output: Callable[[bytes], None]) -> None:
    """Send the log of a result piece by piece; nothing if there is none."""
    try:
        with open(_path(directory, key, "log"), "rb") as file:
            while data := file.read(_CHUNK):
                output(data)
    except FileNotFoundError:
        return


def remove_log(directory: str, key: Key) -> None:
    """Remove every log of a key that is no more."""
    for suffix in ("log", "partial"):
        try:
            os.unlink(_path(directory, key, suffix))
        except FileNotFoundError:
            continue


def logged(directory: str) -> set[Key]:
    """The keys that have a log of any kind."""
    try:
        names = os.listdir(os.path.join(directory, "logs"))
    except FileNotFoundError:
        return set()
    return {Key(name.partition(".")[0]) for name in names}


class LogFollower:
    """Tells what other processes' attempts at a key say, to who waits for the key's lock.

    Every attempt writes a file of its own, whose descriptor survives the rename at its end.
    `again` is called when what was told so far is of an attempt that came to nothing.
    """

    def __init__(
        self, directory: str, key: Key, output: Callable[[bytes], None], again: Callable[[], None]
    ) -> None:
        self._directory, self._key = directory, key
        self._output, self._again = output, again
        self._fd: int | None = None
        self._told = False

    def poll(self) -> None:
        """Tell what has come since the last call."""
        self._follow("partial")

    def result(self) -> None:
        """The key has a result: tell its log, or what is missing of it."""
        self._follow("log")
        self._told = False
        self.close()

    def close(self) -> None:
        """No attempt that was told of came to a result. May be called twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._told:
            self._told = False
            self._again()

    def _follow(self, suffix: str) -> None:
        self._drain()
        try:
            fd = os.open(_path(self._directory, self._key, suffix), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        if self._fd is not None and os.path.sameopenfile(fd, self._fd):
            os.close(fd)
            return
        self.close()
        self._fd = fd
        self._drain()

    def _drain(self) -> None:
        while self._fd is not None and (data := os.read(self._fd, _CHUNK)):
            self._told = True
            self._output(data)


class Mask:
    """Hides secret values in a stream of bytes, also where a value is split over two pieces.

    A value's lines are hidden too, and its base64 forms. Values of fewer than 3 bytes are left:
    hiding them would blacken the log and hide nothing.
    """

    def __init__(self, values: Iterable[bytes]) -> None:
        needles: set[bytes] = set()
        for value in values:
            import base64  # only where there is something to hide

            for part in (value, value.strip(), *value.splitlines()):
                if len(part) >= 3:
                    needles.add(part)
                    needles.add(base64.b64encode(part))
                    needles.add(base64.urlsafe_b64encode(part))
        self._needles = sorted(needles, key=len, reverse=True)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be shown now; the rest is held until it is known not to begin a secret."""
        if not self._needles:
            return data
        text = self._held + data
        for needle in self._needles:
            text = text.replace(needle, b"***")
        keep = 0
        for needle in self._needles:
            for size in range(min(len(needle) - 1, len(text)), keep, -1):
                if text.endswith(needle[:size]):
                    keep = size
                    break
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> bytes:
        """What was held, at the end."""
        text, self._held = self._held, b""
        return text


class LogWriter:
    """Writes the log of a running step, and tells listeners as it grows.

    The file keeps at most `limit` bytes: its first half from the start, the other from the end,
    with a line between them. Listeners get everything.
    """

    def __init__(
        self,
        directory: str,
        key: Key,
        listener: Callable[[bytes], None],
        *,
        mask: Mask,
        limit: int | None,
    ) -> None:
        self._directory, self._key = directory, key
        self._listener, self._mask = listener, mask
        self._half = None if limit is None else max(limit // 2, 1)
        self._size = 0
        self._dropped = 0
        self._problem: OSError | None = None
        self._end: list[bytes] = []
        self._end_size = 0
        self.tail = b""
        self._at = path = _path(directory, key, "partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        while True:
            try:
                self._fd = os.open(path, flags, 0o600)
                break
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            except FileExistsError:  # of one who was killed; others may still read it
                os.unlink(path)

    @property
    def size(self) -> int:
        """Bytes that the log takes, or will."""
        return self._size + self._end_size

    def write(self, data: bytes) -> None:
        """Take a piece of output. Where it can't be written, `done` and `failed` will tell."""
        self._put(self._mask.feed(data))

    def _put(self, data: bytes) -> None:
        if not data:
            return
        self._listener(data)
        self.tail = (self.tail + data)[-4096:]
        if self._half is None or self._size + len(data) <= self._half:
            self._size += len(data)
            self._write(data)
            return
        room = self._half - self._size
        if room > 0:
            self._write(data[:room])
            self._size += room
            data = data[room:]
        self._end.append(data)
        self._end_size += len(data)
        while self._end and self._end_size - len(self._end[0]) >= self._half:
            piece = self._end.pop(0)
            self._end_size -= len(piece)
            self._dropped += len(piece)

    def _write(self, data: bytes) -> None:
        # The step goes on where its log can't be kept: it may still tell why it fails.
        if self._problem is None:
            try:
                _write_all(self._fd, data)
            except OSError as error:
                self._problem = error

    def _finish(self, name: Key) -> None:
        if self._fd >= 0:
            self._put(self._mask.flush())
            if self._end:
                if self._dropped:
                    self._write(b"\n[... %d bytes left out ...]\n" % self._dropped)
                self._write(b"".join(self._end))
            self._close()
        if self._problem is not None:
            raise of_disk("the log can't be written", self._problem) from self._problem
        path = _path(self._directory, name, "log")
        os.rename(self._at, path)
        self._at = path

    def done(self) -> None:
        """The step succeeded: this is its log from now on. StoreFull, StoreError."""
        self._finish(self._key)

    def failed(self) -> None:
        """The step failed, or its publishing did: the log is kept under the failed root's key.

        StoreFull, StoreError.
        """
        self._finish(failed_key(self._key))

    def discard(self) -> None:
        """The step was cancelled, or there is no room for its log: nothing is kept."""
        self._close()
        os.unlink(self._at)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
