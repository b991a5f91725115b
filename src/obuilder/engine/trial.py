"""A back end tried for real, at a place of its own, in processes of its own that leave nothing.

    python -m obuilder.engine.trial TRIAL    (JSON) prints an Outcome; ends when its input does

This process makes the place and takes it away; what enters namespaces, and may break or hang, is a
fork of it. Whoever started it may die: then it tidies up and ends. Where it is killed itself, the
place stays, until the next trial of the same kind finds that nobody holds it.
"""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, TypeVar

import anyio
import msgspec
from msgspec import Struct

from obuilder.backends.registry import opened_store, store_class
from obuilder.engine.builder import Builder
from obuilder.engine.checkup import Finding, look_over, space
from obuilder.engine.settings import Settings
from obuilder.errors import BackendUnavailable, ObuilderError, StoreError, of_disk
from obuilder.system import linux
from obuilder.system.apart import apart
from obuilder.system.namespaces import enter, passable
from obuilder.values import Key, Policy

_PREFIX = "obuilder-healthcheck"
_CLEANING = 60.0

T = TypeVar("T")


class Trial(Struct, frozen=True):
    """What to try: a kind of store, alone or (`sandbox`) with a kind of sandbox.

    `grounds` are those of `StoreClass.grounds`, tried until one will do; none: those near `near`.
    """

    kind: str
    near: str
    policy: Policy
    sandbox: str | None = None
    grounds: tuple[str, ...] = ()
    seconds: float = 60.0


class Outcome(Struct, frozen=True):
    """What came of it.

    `missing`: it needs something that this machine lacks; `failed`: it is there, and does not work.
    """

    status: Literal["usable", "missing", "failed"]
    ground: str = ""
    file_system: str = ""
    message: str = ""
    hint: str | None = None
    findings: tuple[Finding, ...] = ()


def encoded(value: object) -> bytes:
    """A value in one line; unlike msgspec's own JSON, paths may have bytes that are no text."""
    return json.dumps(msgspec.to_builtins(value)).encode()


def decoded(data: bytes | str, kind: type[T]) -> T:
    """What was `encoded`. ValueError."""
    return msgspec.convert(json.loads(data), kind)


def carry_out(trial: Trial, until: int | None) -> Outcome:
    """Try it on one ground after the other. The descriptor `until` ends all when it is at its end."""
    try:
        grounds = trial.grounds or _grounds(trial, until)
    except ObuilderError as error:
        return _failure(error)
    first = None
    for ground in grounds:
        outcome = _on(trial, ground, until)
        if outcome.status == "usable":
            return outcome
        first = first or outcome
    return first or Outcome("missing", message="there is no place to try it at")


def _grounds(trial: Trial, until: int | None) -> tuple[str, ...]:
    def look() -> bytes:
        try:
            return encoded(store_class(trial.kind).grounds(trial.near))
        except Exception as error:  # noqa: BLE001 # whatever it is: it is told
            return encoded(_failure(error))

    said = apart(look, seconds=trial.seconds, until=until)
    if said is None:
        raise StoreError(f"where to try it was not found out in {trial.seconds:.0f} s")
    if said.startswith(b"{"):
        failure = decoded(said, Outcome)
        kind = BackendUnavailable if failure.status == "missing" else StoreError
        raise kind(failure.message, hint=failure.hint)
    return decoded(said, tuple[str, ...])


# --- places ------------------------------------------------------------------------------------


def _on(trial: Trial, ground: str, until: int | None) -> Outcome:
    place = _Place.new(trial, ground)
    outcome = Outcome("failed", message=f"it came to no end in {trial.seconds:.0f} s")
    died = True
    try:
        lock = place.make()
        try:
            said = apart(lambda: _tried(place.settings), seconds=trial.seconds, until=until)
        finally:
            os.close(lock)
        died = said is None
        outcome = decoded(said, Outcome) if said else outcome
    except ObuilderError as error:
        outcome, died = _failure(error), False
    message = outcome.message.replace(place.directory, "the store")
    status = outcome.status
    if left := place.discard(recovering=died):
        status, message = "failed", "; and ".join(filter(None, (message, left)))
    file_system = _file_system(place.above)
    return msgspec.structs.replace(
        outcome, status=status, ground=ground, file_system=file_system, message=message
    )


