"""What each member of a cluster may say and hear: accounts, permissions, and their tokens. Pure.

The main account owns all streams, and only administrators are its users. Each client and each pool has
an account of its own without any, which imports from it what is theirs alone. So nobody can even name
what is another's, and an answer that is asked for under another's subject stays in one's own account.
Within a pool's, a worker is fenced by permissions to its own name. It reads what is its pool's by the
subject's name in the request (`last`); lists it can have of its pool's state and of pools and clients.
Viewers share an account that imports whatever can be read; of a worker they ask what is in `ask`, and
administrators besides what is in `ctl`.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from obuilder.cluster import names
from obuilder.cluster.nkeys import Key, token

_UNLIMITED = {
    "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True,
    "conn": -1, "leaf": 0,
}  # fmt: skip
_STORAGE = {
    "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    "mem_max_stream_bytes": -1, "disk_max_stream_bytes": -1,
}  # fmt: skip
_DIRECT = "$JS.API.DIRECT.GET"
_LISTS = f"{_DIRECT}.*"
_MANY = {"response_type": "Stream", "response_threshold": 10 * 10**9}
"""Of what has many answers, within so many nanoseconds: who has none for half as long asks again."""
_READING = (
    _LISTS, f"{_DIRECT}.*.>", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.LIST",
    "$JS.API.CONSUMER.LIST.*",
)  # fmt: skip
"""Requests that change nothing."""
ASKED = ("metrics", "ping")
"""What may be asked of a worker by who may but look."""
_LIVE = "live"
_ANSWERS = "answer"
_VIEWS = "view"
VARZ = "$SYS.REQ.SERVER.PING.VARZ"
"""What all servers answer: how they are."""
POOLS = "POOLS"
"""The stream that clients have for CLUSTER: a copy of its pools."""


def inbox(public: str) -> str:
    """Where answers to a user are sent: nobody else can hear them."""
    return f"_INBOX_{public}"


def answers(public: str) -> str:
    """Where answers to an administrator are sent: workers' get there across accounts."""
    return f"{_ANSWERS}.{public}"


def views(public: str) -> str:
    """The same of a viewer."""
    return f"{_VIEWS}.{public}"


def may_answer(reply: str) -> bool:
    """Whether a worker answers there. Where others put things it is not made to say anything."""
    return reply.startswith((f"{_ANSWERS}.", f"{_VIEWS}."))


def live(subject: str) -> str:
    """Where a copy of what was stored as `subject` is said, with its number."""
    return f"{_LIVE}.{subject}"


def operator(master: bytes) -> Key:
    """The key that signs accounts."""
    return Key.derived("operator", master, "operator")


def main_account(master: bytes) -> Key:
    """The account of streams."""
    return Key.derived("account", master, "main")


def system_account(master: bytes) -> Key:
    """The account that accounts are changed by."""
    return Key.derived("account", master, "system")


def client_account(master: bytes, name: str) -> Key:
    """The account of a client."""
    return Key.derived("account", master, f"client {name}")


def pool_account(master: bytes, name: str) -> Key:
    """The account of a pool's workers."""
    return Key.derived("account", master, f"pool {name}")


def viewer_account(master: bytes) -> Key:
    """The account of viewers."""
    return Key.derived("account", master, "viewers")


# --- tokens --------------------------------------------------------------------------------------


def operator_token(master: bytes) -> str:
    """Of the operator itself."""
    key = operator(master)
    claims = {"type": "operator", "system_account": system_account(master).public}
    return token(key, key.public, "obuilder", claims)


def system_token(master: bytes) -> str:
    """Of the system account."""
    exports = [{"name": VARZ, "subject": VARZ, "type": "service", **_MANY}]
    claims = {"type": "account", "limits": _UNLIMITED, "exports": exports, **_nobody()}
    return token(operator(master), system_account(master).public, "SYS", claims)


