"""Adding and removing clients, workers and pools: what an administrator's verbs call.

Accounts are changed by telling the servers (`$SYS.REQ.CLAIMS.UPDATE`), which cut live connections of
whom they no longer let in.
"""

import json
import time
from collections.abc import Mapping

from obuilder.cluster import accounts, layout, names
from obuilder.cluster.credentials import Credentials, authority_of, system_of
from obuilder.cluster.engine import Engine
from obuilder.cluster.nkeys import claims_of
from obuilder.errors import ClusterError


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
    """Credentials for a worker of a pool."""
    authority = authority_of(admin)
    made = authority.worker(pool, name)
    await layout.ensure_worker(engine, pool, name)
    async with Engine.connect(system_of(admin), name="admin") as system:
        revoked = await _revoked(system, made.account)
        await _push(system, accounts.pool_token(authority.master, pool, revoked))
    return made


async def revoke_worker(admin: Credentials, pool: str, public: str) -> None:
    """Cut off a worker by its public key, for good."""
    authority = authority_of(admin)
    async with Engine.connect(system_of(admin), name="admin") as system:
        account = accounts.pool_account(authority.master, pool).public
        revoked = {**await _revoked(system, account), public: int(time.time())}
        await _push(system, accounts.pool_token(authority.master, pool, revoked))


async def _revoked(system: Engine, account: str) -> Mapping[str, int]:
    """Whom an account lets in no more."""
    found = await system.request(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"")
    if not found:
        return {}
    claims = claims_of(found.decode())
    return dict(claims.get("nats", {}).get("revocations", {}))


async def _push(system: Engine, token: str) -> None:
    said = json.loads(await system.request("$SYS.REQ.CLAIMS.UPDATE", token.encode()))
    if "error" in said:
        raise ClusterError(f"the cluster did not take an account: {said['error']}")
