"""Adding and removing clients, workers and viewers: what an administrator's verbs call.

Accounts are changed by telling the servers (`$SYS.REQ.CLAIMS.UPDATE`), which cut live connections of
whom they no longer let in.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from obuilder.cluster import accounts, layout, names
from obuilder.cluster.credentials import Credentials, authority_of, system_of
from obuilder.cluster.engine import Conflict, Engine
from obuilder.cluster.messages import Issued, decode, encode
from obuilder.cluster.nkeys import claims_of
from obuilder.errors import ClusterError, UsageError

_NO_POOL = "-"
_TRIES = 10
"""Of a change of an account that other administrators disturb."""


async def add_client(engine: Engine, admin: Credentials, name: str) -> Credentials:
    """A client, or one more user of it: the credentials."""
    authority = authority_of(admin)
    made = authority.client(name)
    async with Engine.connect(system_of(admin), name="admin") as system:
        account = accounts.client_account(authority.master, name).public
        # Of a client that was removed, older credentials stay useless.
        revoked = await _revoked(system, account)
        await _push(system, accounts.client_token(authority.master, name, revoked))
    await layout.ensure_client(engine, authority, name, made.key.public)
    return made


async def remove_client(engine: Engine, admin: Credentials, name: str) -> None:
    """Cut off a client: its connections at once, what it has waiting, and its jobs' signatures."""
    authority = authority_of(admin)
    if await engine.last(names.CLUSTER, names.client(name)) is None:
        raise ClusterError(f"there is no client {name!r}")
    async with Engine.connect(system_of(admin), name="admin") as system:
        await _push(system, accounts.removed_token(authority.master, name))
    await layout.retire_client(engine, authority, name)


async def add_worker(engine: Engine, admin: Credentials, pool: str, name: str) -> Credentials:
    """Credentials for a worker of a pool, or more of them."""
    authority = authority_of(admin)
    made = authority.worker(pool, name)
    await layout.ensure_worker(engine, pool, name)
    await _note(engine, names.issued("worker", pool, name), made)
    async with Engine.connect(system_of(admin), name="admin") as system:
        # Pools import from the viewers' account: it is there before them.
        viewers = accounts.viewer_account(authority.master).public
        if await _claims(system, viewers) is None:
            await _push(system, accounts.viewers_token(authority.master))
        await _change(
            system, made.account, lambda old: accounts.pool_token(authority.master, pool, old)
        )
    return made


async def remove_worker(engine: Engine, admin: Credentials, pool: str, name: str) -> None:
    """Cut off a worker, at once and for good, by all keys it was given. UsageError if there is none."""
    master = authority_of(admin).master
    await _revoke(
        engine, admin, names.issued("worker", pool, name), accounts.pool_account(master, pool).public,
        lambda revoked: accounts.pool_token(master, pool, revoked),
        UsageError(
            f"no credentials were made for a worker {name!r} of the pool {pool}",
            hint=f"`obuilder cluster show {pool}` lists workers",
        ),
    )  # fmt: skip


async def add_viewer(engine: Engine, admin: Credentials, name: str) -> Credentials:
    """Credentials that may look at everything."""
    authority = authority_of(admin)
    made = authority.viewer(name)
    await layout.ensure_cluster(engine, layout.replicas_of(authority.urls))
    await _note(engine, names.issued("viewer", _NO_POOL, name), made)
    async with Engine.connect(system_of(admin), name="admin") as system:
        await _change(
            system, made.account, lambda old: accounts.viewers_token(authority.master, old)
        )
    return made


async def remove_viewer(engine: Engine, admin: Credentials, name: str) -> None:
    """Cut off a viewer, at once and for good. UsageError if there is none."""
    master = authority_of(admin).master
    await _revoke(
        engine, admin, names.issued("viewer", _NO_POOL, name), accounts.viewer_account(master).public,
        lambda revoked: accounts.viewers_token(master, revoked),
        UsageError(f"there is no viewer {name!r}", hint="`obuilder cluster viewers`"),
    )  # fmt: skip


async def viewers(engine: Engine) -> dict[str, Issued]:
    """All viewers by name."""
    found = await engine.each(names.CLUSTER, names.issued("viewer", _NO_POOL))
    return {
        each.subject.rpartition(".")[2]: decode(each.data, Issued) for each in found if each.data
    }


async def _note(engine: Engine, subject: str, made: Credentials) -> None:
    """Remember a key, so that it can be revoked by the name that it was made for."""
    while True:
        found = await engine.last(names.CLUSTER, subject)
        old = decode(found.data, Issued) if found is not None else Issued(added=time.time())
        record = Issued(keys=(*old.keys, made.key.public), added=old.added)
        try:
            await engine.put(subject, encode(record), expect=found.seq if found else None)
        except Conflict:
            continue
        return


async def _revoke(
    engine: Engine,
    admin: Credentials,
    subject: str,
    account: str,
    token: Callable[[Mapping[str, int]], str],
    unknown: UsageError,
) -> None:
    found = await engine.last(names.CLUSTER, subject)
    if found is None:
        raise unknown
    async with Engine.connect(system_of(admin), name="admin") as system:
        await _change(system, account, token, decode(found.data, Issued).keys)
    await engine.remove(names.CLUSTER, subject)


async def _change(
    system: Engine,
    account: str,
    token: Callable[[Mapping[str, int]], str],
    keys: tuple[str, ...] = (),
) -> None:
    """Give the servers an account that lets in these keys no more, besides those of before."""
    wanted = dict.fromkeys(keys, int(time.time()))
    for _ in range(_TRIES):
        wanted = {**await _revoked(system, account), **wanted}
        await _push(system, token(wanted))
        # Another administrator may have read before we wrote, and written after.
        if wanted.keys() <= (await _revoked(system, account)).keys():
            return
    raise ClusterError("other administrators change this at the same time", hint="try again")


async def _revoked(system: Engine, account: str) -> Mapping[str, int]:
    """Whom an account lets in no more."""
    claims = await _claims(system, account) or {}
    return dict(claims.get("nats", {}).get("revocations", {}))


async def _claims(system: Engine, account: str) -> dict[str, Any] | None:
    """What an account may; None if there is none."""
    found = await system.request(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"")
    return claims_of(found.decode()) if found else None


async def _push(system: Engine, token: str) -> None:
    """Give the servers an account, if it is news to them.

    Nothing is changed that need not be: while an account is, a request of its users may be lost, or
    come twice.
    """
    wanted = claims_of(token)
    if wanted["nats"] == (await _claims(system, wanted["sub"]) or {}).get("nats"):
        return
    said = json.loads(await system.request("$SYS.REQ.CLAIMS.UPDATE", token.encode()))
    if "error" in said:
        raise ClusterError(f"the cluster did not take an account: {said['error']}")
