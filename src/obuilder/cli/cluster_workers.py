"""The verbs of `obuilder cluster` for workers: paused, drained, updated, forgotten."""

import argparse
import sys
from collections.abc import Callable

import anyio

from obuilder.cli.administration import Told, as_admin, teller
from obuilder.errors import ClusterError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.cluster.admin import Admin
    from obuilder.cluster.overview import View


def _chosen(args: argparse.Namespace, view: "View") -> list[str]:
    """The workers that were asked for. UsageError, which lists them, if none was."""
    if args.worker is not None:
        return [args.worker]
    workers = [worker.name for worker in view.workers]
    if args.all or not workers:
        return workers
    raise UsageError("which worker?", hint=f"name one, or --all: {', '.join(workers)}")


def pause(args: argparse.Namespace) -> Told:
    """Have workers take no more jobs."""
    tell = teller(args)

    async def each(admin: "Admin") -> Told:
        workers = _chosen(args, await admin.view(args.pool))
        new = [
            worker for worker in workers
            if await admin.pause(args.pool, worker, args.reason, make=args.auto_create)
        ]  # fmt: skip
        lines = _changed(workers, new)
        if not args.wait or not workers:
            return Told(_record(args, workers, new), lines)
        for line in lines:
            tell(line)
        await _drained(admin, args.pool, workers, tell)
        return Told({**_record(args, workers, new), "drained": workers})

    return as_admin(args, each)


def unpause(args: argparse.Namespace) -> Told:
    """Let workers take jobs again."""

    async def each(admin: "Admin") -> Told:
        workers = _chosen(args, await admin.view(args.pool))
        new = [worker for worker in workers if await admin.unpause(args.pool, worker)]
        return Told(_record(args, workers, new), _changed(workers, new))

    return as_admin(args, each)


def drain(args: argparse.Namespace) -> Told:
    """Pause workers and wait until their jobs have ended."""
    args.all, args.auto_create, args.wait, args.reason = True, False, True, "drained"
    return pause(args)


def _record(args: argparse.Namespace, workers: list[str], new: list[str]) -> dict[str, object]:
    done = [worker for worker in workers if worker not in new]
    return {"pool": args.pool, "changed": new, "unchanged": done}


def _changed(workers: list[str], new: list[str]) -> list[str]:
    if not workers:
        return ["No workers connected to pool (nothing to do)."]
    lines = [f'(worker "{worker}" is already done)' for worker in workers if worker not in new]
    if not new:
        return [*lines, "Nothing to do."]
    return [*lines, "Success." if len(workers) == 1 else f"Updated {', '.join(new)}."]


async def _drained(
    admin: "Admin", pool: str, workers: list[str], tell: Callable[[str], None]
) -> None:
    tell("Waiting for jobs to finish…")
    async with anyio.create_task_group() as tasks:
        for worker in workers:
            tasks.start_soon(admin.drain, pool, worker, tell)


def update(args: argparse.Namespace) -> Told:
    """Restart workers as new programs: one first, then the others. ClusterError."""
    tell = teller(args)

    async def one(admin: "Admin", view: "View") -> Told:
        if view.named(args.worker).presence is not None:
            tell(f"Updating {args.worker}…")
        await admin.update(args.pool, args.worker, patience=args.patience)
        record = {"pool": args.pool, "updated": [args.worker], "failed": [], "disconnected": []}
        return Told(record, ["Restarted"])

    async def all_(admin: "Admin", view: "View") -> Told:
        gone = [worker.name for worker in view.workers if worker.presence is None]
        there = [worker.name for worker in view.workers if worker.presence is not None]
        failed = await admin.update_all(args.pool, tell, patience=args.patience)
        if gone:
            sys.stderr.write(f"warning: not connected, and so not updated: {', '.join(gone)}\n")
        if failed and not args.json:
            raise ClusterError(f"not updated: {', '.join(failed)}")
        done = [worker for worker in there if worker not in failed]
        record = {"pool": args.pool, "updated": done, "failed": failed, "disconnected": gone}
        status = ClusterError.exit_status if failed else 0
        return Told(record, ["All pool workers restarted."] if there else [], status)

    async def update(admin: "Admin") -> Told:
        view = await admin.view(args.pool)
        return await (all_ if args.worker is None else one)(admin, view)

    return as_admin(args, update)


def forget(args: argparse.Namespace) -> Told:
    """Forget a worker that is gone for good."""

    async def forget(admin: "Admin") -> int:
        if args.worker is None:
            view = await admin.view(args.pool)
            gone = [worker.name for worker in view.workers if worker.presence is None]
            hint = f"these are gone: {', '.join(gone)}" if gone else "none is gone"
            raise UsageError("which worker?", hint=hint)
        return await admin.forget(args.pool, args.worker)

    moved = as_admin(args, forget)
    return Told({"pool": args.pool, "worker": args.worker, "moved": moved}, ["Success."])


def execute(args: argparse.Namespace) -> Told:
    """Run a command here for each worker of a pool. The exit status is 1 if one failed."""
    from obuilder.system.process import run

    command = [word for index, word in enumerate(args.command) if index or word != "--"]
    if not command:
        raise UsageError("which command?", hint="obuilder cluster exec POOL -- ssh {} uptime")
    found: dict[str, dict[str, object]] = {}

    async def one(worker: str) -> None:
        argv = [worker if word == "{}" else word for word in command]
        said = bytearray()
        try:
            ended = await run(argv, output=said.extend)
        except OSError as error:
            raise UsageError(f"can't run {argv[0]}: {error.strerror}") from error
        text = said.decode(errors="surrogateescape")
        found[worker] = {"worker": worker, "status": ended.status, "output": text}
        if not args.json:
            tell = teller(args)
            for line in text.splitlines():
                tell(f"{worker}: {line}")

    async def every(admin: "Admin") -> None:
        view = await admin.view(args.pool)
        async with anyio.create_task_group() as tasks:
            for worker in view.workers:
                tasks.start_soon(one, worker.name)

    as_admin(args, every)
    bad = sorted(worker for worker, each in found.items() if each["status"])
    if bad:
        sys.stderr.write(f"failed for {', '.join(bad)}\n")
    return Told([found[worker] for worker in sorted(found)], status=1 if bad else 0)
