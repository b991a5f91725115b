"""What may be wrong in a cluster, found by an administrator and, if that is wanted, put right."""

import time

import anyio
import msgspec
from msgspec import Struct

from obuilder import __version__
from obuilder.cluster import layout, names
from obuilder.cluster.admin import Admin
from obuilder.cluster.client import ticket_of
from obuilder.cluster.engine import Missing
from obuilder.cluster.messages import Client, Job, Signed, State, Ticket, decode, encode
from obuilder.errors import Incompatible

_SKEW = 30.0
"""Seconds that a worker's clock may be off."""
_WAIT = 60.0
"""Seconds for which a consumer that has work and workers may give none."""
_YOUNG = 30.0
"""Seconds in which a job that was just submitted may still get its ticket."""


class Finding(Struct, frozen=True):
    """Something that is wrong."""

    what: str
    remedy: str = ""
    fixed: bool = False


async def examine(
    admin: Admin, *, fix: bool = False, patience: float = _WAIT, young: float = _YOUNG
) -> list[Finding]:
    """Everything that is wrong. With `fix`, what can be put right was. ClusterError.

    `patience` and `young`: seconds for which a consumer may give nothing, and in which a job may get
    its ticket.
    """
    found: list[Finding] = []
    authority = admin.authority if fix else None
    clients = await admin.clients()
    pools = [pool.name for pool in await admin.pools()]
    streams = await admin.engine.streams()
    wanted = {names.CLUSTER, *map(names.queue_of, pools), *map(names.state_of, pools)}
    for client in clients:
        wanted |= {f(client.name) for f in (names.jobs_of, names.logs_of, names.blobs_of)}
    if lacking := sorted(wanted - set(streams)):
        found.append(_finding(fix, f"streams are missing: {', '.join(lacking)}"))
    if authority is not None:
        await layout.ensure_cluster(admin.engine, layout.replicas_of(authority.urls))
        for pool in pools:
            await layout.ensure_pool(admin.engine, authority, pool)
        for client in clients:
            await layout.ensure_client(admin.engine, authority, client.name)
    there = wanted if fix else wanted & set(streams)
    for pool in pools:
        if names.queue_of(pool) in there and names.state_of(pool) in there:
            found += await _consumers(admin, pool, clients, fix=fix, patience=patience)
            found += await _workers(admin, pool)
            found += await _tickets(admin, pool, [client.name for client in clients], fix=fix)
    for client in clients:
        if names.jobs_of(client.name) in there:
            found += await _orphans(admin, client.name, pools, fix=fix, young=young)
    return found


def _finding(fix: bool, what: str, remedy: str = "--fix puts it right") -> Finding:
    return Finding(what, remedy, fixed=fix)


async def _consumers(
    admin: Admin, pool: str, clients: list[Client], *, fix: bool, patience: float
) -> list[Finding]:
    """Consumers that are not there, or give nothing though they could."""
    stream, found = names.queue_of(pool), []
    there = await admin.engine.consumers(stream)
    for client in clients:
        for urgent in (True, False):
            name = names.waiting(client.name, urgent=urgent)
            if name not in there:
                found.append(_finding(fix, f"{pool}: {client.name} has no place in the queue"))
    stuck = {name: _given(info) for name, info in there.items() if _waits(info)}
    if stuck:
        await anyio.sleep(patience)
        later = await admin.engine.consumers(stream)
        for name, given in stuck.items():
            info = later.get(name)
            if info is None or not _waits(info) or _given(info) != given:
                continue
            found.append(_finding(fix, f"{pool}: the consumer {name} gives nothing"))
            if fix:
                await admin.engine.drop_consumer(stream, name)
                if name.startswith("c_"):
                    await layout.ensure_pool(admin.engine, admin.authority, pool)
                else:
                    worker = name.removeprefix("w_").rpartition("_")[0]
                    await layout.ensure_worker(admin.engine, pool, worker)
    return found


