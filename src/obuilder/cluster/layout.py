"""Which streams and consumers a cluster has, with their settings: makes and updates them.

Everything may be called again at any time; what is right already is left alone.
"""

import time
from typing import Any

import anyio

from obuilder.cluster import names
from obuilder.cluster.accounts import POOLS, live
from obuilder.cluster.credentials import Authority
from obuilder.cluster.engine import Engine
from obuilder.cluster.messages import Client, Pool, decode, encode
from obuilder.cluster.sealing import sign_record

_SECOND = 1_000_000_000
_DAY = 86_400 * _SECOND
ACK_WAIT = 30.0
"""Seconds after which a ticket is somebody else's, if its worker says nothing."""
_ONCE = 600 * _SECOND
_CONSUMERS = 100_000
"""Of a queue: two for each client and worker. Without a number a server takes 1,000 since 2.15."""
_MARKER = 5 * _SECOND
_COPIED = 10.0
"""Seconds for which a copy is waited for: it comes in milliseconds, or once enough servers are back."""
JOBS_KEPT = 90 * _DAY
LOGS_KEPT = 30 * _DAY
LOGS_BYTES = 20 << 30
BLOBS_KEPT = 7 * _DAY
BLOBS_BYTES = 20 << 30


def _stream(name: str, subjects: list[str], replicas: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "subjects": subjects, "storage": "file", "num_replicas": replicas,
        "retention": "limits", "discard": "new", "allow_direct": True,
        "duplicate_window": 120 * _SECOND,
        "republish": {"src": ">", "dest": live(">")}, **more,
    }  # fmt: skip


_ONE_EACH = {
    "max_msgs_per_subject": 1, "discard": "old", "allow_msg_ttl": True,
    "allow_rollup_hdrs": True, "subject_delete_marker_ttl": _MARKER,
}  # fmt: skip


def replicas_of(urls: tuple[str, ...]) -> int:
    """On how many servers streams are kept."""
    return 3 if len(urls) >= 3 else 1


async def ensure_cluster(engine: Engine, replicas: int) -> None:
    """What there is but once."""
    await engine.ensure_stream(
        _stream(
            names.CLUSTER, [names.pool(), names.client(), names.issued()], replicas, **_ONE_EACH
        )
    )
    # A mirror would answer what is asked of CLUSTER itself, too.
    copy = {
        "name": POOLS, "storage": "file", "num_replicas": replicas, "allow_direct": True,
        "max_msgs_per_subject": 1, "allow_msg_ttl": True,
        "sources": [{"name": names.CLUSTER, "filter_subject": names.pool()}],
    }  # fmt: skip
    await engine.ensure_stream(copy)


async def ensure_pool(
    engine: Engine, authority: Authority, name: str, *, platform: str = ""
) -> Pool:
    """A pool with its streams, and consumers for all clients."""
    names.checked("pool", name)
    replicas = replicas_of(authority.urls)
    await ensure_cluster(engine, replicas)
    queue = _stream(
        names.queue_of(name), [f"sub.*.{name}.>", f"run.{name}.>"], replicas,
        retention="workqueue", duplicate_window=_ONCE, max_msgs_per_subject=-1,
        max_consumers=_CONSUMERS,
    )  # fmt: skip
    await engine.ensure_stream(queue)
    kinds = ("fair", "hint", "worker", "known", "pause")
    state = _stream(
        names.state_of(name), [f"{kind}.{name}.>" for kind in kinds], replicas, **_ONE_EACH
    )
    await engine.ensure_stream(state)
    for stored in await engine.each(names.CLUSTER, names.client()):
        client = decode(stored.data, Client)
        if not client.revoked:
            await _ensure_waiting(engine, name, client.name)
    found = await engine.last(names.CLUSTER, names.pool(name))
    old = decode(found.data, Pool) if found else Pool(name=name)
    pool = Pool(
        name=name, platform=platform or old.platform, key=authority.sealing(name), cold=old.cold,
        warm=old.warm,
    )  # fmt: skip
    pool = sign_record(pool, authority.signer)
    if pool != old:
        await engine.put(names.pool(name), encode(pool))
    await _copied(engine, pool)
    return pool


async def _copied(engine: Engine, pool: Pool) -> None:
    """Wait until clients see a pool as it is: they read a copy, which is made by and by."""
    with anyio.move_on_after(_COPIED):
        while True:
            found = await engine.last(POOLS, names.pool(pool.name))
            if found is not None and decode(found.data, Pool) == pool:
                return
            await anyio.sleep(0.01)


