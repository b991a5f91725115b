"""What each role can't do, tried on the real server, past all checks of ours: by bare requests."""

import json
import time

import anyio
import msgspec
import pytest

import clusters
from obuilder.cluster import accounts, members, names, sealing
from obuilder.cluster.credentials import Authority, load_credentials, save_credentials
from obuilder.cluster.engine import Conflict, Engine
from obuilder.cluster.messages import Build, Client, Job, Pool, decode, encode
from obuilder.cluster.nkeys import Key
from obuilder.errors import ClusterError, ConfigError, Refused, UsageError

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("nats")]
P, Q = clusters.POOL, "pool-2"
GET = "$JS.API.DIRECT.GET"
NEXT = "$JS.API.CONSUMER.MSG.NEXT"


@pytest.fixture(scope="module")
def cluster():
    yield from clusters.module_cluster()


@pytest.fixture(scope="module")
def roles(cluster):
    """Alice, Bob, and workers of both pools; a job of Bob's, and one of his in each queue."""

    async def make():
        await cluster.pool(Q)
        made = {
            "alice": await cluster.client("alice"),
            "bob": await cluster.client("bob"),
            "w1": await cluster.worker("w1", P),
            "w2": await cluster.worker("w2", Q),
        }
        async with Engine.connect(made["bob"]) as bob:
            for pool in (P, Q):
                await bob.put(names.job("bob", pool, "j1", "spec"), b"secret", expect=0)
                await bob.put(names.ticket("bob", pool, urgent=False), b"t", once=f"{pool}j1")
            await bob.put(names.blob("bob", "d1", 0), b"secret")
        return made

    return anyio.run(make)


async def refused(engine, subject, data=b"", *, answer=b"secret"):
    """Whether a bare request is refused, gets no answer, or one that says nothing of what is there."""
    try:
        message = await engine._once(subject, data, None, 0.4)
    except Refused:
        return True
    if message is None:
        return True
    said = message.data
    if b'"error"' in said:
        return True
    return (message.headers or {}).get("Status") == "404" and answer not in said


def body(**more):
    return json.dumps(more).encode()


def client_attacks():
    """What Alice must not do."""
    other = names.job("bob", P, "j1", "spec")
    yield "submit as another", names.ticket("bob", P, urgent=False), b"t"
    yield "a job of another's", names.job("bob", P, "j9", "spec"), b"x"
    yield "cancel another's", names.job("bob", P, "j1", "cancel"), b"x"
    yield "another's log", names.log("bob", P, "j1"), b"x"
    yield "another's blob", names.blob("bob", "d1", 0), b"x"
    yield "a log of one's own", names.log("alice", P, "j1"), b"x"
    yield "read another's job", f"{GET}.JOBS_bob.{other}", b""
    yield "list another's jobs", f"{GET}.JOBS_bob", body(seq=1, next_by_subj=">", batch=9)
    yield "read another's blob", f"{GET}.BLOBS_bob.{names.blob('bob', 'd1', 0)}", b""
    yield "another's by one's own", f"{GET}.JOBS_alice.{other}", b""
    yield "list clients", f"{GET}.CLUSTER.client.bob", b""
    yield "list the queue", f"{GET}.QUEUE_{P}", body(seq=1, next_by_subj=">", batch=9)
    yield "depths of the queue", f"$JS.API.STREAM.INFO.QUEUE_{P}", body(subjects_filter=">")
    yield "take a ticket", f"{NEXT}.QUEUE_{P}.c_alice_n", body(batch=1, group="all", no_wait=True)
    yield "acknowledge", f"$JS.ACK.QUEUE_{P}.c_bob_n.1.1.1.1.0", b"+ACK"
    for stream in ("JOBS_alice", "JOBS_bob", f"QUEUE_{P}", "CLUSTER", "POOLS"):
        yield f"purge {stream}", f"$JS.API.STREAM.PURGE.{stream}", b""
        yield f"delete {stream}", f"$JS.API.STREAM.DELETE.{stream}", b""
    yield "make a stream", "$JS.API.STREAM.CREATE.X", body(name="X", subjects=["x"])
    yield "list streams", "$JS.API.STREAM.NAMES", b""
    yield "a consumer", "$JS.API.CONSUMER.CREATE.JOBS_alice.x.>", body(stream_name="JOBS_alice")
    yield "delete a message", "$JS.API.STREAM.MSG.DELETE.JOBS_alice", body(seq=1)
    yield "change a pool", names.pool(P), b"x"
    yield "change a client", names.client("alice"), b"x"
    yield "change a rate", names.fair(P, "alice"), b"x"
    yield "pause a worker", names.pause(P, "w1"), b"x"
    yield "be a worker", names.worker(P, "w1"), b"x"
    yield "command a worker", names.control(P, "w1", "shutdown"), b""
    yield "accounts", "$SYS.REQ.CLAIMS.UPDATE", b"x"
    yield "servers", "$SYS.REQ.SERVER.PING", b""


