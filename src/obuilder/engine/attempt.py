"""One attempt at a step: its draft, its log, and what is kept of both when it fails."""

import errno
import os
from collections.abc import Awaitable, Callable

import anyio
import msgspec

from obuilder.backends.protocols import Draft, Store
from obuilder.engine.index import Index, Record
from obuilder.engine.locks import held
from obuilder.engine.logs import LogWriter, remove_log
from obuilder.engine.meta import written
from obuilder.errors import ObuilderError, StepFailed, StoreFull, of_disk
from obuilder.plan.keys import failed_key

_LITTLE = 1 << 20
"""Bytes free at which a disk is called full."""
_SMALL = 1 << 16
"""Bytes of a log that are kept even then."""


class Attempt:
    """What the holder of a key's lock does. `record` is what the result will be known by, `holders`
    are the builds that wait for it when it is there.
    """

    def __init__(
        self,
        store: Store,
        index: Index,
        log: LogWriter,
        record: Record,
        *,
        holders: list[str],
        keep_failed: bool,
    ) -> None:
        self._store, self._index, self._log, self._record = store, index, log, record
        self._holders, self._keep_failed = holders, keep_failed

    async def make(
        self, work: Callable[[Draft], Awaitable[None]], seconds: Callable[[], float]
    ) -> None:
        """Publish what `work` makes of a draft. What it raises is raised; all ObuilderErrors.

        Of a failed command its log and (unless that is not wanted) its root are kept, of any
        other failure the log; on a disk that is full nothing of size. A cancelled attempt leaves
        nothing.
        """
        published = False
        try:
            await self._look_at_disk()
            async with self._store.begin(self._record.key, base=self._record.base) as draft:
                try:
                    await work(draft)
                except StepFailed as error:
                    full = await self._tell_of_disk(error)
                    await self._keep(error, draft if self._keep_failed else None, full=full)
                    raise
                record = msgspec.structs.replace(self._record, seconds=seconds())
                self._log.done()
                await draft.commit(written(record))
                published = True
            self._index.add(record, holders=self._holders)
        except StepFailed:
            raise
        except (ObuilderError, OSError) as error:
            problem = (
                error if isinstance(error, ObuilderError) else of_disk("the step broke", error)
            )
            full = await self._tell_of_disk(problem)
            if not published:  # else the next build finds it in the store
                await self._keep(problem, None, full=full)
            raise problem from error
        except BaseException:
            if not published:
                self._log.discard()
            raise

    async def _look_at_disk(self) -> None:
        """StoreFull before anything begins: what fails for want of room later tells it badly."""
        for pause in (0.2, 0.5, 1.0):
            if (await self._store.usage()).free >= _LITTLE:
                return
            # Some file systems free what was deleted a while after.
            await self._store.sync()
            await anyio.sleep(pause)
        raise StoreFull("there is no room for a step")

    async def _tell_of_disk(self, error: ObuilderError) -> bool:
        """Whether the disk is, or was, full; then the error says which."""
        usage = await self._store.usage()
        full = isinstance(error, StoreFull) or usage.free < _LITTLE
        if isinstance(error, StepFailed) and os.strerror(errno.ENOSPC).encode() in error.tail:
            full = full or usage.free < usage.total // 10  # it may have removed what it wrote
        if full:
            error.add_note(
                f"the disk of {self._store.directory} is full: "
                f"{usage.free >> 20} of {usage.total >> 20} MiB are free"
            )
            error.hint = error.hint or "`obuilder prune` makes room"
        return full

    async def _keep(self, error: ObuilderError, draft: Draft | None, *, full: bool) -> None:
        """Keep the log (one that says something) and the root, in an earlier attempt's place."""
        key = failed_key(self._record.key)
        failed = msgspec.structs.replace(self._record, key=key, kind="failed")
        size = self._log.size
        if (full and size > _SMALL) or (size == 0 and not isinstance(error, StepFailed)):
            self._log.discard()
            return
        try:
            async with held(self._store.directory, key):
                await self._store.delete(key)
                if draft is not None and not full:
                    await draft.commit(written(failed), key=key)
                    error.hint = error.hint or f"look inside with: obuilder shell {key[:12]}"
                self._index.add(failed)
                self._log.failed()
        except (ObuilderError, OSError) as problem:
            error.add_note(f"what was left of the step could not be kept: {problem}")
            self._log.discard()
            remove_log(self._store.directory, key)
