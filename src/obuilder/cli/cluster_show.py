"""The verbs of `obuilder cluster` that look: `show`, `clients`, `viewers`, `doctor`."""

import argparse
import sys
import time

import msgspec

from obuilder.cli.administration import Told, as_admin
from obuilder.cli.results import when

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.cluster.messages import Ticket
    from obuilder.cluster.overview import View, Worker


def pools(args: argparse.Namespace) -> Told:
    """List pools; tell of one, or of one of its workers."""
    if args.pool is None:
        found = as_admin(args, lambda admin: admin.pools())
        records = [{"name": pool.name, "platform": pool.platform} for pool in found]
        return Told(records, [pool.name for pool in found])
    view = as_admin(args, lambda admin: admin.view(args.pool))
    if args.worker is not None:
        return _worker(args, view)
    if args.terse:
        return Told(_record(view), [worker.name for worker in view.workers])
    return Told(_record(view), _lines(view))


def _worker(args: argparse.Namespace, view: "View") -> Told:
    if args.terse and args.worker not in {worker.name for worker in view.workers}:
        return Told(None, ["Not found"])  # a script may ask this
    found = view.named(args.worker)
    text = "Paused" if found.is_paused else "Running" if found.presence else "Disconnected"
    return Told(_worker_record(found), [text if args.terse else f"{args.worker}: {text}"])


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


def clients(args: argparse.Namespace) -> Told:
    """List clients."""
    found = as_admin(args, lambda admin: admin.clients())
    if not found and not args.json:
        sys.stderr.write("No clients.\n")
    records = [{"name": one.name, "keys": one.keys, "added": one.added} for one in found]
    return Told(records, [one.name for one in found])


def viewers(args: argparse.Namespace) -> Told:
    """List viewers."""
    found = sorted(as_admin(args, lambda admin: admin.viewers()).items())
    records = [{"name": name, "keys": one.keys, "added": one.added} for name, one in found]
    return Told(records, [name for name, _ in found])


def doctor(args: argparse.Namespace) -> Told:
    """Look for what is wrong in the cluster."""
    from obuilder.cluster.doctor import examine

    began = time.monotonic()
    found = as_admin(args, lambda admin: examine(admin, fix=args.fix))
    lines = [
        f"{'fixed' if one.fixed else 'fault'}: {one.what}"
        + (f" ({one.remedy})" if one.remedy and not one.fixed else "")
        for one in found
    ] or [f"nothing is wrong ({time.monotonic() - began:.1f} s)"]
    return Told(msgspec.to_builtins(found), lines, int(any(not one.fixed for one in found)))