def worker_attacks():
    """What a worker of the first pool must not do."""
    yield (
        "take of another pool",
        f"{NEXT}.QUEUE_{Q}.c_bob_n",
        body(batch=1, group="all", no_wait=True),
    )
    yield "acknowledge there", f"$JS.ACK.QUEUE_{Q}.c_bob_n.1.1.1.1.0", b"+ACK"
    yield "submit", names.ticket("bob", P, urgent=False), b"t"
    yield "change a spec", names.job("bob", P, "j1", "spec"), b"x"
    yield "cancel", names.job("bob", P, "j1", "cancel"), b"x"
    yield "a state elsewhere", names.job("bob", Q, "j1", "state"), b"x"
    yield "a log elsewhere", names.log("bob", Q, "j1"), b"x"
    yield "forward elsewhere", names.forwarded(Q, "w2", urgent=False), b"x"
    yield "be another", names.worker(P, "w2"), b"x"
    yield "be elsewhere", names.worker(Q, "w1"), b"x"
    yield "pause another", names.pause(P, "w2"), b"x"
    yield "command another", names.control(P, "w2", "shutdown"), b""
    yield "a rate elsewhere", names.fair(Q, "bob"), b"x"
    yield "read a job elsewhere", f"{GET}.JOBS_bob.{names.job('bob', Q, 'j1', 'spec')}", b""
    yield "list jobs", f"{GET}.JOBS_bob", body(seq=1, next_by_subj=">", batch=9)
    yield "list logs", f"{GET}.LOGS_bob", body(seq=1, next_by_subj=">", batch=9)
    yield "state elsewhere", f"{GET}.STATE_{Q}", body(seq=1, next_by_subj=">", batch=9)
    yield "depths elsewhere", f"$JS.API.STREAM.INFO.QUEUE_{Q}", body(subjects_filter=">")
    for stream in ("JOBS_bob", f"QUEUE_{P}", f"STATE_{P}", "CLUSTER"):
        yield f"purge {stream}", f"$JS.API.STREAM.PURGE.{stream}", b""
        yield f"delete {stream}", f"$JS.API.STREAM.DELETE.{stream}", b""
    yield "make a stream", "$JS.API.STREAM.CREATE.X", body(name="X", subjects=["x"])
    yield "a consumer", f"$JS.API.CONSUMER.CREATE.QUEUE_{P}.x.>", body(stream_name=f"QUEUE_{P}")
    yield "drop a consumer", f"$JS.API.CONSUMER.DELETE.QUEUE_{P}.c_bob_n", b""
    yield "change a pool", names.pool(P), b"x"
    yield "change a client", names.client("bob"), b"x"
    yield "accounts", "$SYS.REQ.CLAIMS.UPDATE", b"x"


@pytest.mark.parametrize(("who", "attacks"), [("alice", client_attacks), ("w1", worker_attacks)])
async def test_forbidden_requests_do_nothing(cluster, roles, who, attacks):
    async with cluster.joined(cluster.credentials, roles[who]) as (admin, engine):
        before = await everything(admin)
        allowed = []

        async def attempt(name, subject, data):
            if not await refused(engine, subject, data):
                allowed.append(name)

        async with anyio.create_task_group() as tasks:
            for attack in attacks():
                tasks.start_soon(attempt, *attack)
        assert not allowed
        assert await everything(admin) == before


