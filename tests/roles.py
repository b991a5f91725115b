"""The role matrix: what each member of a cluster may do, as bare requests past all checks of ours.

`python tests/roles.py` prints the table of docs/cluster/security.md; tests/cluster/test_roles.py walks
it on a real server, and compares the page with it.

Alice is the client who tries, Bob another one; w1 of the pool P the worker who tries, w3 another one
there, w2 one of the pool Q.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

import clusters
from obuilder.cluster import names
from obuilder.cluster.messages import (
    Client,
    Issued,
    Known,
    Paused,
    Pool,
    Presence,
    Share,
    State,
    Warmth,
    encode,
)

P, Q = clusters.POOL, "pool-2"
API = "$JS.API"
GET, NEXT = f"{API}.DIRECT.GET", f"{API}.CONSUMER.MSG.NEXT."
SECRET = b"a secret"
"""What Bob's job and file say."""
C, W, V, A = "client", "worker", "viewer", "admin"
ROLES = (C, W, V, A)


class Row(NamedTuple):
    """Something to do, and who may. Of several requests each is tried by itself."""

    what: str
    may: frozenset[str]
    requests: tuple[tuple[str, bytes], ...] = ()
    harmless: tuple[tuple[str, bytes], ...] | None = None
    """What an administrator tries in the place of requests that would end the cluster."""
    hears: tuple[str, ...] = ()
    """Subjects that are listened to."""


def _asked(**more: object) -> bytes:
    return json.dumps(more).encode()


LIST = _asked(seq=1, next_by_subj=">", batch=9)
_STREAMS = ("JOBS_alice", "JOBS_bob", f"QUEUE_{P}", f"STATE_{P}", "CLUSTER", "POOLS")


def _may(*roles: str) -> frozenset[str]:
    return frozenset(roles)


def _put(*subjects: str) -> tuple[tuple[str, bytes], ...]:
    return tuple((subject, _content(subject)) for subject in subjects)


def _content(subject: str) -> bytes:
    """What may stand there, so that what was allowed does no harm."""
    kind, *_, name = subject.split(".")
    found = {
        "state": State(), "worker": Presence(pool="", name=name, session="", capacity=0, in_use=0),
        "known": Known(first=0, last=0), "pause": Paused(), "fair": Share(), "hint": Warmth(),
        "pool": Pool(name=name), "client": Client(name=name), "issued": Issued(),
    }.get(name if kind == "job" else kind)  # fmt: skip
    return b"x" if found is None else encode(found)