class _Place:
    """Where a store is for as long as a trial lasts; locked as long as somebody works there."""

    def __init__(self, trial: Trial, ground: str, name: str) -> None:
        self._trial, self._ground = trial, ground
        self._mark = f"{_PREFIX}.{trial.kind}.{trial.sandbox or 'alone'}."
        self._kind = store_class(trial.kind)
        self.settings = Settings(
            store=f"{trial.kind}:{ground.rstrip('/')}/{self._mark}{name}", sandbox=trial.sandbox,
            **msgspec.structs.asdict(trial.policy),
        )  # fmt: skip
        self.directory = self.settings.directory
        self.above = self.directory.partition(f"/{self._mark}{name}")[0] or "/"

    @classmethod
    def new(cls, trial: Trial, ground: str) -> "_Place":
        """One that is not there yet."""
        return cls(trial, ground, os.urandom(4).hex())

    def make(self) -> int:
        """Make it; its lock. What killed trials left is taken away. BackendUnavailable, StoreError."""
        try:
            with _locked(self.above):
                for left in self._left():
                    left.discard(recovering=True)
                self._kind.prepare(self.directory)
                return _lock(self.directory, fcntl.LOCK_EX)
        except OSError as error:
            raise of_disk(f"can't make a store in {self.above}", error) from error

    def _left(self) -> list["_Place"]:
        """Those of the same kind here that nobody works in."""
        found = []
        for name in os.listdir(self.above):
            if name.startswith(self._mark):
                left = _Place(self._trial, self._ground, name.removeprefix(self._mark))
                with suppress(OSError):  # somebody's, or gone
                    os.close(_lock(left.directory, fcntl.LOCK_EX | fcntl.LOCK_NB))
                    found.append(left)
        return found

    def discard(self, *, recovering: bool) -> str | None:
        """Take it away; why it could not be.

        `recovering`: somebody was killed there, who may have left more than files.
        """
        if not os.path.exists(self.directory):
            return None
        if recovering and self._trial.sandbox is not None:
            apart(lambda: _answer(self._recover), seconds=_CLEANING)
        said = apart(lambda: _answer(self._remove), seconds=_CLEANING)
        outcome = decoded(said, Outcome) if said else None
        if outcome is None:
            return f"{self.directory} could not be removed in time"
        return None if outcome.status == "usable" else outcome.message

    async def _recover(self) -> Outcome:
        async with Builder.open(self.settings, to_delete=True):
            return Outcome("usable")

    async def _remove(self) -> Outcome:
        await self._kind.discard(self.directory)
        return Outcome("usable")


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Keep other trials from making places there, or looking for some that were left."""
    lock = _lock(directory, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def _lock(directory: str, how: int) -> int:
    """A directory's descriptor, with a lock that ends with it. OSError."""
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(at, how)
    except BaseException:
        os.close(at)
        raise
    return at


def _file_system(directory: str) -> str:
    real = os.path.realpath(directory)
    found = ""
    for mounted in sorted(linux.mounts(), key=lambda mounted: len(mounted.point)):
        if f"{real}/".startswith(f"{mounted.point.rstrip('/')}/"):
            found = mounted.kind
    return found


# --- in the fork ---------------------------------------------------------------------------------


def _tried(settings: Settings) -> bytes:
    async def work() -> Outcome:
        return await (_store(settings) if settings.sandbox is None else _pair(settings))

    return _answer(work, settings)


def _answer(work: Callable[[], Awaitable[Outcome]], settings: Settings | None = None) -> bytes:
    """What `work` came to; nothing if SIGTERM came first: then it is cancelled, and tidies up."""
    try:
        outcome = anyio.run(_cancellable, work)
    except Exception as error:  # noqa: BLE001 # whatever it is: it is told
        outcome = _failure(error)
        if settings is not None:
            with suppress(ObuilderError, OSError):
                shown = passable(settings.directory, enter())
                message = outcome.message.replace(shown, settings.directory)
                outcome = msgspec.structs.replace(outcome, message=message)
    return b"" if outcome is None else encoded(outcome)


async def _cancellable(work: Callable[[], Awaitable[Outcome]]) -> Outcome | None:
    outcome: list[Outcome] = []
    failure: list[Exception] = []

    async def watch(scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(watch, scope)
            try:
                outcome.append(await work())
            except Exception as error:  # noqa: BLE001 # raised below, outside of the task group
                failure.append(error)
        tasks.cancel_scope.cancel()
    if failure:
        raise failure[0]
    return outcome[0] if outcome else None


async def _store(settings: Settings) -> Outcome:
    """Begin, commit, view and drop, as builds do."""
    first, second = Key("1" * 64), Key("2" * 64)
    began = time.monotonic()
    async with opened_store(settings.named_store) as store:
        for key, base in ((first, None), (second, first)):
            async with store.begin(key, base=base) as draft:
                async with store.files(draft.root, write=True) as path:
                    with open(os.path.join(path, key[:8]), "xb") as file:
                        file.write(key.encode())
                await draft.commit(b"{}")
        async with store.view(second) as root, store.files(root) as path:
            seen = sorted(os.listdir(path))
        if seen != [first[:8], second[:8]]:
            raise StoreError(f"a result has not the files that were put into it, but {seen}")
        for key in (second, first):
            await store.delete(key)
        if left := await store.keys():
            raise StoreError(f"results that were deleted are still there: {left}")
        room = space(await store.usage())
    taken = f"two results made, seen and deleted in {time.monotonic() - began:.2f} s"
    return Outcome(
        "usable", findings=(Finding("snapshots", "ok", taken), Finding("space", "ok", room))
    )


async def _pair(settings: Settings) -> Outcome:
    async with Builder.open(settings) as builder:
        found = tuple(await look_over(builder))
    wrong = next((finding for finding in found if finding.status == "failed"), None)
    if wrong is None:
        return Outcome("usable", findings=found)
    return Outcome("failed", message=wrong.detail, hint=wrong.hint, findings=found)


def _failure(error: Exception) -> Outcome:
    if not isinstance(error, ObuilderError):
        return Outcome("failed", message=f"it has a fault: {error!r}")
    missing = isinstance(error, BackendUnavailable)
    return Outcome("missing" if missing else "failed", message=error.message, hint=error.hint)


if __name__ == "__main__":
    _outcome = carry_out(decoded(sys.argv[1], Trial), until=0)
    sys.stdout.buffer.write(encoded(_outcome) + b"\n")