async def everything(admin):
    """The number of messages of each subject of each stream, and the consumers."""
    found = {}
    for name, info in (await admin.streams()).items():
        found[name] = (
            await admin.pending(name, ">"), sorted(await admin.consumers(name)),
            info["state"]["last_seq"],
        )  # fmt: skip
    return found


@pytest.mark.parametrize("who", ["alice", "w1"])
async def test_answers_can_not_be_sent_where_others_put_things(cluster, roles, who):
    """The server itself says an answer where the request wants it: that must be one's own."""
    own = {
        "alice": (f"{GET}.JOBS_alice", body(seq=1, next_by_subj=">", batch=9)),
        "w1": (f"{GET}.STATE_{P}", body(seq=1, next_by_subj=">", batch=9)),
    }[who]
    async with cluster.joined(cluster.credentials, roles[who]) as (admin, engine):
        if who == "alice":
            await engine.put(names.job("alice", P, "a1", "spec"), b"x", expect=0)
        else:
            await engine.put(names.known(P, "w1"), b"x")
        before = await everything(admin)
        for reply in (
            names.ticket("bob", P, urgent=False), names.job("bob", Q, "j2", "spec"),
            names.forwarded(Q, "w2", urgent=False), names.pool("p3"), names.worker(Q, "w2"),
        ):  # fmt: skip
            await engine._send(*own, reply)
        await anyio.sleep(0.3)
        assert await everything(admin) == before


async def test_nobody_overhears(cluster, roles):
    heard = []
    async with cluster.joined(roles["alice"], roles["w1"], roles["bob"], roles["w2"]) as engines:
        alice, w1, bob, w2 = engines
        async with anyio.create_task_group() as tasks:

            async def listen(engine, subject):
                try:
                    async with engine.subscribe(subject) as messages:
                        async for message in messages:
                            heard.append((engine._name, subject, message.subject))  # noqa: PERF401
                except ClusterError:
                    pass

            for subject in (">", "log.bob.>", "live.job.bob.>", "live.>", f"{bob._inbox}.>"):
                tasks.start_soon(listen, alice, subject)
                tasks.start_soon(listen, w1, subject)
            tasks.start_soon(listen, w1, f"ctl.{P}.w2.>")
            await anyio.sleep(0.3)
            await w2.put(names.job("bob", Q, "j1", "state"), b"secret")
            await w2.put(names.log("bob", Q, "j1"), b"secret")
            await bob.last(names.jobs_of("bob"), names.job("bob", Q, "j1", "spec"))
            await anyio.sleep(0.3)
            tasks.cancel_scope.cancel()
    assert [each for each in heard if "bob" in each[2] or bob._inbox in each[2]] == []


async def test_strangers_are_sent_away(cluster, roles):
    stranger = Authority(master=bytes(32), urls=cluster.authority.urls)
    nobody = msgspec.structs.replace(roles["alice"], jwt="", seed=Key.new("user").seed)
    stolen = msgspec.structs.replace(roles["alice"], seed=Key.new("user").seed)
    own_word = Key.new("user")
    forged = accounts.user(Key.new("account"), own_word, "alice", {})

    async def knock(credentials):
        with pytest.raises(Refused, match="does not know these credentials"):
            async with Engine.connect(credentials):
                pass

    async with anyio.create_task_group() as tasks:
        for credentials in (
            stranger.client("alice"), stranger.admin(), nobody, stolen,
            msgspec.structs.replace(roles["alice"], jwt=forged, seed=own_word.seed),
        ):  # fmt: skip
            tasks.start_soon(knock, credentials)


async def test_what_is_allowed_works(cluster, roles):
    async with cluster.joined(roles["bob"], roles["w2"], roles["w1"]) as (bob, w2, w1):
        pools = {found.subject for found in await bob.each(names.CLUSTER, names.pool())}
        assert {names.pool(P), names.pool(Q)} <= pools
        assert await bob.last(names.CLUSTER, names.pool(Q))
        assert await w2.last(names.jobs_of("bob"), names.job("bob", Q, "j1", "spec"))
        assert [m.data for m in await w1.each("BLOBS_bob", names.blob("bob", "d1", 0))] == [
            b"secret"
        ]
        found = await w2.pull(names.queue_of(Q), names.waiting("bob", urgent=False), wait=1)
        await found.beat()
        await found.ack()
        assert await w2.pending(names.queue_of(Q), ">") == {}
        seq = await w2.put(names.job("bob", Q, "j5", "state"), b"1", expect=0)
        await w2.put(names.job("bob", Q, "j5", "state"), b"2", expect=seq)
        with pytest.raises(Conflict):
            await w2.put(names.job("bob", Q, "j5", "state"), b"3", expect=seq)