def main_token(master: bytes, revoked: Mapping[str, int] | None = None) -> str:
    """Of the main account; `revoked`: public keys of users, and when they were."""
    services = [
        "sub.*.>", "job.*.*.*.*", "blob.*.>", "log.*.>", "run.*.>",
        "worker.*.*", "known.*.*", "fair.*.*", "hint.*.*",
        *_READING, "$JS.API.CONSUMER.MSG.NEXT.*.*", "$JS.ACK.>", f"{_ANSWERS}.>",
    ]  # fmt: skip
    streams = ["job.*.>", "live.>", "ctl.*.>", "ask.*.>"]
    # An answer's way is forgotten with the first one; of lists, whose answers are many, after a while.
    exports: list[dict[str, Any]] = [
        {"name": subject, "subject": subject, "type": "service"}
        | (_MANY if subject == _LISTS else {})
        for subject in services
    ]
    exports += [{"name": subject, "subject": subject, "type": "stream"} for subject in streams]
    claims = {
        "type": "account", "limits": {**_UNLIMITED, **_STORAGE}, "exports": exports,
        "revocations": dict(revoked or {}), **_nobody(),
    }  # fmt: skip
    return token(operator(master), main_account(master).public, "MAIN", claims)


def client_token(master: bytes, name: str, revoked: Mapping[str, int] | None = None) -> str:
    """Of a client's account."""
    services = [
        f"sub.{name}.>", f"blob.{name}.>",
        *(f"job.{name}.*.*.{part}" for part in ("spec", "state", "cancel", "lease")),
    ]  # fmt: skip
    for stream, kind in (
        (names.jobs_of(name), "job"), (names.logs_of(name), "log"), (names.blobs_of(name), "blob"),
    ):  # fmt: skip
        services += [
            f"{_DIRECT}.{stream}", f"{_DIRECT}.{stream}.{kind}.{name}.>",
            f"$JS.API.STREAM.INFO.{stream}",
        ]  # fmt: skip
    renamed = {
        f"{_DIRECT}.{POOLS}": f"{_DIRECT}.{names.CLUSTER}",
        f"{_DIRECT}.{POOLS}.pool.*": f"{_DIRECT}.{names.CLUSTER}.pool.$1",
    }
    streams = [f"live.log.{name}.>", f"live.job.{name}.>", "live.pool.*"]
    main = main_account(master).public
    imports = [*_services(main, services), *_services(main, renamed), *_streams(main, streams)]
    return _importing(master, client_account(master, name).public, name, imports, revoked)


def pool_token(master: bytes, name: str, revoked: Mapping[str, int] | None = None) -> str:
    """Of the account of a pool's workers."""
    services = [
        *_worker_services(name),
        *(f"{kind}.{name}.*" for kind in ("worker", "known")),
    ]
    main, viewers = main_account(master).public, viewer_account(master).public
    imports = [
        *_services(main, services), *_streams(main, _worker_streams(name, "*")),
        # What comes in by one account's service goes on to no other's stream: hence these two.
        *_streams(viewers, [names.question(name, "*")]), *_services(viewers, [f"{_VIEWS}.>"]),
    ]  # fmt: skip
    return _importing(master, pool_account(master, name).public, f"pool {name}", imports, revoked)


def viewers_token(master: bytes, revoked: Mapping[str, int] | None = None) -> str:
    """Of the account of viewers."""
    imports = [
        *_services(main_account(master).public, _READING),
        *_services(system_account(master).public, [VARZ]),
        *_streams(main_account(master).public, [live(">")]),
    ]
    exports = [
        {"name": "ask", "subject": "ask.*.>", "type": "stream"},
        {"name": "view", "subject": f"{_VIEWS}.>", "type": "service"},
    ]
    account = viewer_account(master).public
    return _importing(master, account, "viewers", imports, revoked, exports)


def _services(account: str, subjects: Iterable[str] | Mapping[str, str]) -> list[dict[str, Any]]:
    """Requests of an account; of a mapping, what they are called there and here."""
    here = subjects if isinstance(subjects, Mapping) else {}
    return [
        {"name": subject, "subject": subject, "account": account, "type": "service"}
        | ({"local_subject": here[subject]} if here else {})
        for subject in subjects
    ]


