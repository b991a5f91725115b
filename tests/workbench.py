"""A builder over the fakes, steps that a test can hold, and clients that write down what they hear."""

import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from obuilder import Builder, Result, Settings, Spec, events, parse
from obuilder.errors import ObuilderError
from obuilder.testing.fake_shell import Call
from obuilder.testing.fakes import open_fakes


class Workbench:
    """A directory for a store and a context, and what goes on in the steps of all its builders.

    Steps know two more words. `mark NAME` is noted in `ran`. `hold NAME` sets the event
    `came[NAME]` and waits for `free[NAME]`; `cleared[NAME]`, if it is there, is waited for by a hold
    that is cancelled, as by a sandbox that takes its time to end a step.
    """

    def __init__(self, directory: str) -> None:
        self.store = os.path.join(directory, "store")
        self.context = os.path.join(directory, "context")
        os.mkdir(self.context)
        self.ran: list[str] = []
        self.came = defaultdict[str, anyio.Event](anyio.Event)
        self.free = defaultdict[str, anyio.Event](anyio.Event)
        self.cleared: dict[str, anyio.Event] = {}
        self.cut: list[str] = []

    @asynccontextmanager
    async def builder(self, **settings: Any) -> AsyncIterator[Builder]:
        """A builder with a session of its own, as another process would have."""
        async with open_fakes(self.store) as (store, sandbox):
            sandbox.programs.update(mark=self._mark, hold=self._hold)
            async with Builder.over(store, sandbox, Settings(**settings)) as builder:
                yield builder

    def write(self, name: str, text: str) -> None:
        """Write a file of the context."""
        with open(os.path.join(self.context, name), "w") as file:
            file.write(text)

    async def _mark(self, call: Call) -> int:
        self.ran.append(call.argv[1])
        return 0

    async def _hold(self, call: Call) -> int:
        name = call.argv[1]
        self.came[name].set()
        try:
            await self.free[name].wait()
        except anyio.get_cancelled_exc_class():
            self.cut.append(name)
            if name in self.cleared:
                with anyio.CancelScope(shield=True):
                    await self.cleared[name].wait()
            raise
        return 0


class Client:
    """Who wants a build: what it heard, and what it came to."""

    def __init__(self, builder: Builder, bench: Workbench) -> None:
        self._builder, self._bench = builder, bench
        self.heard: list[events.Event] = []
        self.scope = anyio.CancelScope()
        self.result: Result | None = None
        self.error: ObuilderError | None = None

    async def build(self, spec: Spec, **secrets: bytes) -> Result:
        """Build, and raise what goes wrong."""
        return await self._builder.build(
            spec, self._bench.context, secrets=secrets, sink=self.heard.append
        )

    async def try_(self, spec: Spec) -> None:
        """Build; what it comes to is in `result` or `error`, or `scope` was cancelled."""
        with self.scope:
            try:
                self.result = await self.build(spec)
            except ObuilderError as error:
                self.error = error

    @property
    def output(self) -> bytes:
        """What the steps said."""
        return b"".join(event.data for event in self.heard if isinstance(event, events.Output))

    def told(self, kind: type[events.Event]) -> list[events.Event]:
        """The events of one kind."""
        return [event for event in self.heard if isinstance(event, kind)]


async def until(condition: Callable[[], object]) -> None:
    """Wait for what is bound to come."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.002)


def spec(*ops: str, base: str = "scratch", stages: str = "") -> Spec:
    """A spec with these ops, in a shell that the fakes have."""
    text = f"({stages} (from {base}) (shell /bin/sh -c) {' '.join(ops)})"
    return parse(text.encode(), file="a test").spec


def run(script: str, more: str = "") -> str:
    """A `run` op."""
    return f'(run {more} (shell "{script}"))'
