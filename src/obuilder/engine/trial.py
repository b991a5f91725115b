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

from obuilder.backends.registry import opened_store, parse_store, store_class
from obuilder.engine.builder import Builder
from obuilder.engine.checkup import Finding, look_over, space
from obuilder.engine.settings import Settings
from obuilder.errors import BackendUnavailable, ObuilderError, StoreError
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
    mark = f"{_PREFIX}.{trial.kind}.{trial.sandbox or 'alone'}."
    for name in _left(trial, ground, mark):
        _discard(trial, f"{ground}/{name}", until=None, recovering=True)
    place = f"{ground.rstrip('/')}/{mark}{os.urandom(4).hex()}"
    settings = _settings(trial, place)
    died = False
    try:
        with _held(trial, settings):
            said = apart(lambda: _tried(trial, settings), seconds=trial.seconds, until=until)
            died = said is None
    except ObuilderError as error:
        outcome = _failure(error)
    else:
        outcome = (
            Outcome("failed", message=f"it came to no end in {trial.seconds:.0f} s")
            if said is None
            else decoded(said, Outcome)
        )
    left = _discard(trial, place, until=None, recovering=died)
    if left is not None:
        outcome = left
    return msgspec.structs.replace(
        outcome, ground=ground, file_system=_file_system(os.path.dirname(settings.directory)),
        message=outcome.message.replace(settings.directory, "the store"),
    )  # fmt: skip


def _settings(trial: Trial, place: str) -> Settings:
    policy = msgspec.structs.asdict(trial.policy)
    return Settings(store=f"{trial.kind}:{place}", sandbox=trial.sandbox, **policy)


@contextmanager
def _held(trial: Trial, settings: Settings) -> Iterator[None]:
    """Make the place. It is locked as long as somebody works there. BackendUnavailable, StoreError."""
    store_class(trial.kind).prepare(settings.directory)
    lock = os.open(settings.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _left(trial: Trial, ground: str, mark: str) -> list[str]:
    """The places on a ground that killed trials left."""
    found = []
    with suppress(OSError):
        above = parse_store(f"{trial.kind}:{ground}/x")[1].partition("/x")[0] or "/"
        for name in os.listdir(above):
            if name.startswith(mark) and os.stat(os.path.join(above, name)).st_uid == os.geteuid():
                with suppress(OSError):
                    directory = parse_store(f"{trial.kind}:{ground}/{name}")[1]
                    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    try:
                        fcntl.flock(at, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        found.append(name)
                    finally:
                        os.close(at)
    return found


def _discard(trial: Trial, place: str, *, until: int | None, recovering: bool) -> Outcome | None:
    """Take the place away; what came of that, if it was no success.

    `recovering`: somebody was killed there, who may have left more than files.
    """
    settings = _settings(trial, place)
    if not os.path.exists(settings.directory):
        return None

    def recover() -> bytes:
        async def open_and_close() -> Outcome:
            async with Builder.open(settings, to_delete=True):
                return Outcome("usable")

        return _answer(open_and_close)

    def remove() -> bytes:
        async def work() -> Outcome:
            store_class(trial.kind).discard(settings.directory)
            return Outcome("usable")

        return _answer(work)

    if recovering and trial.sandbox is not None:
        apart(recover, seconds=_CLEANING, until=until)
    said = apart(remove, seconds=_CLEANING, until=until)
    if said is None:
        return Outcome("failed", message=f"{settings.directory} can't be removed")
    outcome = decoded(said, Outcome)
    return None if outcome.status == "usable" else outcome


def _file_system(directory: str) -> str:
    real = os.path.realpath(directory)
    found = ""
    for mounted in sorted(linux.mounts(), key=lambda mounted: len(mounted.point)):
        if f"{real}/".startswith(f"{mounted.point.rstrip('/')}/"):
            found = mounted.kind
    return found


# --- in the fork ---------------------------------------------------------------------------------


def _tried(trial: Trial, settings: Settings) -> bytes:
    async def work() -> Outcome:
        return await (_store(settings) if trial.sandbox is None else _pair(settings))

    return _answer(work, settings)


def _answer(work: Callable[[], Awaitable[Outcome]], settings: Settings | None = None) -> bytes:
    """What `work` came to; SIGTERM cancels it, and then there is no answer."""
    try:
        outcome = anyio.run(_cancellable, work)
    except Exception as error:  # noqa: BLE001 # whatever it is: it is told
        outcome = _failure(error)
        if settings is not None:
            with suppress(ObuilderError, OSError):
                shown = passable(settings.directory, enter())
                message = outcome.message.replace(shown, settings.directory)
                outcome = msgspec.structs.replace(outcome, message=message)
    if outcome is None:
        raise SystemExit
    return encoded(outcome)


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