def _streams(account: str, subjects: Iterable[str]) -> list[dict[str, Any]]:
    """What is said in an account."""
    return [
        {"name": subject, "subject": subject, "account": account, "type": "stream"}
        for subject in subjects
    ]


def _importing(
    master: bytes,
    account: str,
    name: str,
    imports: list[dict[str, Any]],
    revoked: Mapping[str, int] | None,
    exports: Sequence[dict[str, Any]] = (),
) -> str:
    """Of an account that has nothing but what it imports."""
    claims = {
        "type": "account", "limits": _UNLIMITED, "imports": imports, "exports": list(exports),
        "revocations": dict(revoked or {}), **_nobody(),
    }  # fmt: skip
    return token(operator(master), account, name, claims)


def removed_token(master: bytes, name: str) -> str:
    """Of the account of a client that is none any more: all its users are cut off."""
    claims = {
        "type": "account", "limits": {**_UNLIMITED, "conn": 0, "subs": 0},
        "revocations": {"*": int(time.time())}, **_nobody(),
    }  # fmt: skip
    return token(operator(master), client_account(master, name).public, name, claims)


def user(account: Key, key: Key, name: str, allowed: Mapping[str, Any]) -> str:
    """Of a user of an account."""
    claims = {"type": "user", "subs": -1, "data": -1, "payload": -1, **allowed}
    return token(account, key.public, name, claims)


def _nobody() -> dict[str, Any]:
    return {"default_permissions": {"pub": {}, "sub": {}}}


# --- permissions ---------------------------------------------------------------------------------


def client_permissions() -> dict[str, Any]:
    """Of a client: its account is what fences it, but for what servers tell every account."""
    return {"pub": {"deny": ["$SYS.>"]}}


def viewer_permissions(public: str) -> dict[str, Any]:
    """Of a viewer: whatever can be read, and its own inbox."""
    return {
        "pub": {"allow": [*_READING, VARZ, *(names.question("*", "*", verb) for verb in ASKED)]},
        "sub": {"allow": [f"{views(public)}.>", live(">")]},
    }


def worker_permissions(pool: str, name: str, public: str) -> dict[str, Any]:
    """Of a worker: its own name, its own inbox, and what is its pool's."""
    publish = [
        *_worker_services(pool), names.worker(pool, name), names.known(pool, name),
        names.bell(pool), f"{_VIEWS}.>",
    ]  # fmt: skip
    hear = [f"{inbox(public)}.>", names.bell(pool), *_worker_streams(pool, name)]
    return {
        "pub": {"allow": publish},
        "sub": {"allow": hear},
    }


def _worker_services(pool: str) -> list[str]:
    """What workers of a pool may ask for and put, besides what has their name."""
    queue, state = names.queue_of(pool), names.state_of(pool)
    return [
        f"$JS.API.CONSUMER.MSG.NEXT.{queue}.*", f"$JS.ACK.{queue}.>", f"$JS.API.STREAM.INFO.{queue}",
        f"{_DIRECT}.{state}", f"{_DIRECT}.{state}.>",
        f"{_DIRECT}.{names.CLUSTER}", f"{_DIRECT}.{names.CLUSTER}.>",
        f"{_DIRECT}.*.job.*.{pool}.>", f"{_DIRECT}.*.log.*.{pool}.>", f"{_DIRECT}.*.blob.>",
        f"fair.{pool}.*", f"hint.{pool}.*", f"run.{pool}.>",
        f"job.*.{pool}.*.state", f"log.*.{pool}.>", "blob.*.>", f"{_ANSWERS}.>",
    ]  # fmt: skip


def _worker_streams(pool: str, name: str) -> list[str]:
    """What a worker may listen to."""
    return [
        names.control(pool, name), names.question(pool, name),
        *(live(f"{kind}.{pool}.>") for kind in ("fair", "hint", "worker", "known", "pause", "run")),
        live(f"sub.*.{pool}.>"), live(f"job.*.{pool}.>"),
        f"job.*.{pool}.*.cancel", f"job.*.{pool}.*.lease",
        live(f"pool.{pool}"), live("client.*"),
    ]  # fmt: skip