def _waits(info: dict[str, object]) -> bool:
    """Whether there is work, and somebody who asks for it."""
    return bool(info.get("num_pending")) and bool(info.get("num_waiting"))


def _given(info: dict[str, object]) -> object:
    delivered = info.get("delivered")
    return delivered.get("consumer_seq") if isinstance(delivered, dict) else None


async def _workers(admin: Admin, pool: str) -> list[Finding]:
    """Clocks that are off, and other versions."""
    found = []
    for stored in await admin.engine.each(names.state_of(pool), names.worker(pool)):
        try:
            presence = (await admin.presences(pool)).get(stored.subject.rpartition(".")[2])
        except Incompatible as error:
            found.append(Finding(f"{pool}: {stored.subject}: {error.message}", "update obuilder"))
            continue
        if presence is None:
            continue
        skew = presence.at - stored.time
        if abs(skew) > _SKEW:
            text = f"{pool}: the clock of {presence.name} is {skew:+.0f} s off the cluster's"
            found.append(Finding(text, "set its clock"))
        if presence.version and presence.version != __version__:
            text = f"{pool}: {presence.name} has obuilder {presence.version}, this is {__version__}"
            found.append(Finding(text, f"obuilder cluster update {pool}"))
        for kind, text in presence.paused:
            if kind in ("health", "disk"):
                found.append(Finding(f"{pool}: {presence.name} paused itself: {kind}: {text}"))
    return found


async def _tickets(admin: Admin, pool: str, clients: list[str], *, fix: bool) -> list[Finding]:
    """Tickets that nobody will take: of clients that are none any more, or that can't be read."""
    found: list[Finding] = []
    strange: dict[str, int] = {}
    queue = names.queue_of(pool)
    async for stored in admin.engine.read(queue, f"sub.*.{pool}.>"):
        client = stored.subject.split(".")[1]
        if client not in clients:
            strange[client] = strange.get(client, 0) + 1
    for client, count in strange.items():
        found.append(_finding(fix, f"{pool}: {count} tickets of {client}, who is no client"))
        if fix:
            await admin.engine.remove(queue, f"sub.{client}.{pool}.>")
    return found


async def _orphans(
    admin: Admin, client: str, pools: list[str], *, fix: bool, young: float
) -> list[Finding]:
    """Jobs that are queued without a ticket: their client was cut off just before it was put."""
    queued: dict[str, set[str]] = {}
    stream = names.jobs_of(client)
    now = time.time()
    found: list[Finding] = []
    for stored in await admin.engine.each(stream, names.job(client, "*", "*", "state")):
        _, _, pool, job, _ = stored.subject.split(".")
        try:
            state = decode(stored.data, State)
        except Incompatible as error:
            found.append(Finding(f"{pool}: the job {job} of {client}: {error.message}"))
            continue
        if state.phase == "queued" and stored.time < now - young:
            queued.setdefault(pool, set()).add(job)
    for pool, jobs in queued.items():
        if pool not in pools:
            found.append(Finding(f"{len(jobs)} jobs of {client} wait in {pool}, which is no pool"))
            continue
        lacking = jobs - await _ticketed(admin, pool)
        for job in sorted(lacking):
            found.append(_finding(fix, f"{pool}: the job {job} of {client} waits without a ticket"))
            stored_ = await admin.engine.last(stream, names.job(client, pool, job, "spec"))
            if fix and stored_ is not None:
                spec = decode(decode(stored_.data, Signed).job, Job)
                subject = names.ticket(client, pool, urgent=spec.urgent)
                await admin.engine.put(subject, encode(ticket_of(spec)))
    return found


async def _ticketed(admin: Admin, pool: str) -> set[str]:
    found = set()
    try:
        async for stored in admin.engine.read(names.queue_of(pool), ">"):
            try:
                found.add(decode(stored.data, Ticket).id)
            except (Incompatible, msgspec.MsgspecError):
                continue
    except Missing:
        return set()
    return found