MATRIX = (
    Row("put a job of one's own in a queue, cancel it", _may(C, A), _put(
        names.job("alice", P, "a1", "spec"), names.job("alice", P, "a1", "lease"),
        names.job("alice", P, "a1", "cancel"), names.ticket("alice", P, urgent=True),
    )),
    Row("the same in another client's name", _may(A), _put(
        names.job("bob", P, "j9", "spec"), names.job("bob", P, "j9", "lease"),
        names.job("bob", P, "j1", "cancel"), names.ticket("bob", P, urgent=False),
        names.ticket("bob", Q, urgent=True),
    )),
    Row("put files of one's own jobs", _may(C, W, A), _put(names.blob("alice", "d2", 0))),
    Row("put files of another client's", _may(W, A), _put(names.blob("bob", "d2", 0))),
    Row("write states and logs of the pool's jobs", _may(W, A), _put(
        names.job("bob", P, "j1", "state"), names.log("bob", P, "j1", 1, 0),
        names.log("alice", P, "a1", 1, 0),
    )),
    Row("the same of another pool's", _may(A), _put(
        names.job("bob", Q, "j1", "state"), names.log("bob", Q, "j1", 1, 0),
    )),
    Row("list one's own jobs, logs and files", _may(C, V, A), (
        (f"{GET}.JOBS_alice", LIST), (f"{GET}.LOGS_alice", LIST), (f"{GET}.BLOBS_alice", LIST),
    )),
    Row("list another client's", _may(V, A), (
        (f"{GET}.JOBS_bob", LIST), (f"{GET}.LOGS_bob", LIST), (f"{GET}.BLOBS_bob", LIST),
    )),
    Row("read a job of the pool by its name, a file by its content's", _may(W, V, A), (
        (f"{GET}.JOBS_bob.{names.job('bob', P, 'j1', 'spec')}", b""),
        (f"{GET}.BLOBS_bob.{names.blob('bob', 'd1', 0)}", b""),
    )),
    Row("read a job of another pool", _may(V, A), (
        (f"{GET}.JOBS_bob.{names.job('bob', Q, 'j1', 'spec')}", b""),
    )),
    Row("read another client's job as if it were one's own", _may(), (
        (f"{GET}.JOBS_alice.{names.job('bob', P, 'j1', 'spec')}", b""),
    )),
    Row("read which pools there are", _may(*ROLES), ((f"{GET}.CLUSTER.{names.pool(P)}", b""),)),
    Row("read who is a client, and by which keys", _may(W, V, A), (
        (f"{GET}.CLUSTER.{names.client('bob')}", b""),
    )),
    Row("see how much waits in the pool, and who works there", _may(W, V, A), (
        (f"{API}.STREAM.INFO.QUEUE_{P}", _asked(subjects_filter=">")), (f"{GET}.STATE_{P}", LIST),
    )),
    Row("the same of another pool; list tickets", _may(V, A), (
        (f"{API}.STREAM.INFO.QUEUE_{Q}", _asked(subjects_filter=">")), (f"{GET}.STATE_{Q}", LIST),
        (f"{GET}.QUEUE_{P}", LIST), (f"{GET}.QUEUE_{Q}", LIST),
    )),
    Row("take a ticket of the pool, let it go", _may(W, A), (
        (f"{NEXT}QUEUE_{P}.c_bob_n", b""),
        (f"$JS.ACK.QUEUE_{P}.c_bob_n.1.1.1.1.0", b"+ACK"),
    )),
    Row("the same of another pool", _may(A), (
        (f"{NEXT}QUEUE_{Q}.c_bob_n", b""),
        (f"$JS.ACK.QUEUE_{Q}.c_bob_n.1.1.1.1.0", b"+ACK"),
    )),
    Row("send a ticket to another worker of the pool", _may(W, A), _put(
        names.forwarded(P, "w3", urgent=False),
    )),
    Row("the same to one of another pool", _may(A), _put(names.forwarded(Q, "w2", urgent=False))),
    Row("say that one is there, as the worker that one is", _may(W, A), _put(
        names.worker(P, "w1"), names.known(P, "w1"),
    )),
    Row("the same as another worker", _may(A), _put(
        names.worker(P, "w3"), names.known(P, "w3"), names.worker(Q, "w1"), names.worker(Q, "w2"),
    )),
    Row("change what clients had of the pool, and who has a cache", _may(W, A), _put(
        names.fair(P, "bob"), names.hint(P, "h"),
    )),
    Row("the same of another pool", _may(A), _put(names.fair(Q, "bob"), names.hint(Q, "h"))),
    Row("pause a worker, oneself included", _may(A), _put(
        names.pause(P, "w1"), names.pause(P, "w3"), names.pause(Q, "w2"),
    )),
    Row("ask a worker for its metrics", _may(V, A), _put(
        names.question(P, "w1", "metrics"), names.question(P, "w1", "ping"),
    )),
    Row("tell a worker to update, or to end", _may(A), _put(
        names.control(P, "w1", "shutdown"), names.control(P, "w1", "update"),
        names.question(P, "w1", "shutdown"),
    )),
    Row("change a pool, a client, or whose a key is", _may(A), _put(
        names.pool("x"), names.client("x"), names.issued("worker", P, "x"),
    )),
    Row("list streams and consumers", _may(V, A), (
        (f"{API}.STREAM.LIST", b""), (f"{API}.CONSUMER.LIST.QUEUE_{P}", b""),
    )),
    Row("make a stream or a consumer", _may(A), (
        (f"{API}.STREAM.CREATE.X", _asked(name="X", subjects=["x"])),
        (f"{API}.CONSUMER.CREATE.X.c", _asked(stream_name="X", config={"durable_name": "c"})),
        (f"{API}.CONSUMER.CREATE.JOBS_alice.c.>", _asked(
            stream_name="JOBS_alice", config={"durable_name": "c", "filter_subject": ">"})),
    )),
    Row("remove a message, a consumer, a stream, or all that is in one", _may(A), (
        (f"{API}.STREAM.MSG.DELETE.JOBS_alice", _asked(seq=1)),
        (f"{API}.CONSUMER.DELETE.QUEUE_{P}.c_bob_n", b""),
        *((f"{API}.STREAM.{verb}.{stream}", b"") for verb in ("PURGE", "DELETE")
          for stream in _STREAMS),
    ), harmless=(
        (f"{API}.CONSUMER.DELETE.X.c", b""), (f"{API}.STREAM.PURGE.X", b""),
        (f"{API}.STREAM.DELETE.X", b""),
    )),
    Row("ask the servers how they are", _may(V, A), (("$SYS.REQ.SERVER.PING.VARZ", b""),)),
    Row("ask who is connected", _may(A), (("$SYS.REQ.SERVER.PING.CONNZ", b""),)),
    Row("change accounts", _may(A), (("$SYS.REQ.CLAIMS.UPDATE", b"x"),), harmless=()),
    Row("hear one's own jobs and logs", _may(C, V, A), hears=("live.log.alice.>", "live.job.alice.>")),
    Row("hear another client's", _may(V, A), hears=("live.log.bob.>", f"live.job.bob.{Q}.>")),
    Row("hear the pool's bell", _may(W), hears=(names.bell(P),)),
    Row("hear what another client is answered", _may(), hears=("bob's answers",)),
    Row("hear what another worker is told", _may(A), hears=(names.control(P, "w3", "*"),)),
    Row("have the server, or a worker, answer where others put things", _may(A)),
)  # fmt: skip


def table() -> Iterator[str]:
    """The matrix as Markdown."""
    yield "| what | client | worker | viewer | administrator | stranger |"
    yield "|---|---|---|---|---|---|"
    for row in MATRIX:
        marks = ("yes" if role in row.may else "no" for role in ROLES)
        yield f"| {row.what} | {' | '.join(marks)} | no |"


if __name__ == "__main__":
    print("\n".join(table()))
