"""The verbs of `obuilder cluster` for administrators: pools, workers, clients."""

import argparse
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import anyio
import msgspec

from obuilder.cli.options import add_cluster, add_messages, add_verb, positive, seconds
from obuilder.cli.results import show, when
from obuilder.cli.session import in_loop
from obuilder.errors import ClusterError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.cluster.admin import Admin, View, Worker
    from obuilder.cluster.credentials import Credentials
    from obuilder.cluster.messages import Ticket

T = TypeVar("T")


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The verbs and their options."""
    subs = {name: add_verb(verbs, name, summary) for name, (summary, _) in ACTIONS.items()}
    _add_places(subs)
    pausing = subs["pause"]
    pausing.add_argument("--reason", metavar="TEXT", default="", help="what `show` says")
    pausing.add_argument("--wait", action="store_true", help="until the jobs of each have ended")
    for name in ("pause", "unpause"):
        subs[name].add_argument("--all", action="store_true", help="every worker that is known")
    pausing.add_argument(
        "--auto-create", action="store_true", help="also a worker that was never there"
    )
    shown = subs["show"]
    shown.add_argument("--terse", action="store_true", help="names alone, or the worker's state")
    for name in ("show", "clients", "doctor"):
        subs[name].add_argument("--json", action="store_true", help="records, for programs")
    for name in ("add-client", "add-worker"):
        subs[name].add_argument(
            "-o", "--output", metavar="FILE",
            help="the credentials file to write, mode 0600; standard output if not given",
        )  # fmt: skip
    subs["update"].add_argument(
        "--patience", type=seconds, default=600.0, metavar="TIME",
        help="for a worker to come back: seconds, or with m, h",
    )  # fmt: skip
    subs["doctor"].add_argument(
        "--fix", action="store_true", help="put right what can be put right"
    )
    subs["add-pool"].add_argument(
        "--platform",
        metavar="OS/ARCH",
        default="",
        help="what its workers must be; anything if not given",
    )
    for sub in subs.values():
        add_cluster(sub)
        add_messages(sub)


def _add_places(subs: Mapping[str, argparse.ArgumentParser]) -> None:
    for name, sub in subs.items():
        if name in ("show", "pause", "unpause", "drain", "update", "forget", "exec", "set-rate"):
            optional = "?" if name == "show" else None
            sub.add_argument("pool", metavar="POOL", nargs=optional, help="a pool")
        if name in ("show", "pause", "unpause", "drain", "update", "forget"):
            sub.add_argument("worker", metavar="WORKER", nargs="?", help="one of its workers")
    subs["exec"].add_argument(
        "command", metavar="COMMAND", nargs=argparse.REMAINDER,
        help="run here once for each worker that is known, its name in place of {}; after --",
    )  # fmt: skip
    for name in ("add-pool", "remove-pool"):
        subs[name].add_argument("name", metavar="POOL", help="its name")
    for name in ("add-client", "remove-client"):
        subs[name].add_argument("name", metavar="CLIENT", help="its name")
    subs["add-worker"].add_argument("name", metavar="WORKER", help="its name")
    subs["add-worker"].add_argument("--pool", required=True, metavar="POOL", help="its pool")
    subs["set-rate"].add_argument("client", metavar="CLIENT", help="whose")
    subs["set-rate"].add_argument("rate", metavar="RATE", type=positive, help="1 for who has none")


def _as_admin(args: argparse.Namespace, work: "Callable[[Admin], Awaitable[T]]") -> T:
    from obuilder.cluster.admin import Admin
    from obuilder.cluster.credentials import load_credentials

    async def connected() -> T:
        async with Admin.open(load_credentials(args.cluster, kind="admin")) as admin:
            return await work(admin)

    return in_loop(connected)


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _json(value: object) -> None:
    from obuilder.ui.jsonl import as_json

    sys.stdout.buffer.write(as_json(value) + b"\n")


# --- looking -------------------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> int:
    if args.pool is None:
        pools = _as_admin(args, lambda admin: admin.pools())
        if args.json:
            _json([{"name": pool.name, "platform": pool.platform} for pool in pools])
        else:
            show(pool.name for pool in pools)
        return 0
    view = _as_admin(args, lambda admin: admin.view(args.pool))
    if args.worker is not None:
        found = next((one for one in view.workers if one.name == args.worker), None)
        if args.json:
            _json(None if found is None else _worker_record(found))
            return 0
        text = "Not found" if found is None else "Paused" if found.paused else "Running"
        _tell(text if args.terse else f"{args.worker}: {text}")
        return 0
    if args.json:
        _json(_record(view))
    elif args.terse:
        show(worker.name for worker in view.workers)
    else:
        show(_lines(view))
    return 0


def _record(view: "View") -> dict[str, object]:
    return {
        "name": view.pool.name, "platform": view.pool.platform, "capacity": view.capacity,
        "workers": [_worker_record(worker) for worker in view.workers],
        "clients": msgspec.to_builtins(view.clients),
        "queue": msgspec.to_builtins(view.queue),
    }  # fmt: skip


def _worker_record(worker: "Worker") -> dict[str, object]:
    found: dict[str, object] = msgspec.to_builtins(worker)
    found["connected"] = worker.presence is not None
    return found


def _lines(view: "View") -> list[str]:
    platform = f" ({view.pool.platform})" if view.pool.platform else ""
    lines = [f"pool: {view.pool.name}{platform}", f"capacity: {view.capacity}"]
    running = {
        job.id for worker in view.workers if worker.presence for job in worker.presence.running
    }
    waiting = [ticket for ticket in view.queue if ticket.id not in running]
    lines.append(f"queue: [{' '.join(_ticket(ticket) for ticket in reversed(waiting))}]")
    there = [worker for worker in view.workers if worker.presence is not None]
    lines += ["registered:", *(f"  {_worker_line(worker)}" for worker in there)]
    gone = [worker for worker in view.workers if worker.presence is None]
    if gone:
        lines.append("disconnected:")
        for worker in gone:
            paused = " (paused)" if worker.paused else ""
            seen = f", last seen {when(worker.seen)}" if worker.seen else ""
            lines.append(f"  {worker.name}{paused}{seen}")
    lines.append("clients:")
    for client in view.clients:
        penalty = f"+{_time(client.penalty)}" if client.penalty else ""
        lines.append(
            f"  {client.name}({client.rate:g}){penalty}"
            f" {client.running} running, {client.waiting} waiting"
        )
    return lines


def _ticket(ticket: "Ticket") -> str:
    mark = "+urgent" if ticket.urgent else ""
    to = f">{ticket.forwarded}" if ticket.forwarded else ""
    return f"{ticket.client}:{ticket.hint or '(no cache hint)'}{to}{mark}"


def _worker_line(worker: "Worker") -> str:
    presence = worker.presence
    assert presence is not None
    reasons = ", ".join(f"{kind}: {text}" if text else kind for kind, text in presence.paused)
    state = f"(inactive: {reasons})" if reasons else f"({len(presence.running)} running)"
    own = f" {worker.waiting} waiting for it," if worker.waiting else ""
    return (
        f"{worker.name}: {presence.in_use}/{presence.capacity} slots {state}{own}"
        f" {presence.platform} obuilder {presence.version}"
    )


def _time(taken: float) -> str:
    return f"{taken:.0f}s" if taken < 120 else f"{taken / 60:.0f}m"


def _clients(args: argparse.Namespace) -> int:
    found = _as_admin(args, lambda admin: admin.clients())
    if args.json:
        _json([{"name": one.name, "keys": one.keys, "added": one.added} for one in found])
    elif found:
        show(one.name for one in found)
    else:
        sys.stderr.write("No clients.\n")
    return 0


# --- pausing -------------------------------------------------------------------------------------


def _chosen(args: argparse.Namespace, view: "View") -> list[str]:
    """The workers that were asked for. UsageError, which lists them, if none was."""
    if args.worker is not None:
        return [args.worker]
    workers = [worker.name for worker in view.workers]
    if getattr(args, "all", False) or not workers:
        return workers
    raise UsageError(
        "which worker?", hint=f"name one, or --all: {', '.join(workers)}"
    )  # fmt: skip


def _pause(args: argparse.Namespace) -> int:
    async def pause(admin: "Admin") -> None:
        workers = _chosen(args, await admin.view(args.pool))
        if not workers:
            _tell("No workers connected to pool (nothing to do).")
            return
        new = [
            worker for worker in workers
            if await admin.pause(args.pool, worker, args.reason, make=args.auto_create)
        ]  # fmt: skip
        _said(workers, new)
        if args.wait:
            _tell("Waiting for jobs to finish…")
            await _drained(admin, args.pool, workers)

    _as_admin(args, pause)
    return 0


def _said(workers: list[str], new: list[str]) -> None:
    for worker in workers:
        if worker not in new:
            _tell(f'(worker "{worker}" is already done)')
    if new:
        _tell("Success." if len(workers) == 1 else f"Updated {', '.join(new)}.")
    else:
        _tell("Nothing to do.")


async def _drained(admin: "Admin", pool: str, workers: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        for worker in workers:
            tasks.start_soon(admin.drain, pool, worker, _tell)


def _unpause(args: argparse.Namespace) -> int:
    async def unpause(admin: "Admin") -> None:
        workers = _chosen(args, await admin.view(args.pool))
        new = [worker for worker in workers if await admin.unpause(args.pool, worker)]
        _said(workers, new)

    _as_admin(args, unpause)
    return 0


def _drain(args: argparse.Namespace) -> int:
    args.all, args.auto_create, args.wait, args.reason = True, False, True, "drained"
    return _pause(args)


# --- workers -------------------------------------------------------------------------------------


def _update(args: argparse.Namespace) -> int:
    async def update(admin: "Admin") -> list[str]:
        view = await admin.view(args.pool)
        if args.worker is not None:
            view.named(args.worker)
            _tell(f"Updating {args.worker}…")
            await admin.update(args.pool, args.worker, patience=args.patience)
            _tell("Restarted")
            return []
        gone = [worker.name for worker in view.workers if worker.presence is None]
        failed = await admin.update_all(args.pool, _tell, patience=args.patience)
        if not failed and len(gone) < len(view.workers):
            _tell("All pool workers restarted.")
        if gone:
            sys.stderr.write(f"warning: not connected, and so not updated: {', '.join(gone)}\n")
        return failed

    failed = _as_admin(args, update)
    if failed:
        raise ClusterError(f"not updated: {', '.join(failed)}")
    return 0


def _forget(args: argparse.Namespace) -> int:
    async def forget(admin: "Admin") -> None:
        if args.worker is None:
            view = await admin.view(args.pool)
            gone = [worker.name for worker in view.workers if worker.presence is None]
            hint = f"these are gone: {', '.join(gone)}" if gone else "none is gone"
            raise UsageError("which worker?", hint=hint)
        await admin.forget(args.pool, args.worker)

    _as_admin(args, forget)
    _tell("Success.")
    return 0


def _exec(args: argparse.Namespace) -> int:
    from obuilder.system.process import run

    command = [word for index, word in enumerate(args.command) if index or word != "--"]
    if not command:
        raise UsageError("which command?", hint="obuilder cluster exec POOL -- ssh {} uptime")
    statuses: dict[str, int] = {}

    async def one(worker: str) -> None:
        argv = [worker if word == "{}" else word for word in command]
        said: list[bytes] = []
        ended = await run(argv, output=said.append)
        statuses[worker] = ended.status
        for line in b"".join(said).splitlines():
            sys.stdout.buffer.write(f"{worker}: ".encode() + line + b"\n")
        sys.stdout.flush()

    async def every(admin: "Admin") -> None:
        view = await admin.view(args.pool)
        async with anyio.create_task_group() as tasks:
            for worker in view.workers:
                tasks.start_soon(one, worker.name)

    _as_admin(args, every)
    bad = sorted(worker for worker, status in statuses.items() if status)
    if bad:
        sys.stderr.write(f"failed for {', '.join(bad)}\n")
    return 1 if bad else 0


# --- pools and clients ---------------------------------------------------------------------------


def _deliver(args: argparse.Namespace, credentials: "Credentials") -> None:
    from obuilder.cluster.credentials import save_credentials

    if args.output:
        save_credentials(credentials, os.path.abspath(args.output))
    else:
        sys.stdout.write(credentials.as_text())


def _add_client(args: argparse.Namespace) -> int:
    _deliver(args, _as_admin(args, lambda admin: admin.add_client(args.name)))
    return 0


def _remove_client(args: argparse.Namespace) -> int:
    count = _as_admin(args, lambda admin: admin.remove_client(args.name))
    _tell(f"{args.name} is cut off; {count} of its jobs that waited are cancelled")
    return 0


def _add_worker(args: argparse.Namespace) -> int:
    _deliver(args, _as_admin(args, lambda admin: admin.add_worker(args.pool, args.name)))
    return 0


def _add_pool(args: argparse.Namespace) -> int:
    _as_admin(args, lambda admin: admin.add_pool(args.name, args.platform))
    return 0


def _remove_pool(args: argparse.Namespace) -> int:
    _as_admin(args, lambda admin: admin.remove_pool(args.name))
    return 0


def _set_rate(args: argparse.Namespace) -> int:
    _as_admin(args, lambda admin: admin.set_rate(args.pool, args.client, args.rate))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from obuilder.cluster.doctor import examine

    began = time.monotonic()
    found = _as_admin(args, lambda admin: examine(admin, fix=args.fix))
    if args.json:
        _json(msgspec.to_builtins(found))
    else:
        show(
            f"{'fixed' if one.fixed else 'fault'}: {one.what}"
            + (f" ({one.remedy})" if one.remedy and not one.fixed else "")
            for one in found
        )
        if not found:
            _tell(f"nothing is wrong ({time.monotonic() - began:.1f} s)")
    return 1 if any(not one.fixed for one in found) else 0


ACTIONS: dict[str, tuple[str, Callable[[argparse.Namespace], int]]] = {
    "show": ("list pools; tell of one, or of one of its workers", _show),
    "clients": ("list clients", _clients),
    "add-pool": ("make a pool", _add_pool),
    "remove-pool": ("remove a pool that no worker is in, and its queue", _remove_pool),
    "add-client": ("make a client's credentials", _add_client),
    "remove-client": ("cut a client off, and cancel its jobs that wait", _remove_client),
    "add-worker": ("make a worker's credentials", _add_worker),
    "set-rate": ("say how much of a pool a client gets beside others", _set_rate),
    "pause": ("have workers take no more jobs", _pause),
    "unpause": ("let workers take jobs again", _unpause),
    "drain": ("pause workers and wait until their jobs have ended", _drain),
    "update": ("restart workers as new programs: one first, then the others", _update),
    "forget": ("forget a worker that is gone for good", _forget),
    "exec": ("run a command here for each worker of a pool", _exec),
    "doctor": ("look for what is wrong in the cluster", _doctor),
}
