"""One key is made once, and all who want it share the making: its log from the start, its end.

Leaving is not cancelling: the last to leave cancels, and waits until the making has cleaned up.
Who comes while it is being cancelled waits as well, and starts afresh.
"""

from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from obuilder.values import Key

Listener = Callable[[bytes | tuple[int, int] | None], None]
"""Takes each piece of a log, and how far the making got (bytes there, bytes in all); None when what
came before is void and the log begins anew.
"""


class Making:
    """A key being made. `holders` are the builds that wait for it: what it comes to is theirs."""

    def __init__(self) -> None:
        self.ended = anyio.Event()
        self.scope = anyio.CancelScope()
        self.error: Exception | None = None
        self.cached = False
        self.seconds = 0.0
        self._listeners: list[Listener] = []
        self._so_far: list[bytes] = []
        self.holders: list[str] = []

    def emit(self, data: bytes) -> None:
        """Tell everyone who listens, and who will."""
        self._so_far.append(data)
        for listener in self._listeners:
            listener(data)

    def progress(self, done: int, total: int) -> None:
        """Tell everyone who listens how far it got."""
        for listener in self._listeners:
            listener((done, total))

    def again(self) -> None:
        """What was told so far came to nothing: the log begins anew, for those who join too."""
        self._so_far.clear()
        for listener in self._listeners:
            listener(None)

    def join(self, listener: Listener, holder: str) -> None:
        """Listen: first to all that has been, then to what comes."""
        for data in self._so_far:
            listener(data)
        self._listeners.append(listener)
        self.holders.append(holder)

    def leave(self, listener: Listener, holder: str) -> None:
        """Stop listening. The last to leave cancels what has not ended."""
        self._listeners.remove(listener)
        self.holders.remove(holder)
        if not self.holders and not self.ended.is_set():
            self.scope.cancel()


class InFlight:
    """The makings of one builder, by key. They run in the builder's own tasks, not a caller's."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._makings: dict[Key, Making] = {}

    async def share(
        self,
        key: Key,
        make: Callable[[Making], Awaitable[None]],
        listener: Listener,
        holder: str,
    ) -> Making:
        """Join the making of `key`, or start it with `make`. Its error, if it has one, is raised."""
        while True:
            making = self._makings.get(key)
            if making is None:
                making = self._makings[key] = Making()
                self._tasks.start_soon(self._run, key, making, make)
                break
            if not making.scope.cancel_called:
                break
            await making.ended.wait()
        making.join(listener, holder)
        try:
            await making.ended.wait()
        finally:
            making.leave(listener, holder)
            if not making.ended.is_set() and making.scope.cancel_called:
                with anyio.CancelScope(shield=True):
                    await making.ended.wait()
        if making.error is not None:
            raise making.error
        return making

    async def _run(
        self, key: Key, making: Making, make: Callable[[Making], Awaitable[None]]
    ) -> None:
        try:
            with making.scope:
                await make(making)
        except Exception as error:  # noqa: BLE001 # carried to everyone who shares the making
            making.error = error
        finally:
            # Out of the table before anyone wakes: a new request then starts a new making.
            if self._makings.get(key) is making:
                del self._makings[key]
            making.ended.set()