async def test_a_removed_client_is_cut_in_under_a_second(cluster):
    made = await cluster.client("mallory")
    async with cluster.joined(cluster.credentials, made) as (admin, mallory):
        await mallory.put(names.ticket("mallory", P, urgent=False), b"t", once="m1")
        began = time.monotonic()
        with anyio.fail_after(1):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(members.remove_client, admin, cluster.credentials, "mallory")
                while mallory.connected:
                    await anyio.sleep(0.005)
        print(f"cut off after {time.monotonic() - began:.3f} s")
        with pytest.raises(Refused):
            async with Engine.connect(made):
                pass
        assert await admin.pending(names.queue_of(P), "sub.mallory.>") == {}
        await anyio.sleep(1.1)  # tokens tell the second they were made in
        again = await members.add_client(admin, cluster.credentials, "mallory")
        async with Engine.connect(again) as back:
            assert await back.put(names.ticket("mallory", P, urgent=False), b"t", once="m2")
        with pytest.raises(Refused):
            async with Engine.connect(made):
                pass


async def test_a_revoked_worker_is_cut(cluster):
    made = await cluster.worker("gone")
    async with Engine.connect(made) as worker:
        with anyio.fail_after(1):
            await members.revoke_worker(cluster.credentials, P, made.key.public)
            while worker.connected:
                await anyio.sleep(0.005)
    with pytest.raises(Refused):
        async with Engine.connect(made):
            pass


async def test_jobs_and_records_are_what_was_signed(cluster, roles):
    async with cluster.admin() as admin:
        pool = decode((await admin.last("CLUSTER", names.pool(P))).data, Pool)
        bob = decode((await admin.last("CLUSTER", names.client("bob"))).data, Client)
    key = roles["w1"].cluster
    assert sealing.check_pool(pool, key)
    assert not sealing.check_pool(msgspec.structs.replace(pool, key=bytes(32)), key)
    job = Job(id="j", client="bob", pool=P, work=Build(text="()"))
    signed = sealing.sign(encode(job), roles["bob"])
    assert sealing.opened(signed, bob, key) == job
    for wrong in (
        msgspec.structs.replace(signed, job=encode(msgspec.structs.replace(job, urgent=True))),
        sealing.sign(encode(job), roles["alice"]),
        sealing.sign(encode(msgspec.structs.replace(job, client="alice")), roles["bob"]),
    ):
        with pytest.raises(Refused):
            sealing.opened(wrong, bob, key)
    forged = msgspec.structs.replace(bob, keys=(roles["alice"].key.public,))
    with pytest.raises(Refused):
        sealing.opened(sealing.sign(encode(job), roles["alice"]), forged, key)
    sealed = sealing.seal(pool.key, b"word")
    assert b"word" not in sealed
    assert sealing.unseal(roles["w1"].unseal, sealed) == b"word"
    for wrong in (roles["w2"].unseal, bytes(32)):
        with pytest.raises(Refused):
            sealing.unseal(wrong, sealed)


async def test_credentials_files(cluster, roles, tmp_path):
    path = str(tmp_path / "c.json")
    save_credentials(roles["bob"], path)
    assert (tmp_path / "c.json").stat().st_mode & 0o777 == 0o600
    assert load_credentials(path) == roles["bob"]
    assert roles["bob"].seed not in repr(roles["bob"])
    assert not roles["bob"].master
    assert not roles["w1"].master
    assert not roles["bob"].unseal
    for content in ("", "{}", "[]", '{"kind": "client"}', "\xff"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ConfigError, match="holds no credentials"):
            load_credentials(str(tmp_path / "bad.json"))
    with pytest.raises(ConfigError, match="there are no credentials"):
        load_credentials(str(tmp_path / "none"))
    with pytest.raises(UsageError):
        await members.add_client(None, roles["bob"], "x")