async def drop_pool(engine: Engine, name: str) -> None:
    """Remove a pool with all that waits in it."""
    for stream in (names.CLUSTER, POOLS):
        await engine.remove(stream, names.pool(name))
    await engine.drop_stream(names.queue_of(name))
    await engine.drop_stream(names.state_of(name))


async def ensure_client(engine: Engine, authority: Authority, name: str, *keys: str) -> Client:
    """A client with its streams, consumers in all pools, and `keys` that sign its jobs."""
    names.checked("client", name)
    replicas = replicas_of(authority.urls)
    await ensure_cluster(engine, replicas)
    await engine.ensure_stream(
        _stream(names.jobs_of(name), [f"job.{name}.>"], replicas, max_age=JOBS_KEPT, **_ONE_EACH)
    )
    for stream, kind, age, size in (
        (names.logs_of(name), "log", LOGS_KEPT, LOGS_BYTES),
        (names.blobs_of(name), "blob", BLOBS_KEPT, BLOBS_BYTES),
    ):
        each = {"max_msgs_per_subject": 1} if kind == "blob" else {}
        config = _stream(
            stream, [f"{kind}.{name}.>"], replicas, max_age=age, max_bytes=size, discard="old",
            allow_rollup_hdrs=True, **each,
        )  # fmt: skip
        if kind == "log":
            # Where one server keeps them, their readers don't wait for its disk.
            config |= {"persist_mode": "async"} if replicas == 1 else {}
        else:
            del config["republish"]  # files are not followed
        await engine.ensure_stream(config)
    for stored in await engine.each(names.CLUSTER, names.pool()):
        await _ensure_waiting(engine, decode(stored.data, Pool).name, name)
    found = await engine.last(names.CLUSTER, names.client(name))
    old = decode(found.data, Client) if found else None
    known = old.keys if old and not old.revoked else ()
    added = old.added if old and not old.revoked else time.time()
    client = Client(name=name, keys=tuple(dict.fromkeys((*known, *keys))), added=added)
    client = sign_record(client, authority.signer)
    if client != old:
        await engine.put(names.client(name), encode(client))
    return client


async def retire_client(engine: Engine, authority: Authority, name: str) -> None:
    """Nobody signs jobs of a client any more; what it had is kept until it is too old."""
    record = sign_record(Client(name=name, revoked=True, added=time.time()), authority.signer)
    await engine.put(names.client(name), encode(record))
    for stored in await engine.each(names.CLUSTER, names.pool()):
        pool = decode(stored.data, Pool).name
        await engine.remove(names.queue_of(pool), f"sub.{name}.{pool}.>")
        for urgent in (True, False):
            await engine.drop_consumer(names.queue_of(pool), names.waiting(name, urgent=urgent))


async def ensure_worker(engine: Engine, pool: str, name: str) -> None:
    """A worker's own part of its pool's queue."""
    for urgent in (True, False):
        subject = names.forwarded(pool, name, urgent=urgent)
        await _ensure_consumer(engine, pool, names.running(name, urgent=urgent), subject)


async def drop_worker(engine: Engine, pool: str, name: str) -> None:
    """Remove what is a worker's own. Tickets that wait for it alone must have been taken before."""
    for urgent in (True, False):
        await engine.drop_consumer(names.queue_of(pool), names.running(name, urgent=urgent))
    for subject in (names.worker(pool, name), names.known(pool, name), names.pause(pool, name)):
        await engine.put(subject, b"", ttl=1)  # who watches hears of this, and not of a purge


_CONSUMER = {
    "ack_policy": "explicit", "ack_wait": int(ACK_WAIT) * _SECOND, "max_deliver": -1,
    "deliver_policy": "all", "replay_policy": "instant", "max_ack_pending": -1,
    "max_waiting": 100_000,
}  # fmt: skip


async def _ensure_consumer(engine: Engine, pool: str, name: str, subject: str) -> None:
    config = {"durable_name": name, "filter_subject": subject, **_CONSUMER}
    await engine.ensure_consumer(names.queue_of(pool), config)


async def _ensure_waiting(engine: Engine, pool: str, client: str) -> None:
    for urgent in (True, False):
        subject = names.ticket(client, pool, urgent=urgent)
        await _ensure_consumer(engine, pool, names.waiting(client, urgent=urgent), subject)
