"""Every back end that the registry has, tried on this machine; and which go together here.

Each is tried in a process of its own (`trial`), a few at a time: first the stores, then each that
is usable with every sandbox that works on what it makes.
"""

import sys
from typing import Literal

import anyio
import msgspec
from msgspec import Struct

from obuilder.backends.registry import SANDBOXES, STORES, BackEnd, pairs, parse_store
from obuilder.engine.checkup import Finding
from obuilder.engine.settings import Settings
from obuilder.engine.trial import Outcome, Trial, decoded, encoded
from obuilder.system import process
from obuilder.values import Policy

VERSION = 1
"""Of a survey's form: raised when a field goes, or means something else."""

Status = Literal["usable", "missing", "failed", "elsewhere"]

_LONGEST = 600.0


class Surveyed(Struct, frozen=True):
    """A back end: what was found in it, or what is missing (or wrong), and how to get it.

    `systems` are where it can work, in the words of `sys.platform`; `seconds` is how long it took.
    """

    kind: str
    summary: str
    systems: tuple[str, ...]
    status: Status
    findings: tuple[Finding, ...] = ()
    message: str = ""
    hint: str | None = None
    seconds: float = 0.0


class SurveyedStore(Surveyed, frozen=True):
    """A store. `ground` is where it was tried, of the kind `file_system`."""

    ground: str = ""
    file_system: str = ""


class SurveyedPair(Struct, frozen=True):
    """A usable store, and a sandbox that was tried on it."""

    store: str
    sandbox: str
    status: Status
    message: str = ""
    hint: str | None = None


class Chosen(Struct, frozen=True):
    """What builds here use if they are not told otherwise."""

    store: str
    sandbox: str
    usable: bool


class Survey(Struct, frozen=True):
    """What works on this machine."""

    usable: bool
    chosen: Chosen
    stores: tuple[SurveyedStore, ...]
    sandboxes: tuple[Surveyed, ...]
    pairs: tuple[SurveyedPair, ...]
    version: int = VERSION


async def take_survey(settings: Settings) -> Survey:
    """Try everything, on the file system that the store of `settings` is on where that will do.

    Cancelling waits for what was begun to be taken away.
    """
    return await _Surveyor(settings).all()


class _Surveyor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._policy = Policy(**{n: getattr(settings, n) for n in Policy.__struct_fields__})
        self._kind, self._near = parse_store(settings.named_store)
        self._slots = anyio.CapacityLimiter(min(4, max(2, settings.width)))
        self._pairs = pairs()
        self._alone: dict[str, tuple[Outcome, float]] = {}
        self._together: dict[tuple[str, str], tuple[Outcome, float]] = {}

    async def all(self) -> Survey:
        async with anyio.create_task_group() as tasks:
            for kind in filter(lambda kind: _here(STORES[kind]), STORES):
                tasks.start_soon(self._try_store, kind)
        stores = tuple(self._store(kind, row) for kind, row in STORES.items())
        sandboxes = tuple(self._sandbox(kind, row) for kind, row in SANDBOXES.items())
        found = tuple(
            SurveyedPair(*pair, outcome.status, outcome.message, outcome.hint)
            for pair in self._pairs
            if pair in self._together
            for outcome, _ in (self._together[pair],)
        )
        usable = [(pair.store, pair.sandbox) for pair in found if pair.status == "usable"]
        wanted = self._settings.sandbox or next(
            (sandbox for store, sandbox in self._pairs if store == self._kind), ""
        )
        chosen = Chosen(self._settings.named_store, wanted, (self._kind, wanted) in usable)
        return Survey(bool(usable), chosen, stores, sandboxes, found)

    async def _try_store(self, kind: str) -> None:
        trial = Trial(kind, self._near, self._policy)
        self._alone[kind] = outcome, _ = await self._ran(trial)
        if outcome.status != "usable":
            return
        async with anyio.create_task_group() as tasks:
            for store, sandbox in self._pairs:
                if store == kind and _here(SANDBOXES[sandbox]):
                    both = msgspec.structs.replace(
                        trial, sandbox=sandbox, grounds=(outcome.ground,)
                    )
                    tasks.start_soon(self._try_pair, both, (store, sandbox))

    async def _try_pair(self, trial: Trial, pair: tuple[str, str]) -> None:
        self._together[pair] = await self._ran(trial)

    async def _ran(self, trial: Trial) -> tuple[Outcome, float]:
        async with self._slots:
            began = anyio.current_time()
            outcome = await _run(trial)
            return outcome, round(anyio.current_time() - began, 3)

    def _store(self, kind: str, row: BackEnd) -> SurveyedStore:
        if kind not in self._alone:
            return SurveyedStore(kind, row.summary, row.systems, "elsewhere", message=_nowhere(row))
        outcome, seconds = self._alone[kind]
        return SurveyedStore(
            kind, row.summary, row.systems, outcome.status, outcome.findings, outcome.message,
            outcome.hint, seconds, outcome.ground, outcome.file_system,
        )  # fmt: skip

    def _sandbox(self, kind: str, row: BackEnd) -> Surveyed:
        if not _here(row):
            return Surveyed(kind, row.summary, row.systems, "elsewhere", message=_nowhere(row))
        stores = [store for store, sandbox in self._pairs if sandbox == kind]
        stores.sort(key=lambda store: store != self._kind)
        tried = [self._together[store, kind] for store in stores if (store, kind) in self._together]
        tried.sort(key=lambda found: found[0].status != "usable")
        if not tried:
            first = next((self._alone[store][0] for store in stores if store in self._alone), None)
            why = "" if first is None else f": {first.message}"
            return Surveyed(
                kind, row.summary, row.systems, "missing",
                message=f"no store that it goes with is usable{why}",
                hint=None if first is None else first.hint,
            )  # fmt: skip
        outcome, seconds = tried[0]
        of_store = ("store", "space")
        return Surveyed(
            kind, row.summary, row.systems, outcome.status,
            tuple(finding for finding in outcome.findings if finding.check not in of_store),
            outcome.message, outcome.hint, seconds,
        )  # fmt: skip


def _here(row: BackEnd) -> bool:
    return sys.platform in row.systems


def _nowhere(row: BackEnd) -> str:
    return f"it is for {' and '.join(map(system_name, row.systems))}"


def system_name(platform: str) -> str:
    """What people call it."""
    return {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}.get(platform, platform)


async def _run(trial: Trial) -> Outcome:
    """One trial in its own process, which ends by itself when its input does."""
    words = [sys.executable, "-m", "obuilder.engine.trial"]
    said: list[bytes] = []
    started = process.start([*words, encoded(trial).decode()], held=True)

    async def stop_at_the_end() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            started.end_input()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_at_the_end)
        with anyio.CancelScope(shield=True):
            await started.finish(said.append, timeout=_LONGEST)
        tasks.cancel_scope.cancel()
    lines = b"".join(said).splitlines() or [b""]
    try:
        return decoded(lines[-1], Outcome)
    except ValueError:
        text = lines[-1].decode(errors="replace")
        return Outcome("failed", message=f"the trial ended without an answer: {text}")
