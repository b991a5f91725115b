"""What each role can and can't do, tried on the real server, past all checks of ours."""

import time
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
import msgspec
import pytest

import program
from obuilder.cluster import accounts, members, names, sealing
from obuilder.cluster.accounts import VARZ
from obuilder.cluster.admin import Admin
from obuilder.cluster.credentials import Authority, load_credentials, save_credentials, system_of
from obuilder.cluster.doctor import examine
from obuilder.cluster.engine import Conflict, Engine, Missing
from obuilder.cluster.messages import (
    Answer,
    Build,
    Client,
    Job,
    Known,
    Pool,
    State,
    Ticket,
    decode,
    encode,
)
from obuilder.cluster.nkeys import Key
from obuilder.errors import ClusterError, ConfigError, Refused, UsageError
from roles import GET, LIST, MATRIX, NEXT, ROLES, SECRET, P, Q, table

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("nats")]
WORDS = 0.4
"""Seconds that a refused request may take to be answered: nothing comes."""


@pytest.fixture(scope="module")
def roles(cluster):
    """Everybody's credentials; jobs of Bob's, and one of his in each queue."""

    async def make():
        await cluster.pool(Q)
        made = {
            "client": await cluster.client("alice"),
            "bob": await cluster.client("bob"),
            "worker": await cluster.worker("w1", P),
            "w2": await cluster.worker("w2", Q),
            "w3": await cluster.worker("w3", P),
            "admin": cluster.credentials,
        }
        async with cluster.admin() as admin, Engine.connect(made["bob"]) as bob:
            made["viewer"] = await members.add_viewer(admin, cluster.credentials, "eve")
            for pool in (P, Q):
                await bob.put(names.job("bob", pool, "j1", "spec"), SECRET, expect=0)
                await bob.put(names.ticket("bob", pool, urgent=False), b"t", once=f"{pool}j1")
                await admin.put(names.known(pool, "w0"), encode(Known(first=0, last=0)))
                await admin.put(names.log("bob", pool, "j1", 1, 0), SECRET)
            await bob.put(names.blob("bob", "d1", 0), SECRET)
            await admin.put(names.job("alice", P, "a0", "spec"), b"t")
            await admin.put(names.log("alice", P, "a0", 1, 0), b"t")
            await admin.put(names.blob("alice", "d0", 0), b"t")
        return made

    return anyio.run(make)


async def allowed(engine, subject, data):
    """Whether a bare request is carried out: it has an answer, no error, that says something."""
    try:
        if subject.startswith(NEXT):  # what is delivered comes by another subject than an answer
            await engine.pull(*subject.removeprefix(NEXT).split("."), wait=0)
            return True
        message = await engine._once(subject, data, None, WORDS)
    except (Refused, Missing):
        return False
    if message is None or b'"error"' in message.data:
        return False
    return (message.headers or {}).get("Status") not in ("404", "408")


async def everything(admin):
    """The streams there are; of those that are attacked the messages of each subject, and consumers."""
    found = {}
    for name, info in (await admin.streams()).items():
        found[name] = None
        if name.partition("_")[2] in ("", "alice", "bob", P, Q):  # others are other tests'
            found[name] = (
                await admin.pending(name, ">"), sorted(await admin.consumers(name)),
                info["state"]["last_seq"],
            )  # fmt: skip
    return found


@asynccontextmanager
async def answering(engine):
    """A worker, w1, that answers whatever it hears."""

    async def answer(subject, data):
        return encode(Answer(text=subject))

    async with (
        engine.serve(names.control(P, "w1"), answer),
        engine.serve(names.question(P, "w1"), answer),
    ):
        yield


def requests_of(role, *, may):
    """What a role is to try, of what it may do or may not."""
    for row in MATRIX:
        if (role in row.may) == may:
            safe = role == "admin" and row.harmless is not None
            for request in row.harmless if safe else row.requests:
                yield row.what, *request


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_can_do_what_the_matrix_says_and_nothing_else(cluster, roles, role):
    members_ = [roles[name] for name in (role, "worker", "admin")]
    async with cluster.joined(*members_, system_of(roles["admin"])) as (own, w1, admin, system):

        async def attempt(what, subject, data):
            by = system if role == "admin" and subject.startswith("$SYS") else own
            if await allowed(by, subject, data) != may:
                wrong.append((what, subject))

        wrong, may = [], False
        before = await everything(admin)
        async with answering(w1), anyio.create_task_group() as tasks:
            for attack in requests_of(role, may=False):
                tasks.start_soon(attempt, *attack)
        assert not wrong
        assert await everything(admin) == before
        may = True
        async with answering(w1):
            for request in requests_of(role, may=True):
                await attempt(*request)
        for subject in (names.pool("x"), names.client("x")):
            await admin.remove(names.CLUSTER, subject)
        assert not wrong


async def test_everybody_hears_what_the_matrix_says_and_nothing_else(cluster, roles):
    heard, rest = set(), []
    async with cluster.joined(*(roles[name] for name in (*ROLES, "bob"))) as engines:
        bob, admin = engines[4], engines[3]
        real = lambda subject: f"{bob._inbox}.>" if "bob's" in subject else subject  # noqa: E731
        wanted = {
            (role, subject)
            for row in MATRIX for role in row.may for subject in row.hears
        }  # fmt: skip
        async with anyio.create_task_group() as tasks:

            async def listen(engine, role, subject):
                with suppress(ClusterError):
                    async with engine.subscribe(real(subject)) as messages:
                        async for message in messages:
                            if subject == ">":
                                rest.append((role, message.subject))
                            else:
                                heard.add((role, subject))

            for role, engine in zip(ROLES, engines, strict=False):
                for subject in {subject for row in MATRIX for subject in row.hears}:
                    tasks.start_soon(listen, engine, role, subject)
                if role != "admin":
                    tasks.start_soon(listen, engine, role, ">")
            await anyio.sleep(0.3)
            for client, pool in (("alice", P), ("bob", Q)):
                await admin.put(names.job(client, pool, "h1", "state"), SECRET)
                await admin.put(names.log(client, pool, "h1", 1, 0), SECRET)
            await admin.publish(names.control(P, "w3", "ping"), b"")
            await engines[1].publish(names.bell(P), b"")
            await bob.last(names.jobs_of("bob"), names.job("bob", Q, "j1", "spec"))
            with anyio.move_on_after(10):
                while not wanted <= heard:
                    await anyio.sleep(0.02)
            await anyio.sleep(0.2)
            tasks.cancel_scope.cancel()
    assert heard == wanted
    assert [each for each in rest if "bob" in each[1] or bob._inbox in each[1]] == []


@pytest.mark.parametrize("role", ["client", "worker", "viewer"])
async def test_answers_can_not_be_sent_where_others_put_things(cluster, roles, role):
    """The server itself says an answer where the request wants it: that must be one's own."""
    reading = {
        "client": (f"{GET}.JOBS_alice", LIST), "worker": (f"{GET}.STATE_{P}", LIST),
        "viewer": (f"{GET}.JOBS_bob", LIST),
    }[role]  # fmt: skip
    asking = [reading, (names.question(P, "w1", "metrics"), b""), (VARZ, b"")]
    members_ = (roles[name] for name in (role, "worker", "admin"))
    async with cluster.joined(*members_) as (own, w1, admin), answering(w1):
        assert await allowed(own, *reading)
        before = await everything(admin)
        for reply in (
            names.ticket("bob", P, urgent=False), names.job("bob", P, "j2", "state"),
            names.job("bob", Q, "j2", "spec"), names.forwarded(Q, "w2", urgent=False),
            names.pool("p3"), names.worker(Q, "w2"), names.pause(P, "w1"), "$SYS.REQ.CLAIMS.UPDATE",
            names.control(P, "w1", "shutdown"),
        ):  # fmt: skip
            for subject, data in asking:
                await own._send(subject, data, reply)
        assert await allowed(own, *reading)  # all that came before was answered
        await anyio.sleep(0.2)
        assert await everything(admin) == before


def test_the_page_shows_the_matrix():
    page = (program.REPO / "docs/cluster/security.md").read_text()
    assert "\n".join(table()) in page, "python tests/roles.py prints the table anew"


async def test_strangers_are_sent_away(cluster, roles):
    stranger = Authority(master=bytes(32), urls=cluster.authority.urls)
    nobody = msgspec.structs.replace(roles["client"], jwt="", seed=Key.new("user").seed)
    stolen = msgspec.structs.replace(roles["client"], seed=Key.new("user").seed)
    own_word = Key.new("user")
    forged = accounts.user(Key.new("account"), own_word, "alice", {})
    async with anyio.create_task_group() as tasks:
        for credentials in (
            stranger.client("alice"), stranger.viewer("eve"), stranger.worker(P, "w1"),
            stranger.admin(), nobody, stolen,
            msgspec.structs.replace(roles["client"], jwt=forged, seed=own_word.seed),
        ):  # fmt: skip
            tasks.start_soon(no_way_back, credentials)


async def test_a_job_goes_through(cluster, roles):
    """What is allowed, together."""
    await cluster.pool("open")
    made = await cluster.worker("w1", "open")
    async with cluster.joined(roles["bob"], made) as (bob, worker):
        assert await bob.last(names.CLUSTER, names.pool("open"))
        await bob.put(names.ticket("bob", "open", urgent=False), b"t", once="j5")
        found = await worker.pull(
            names.queue_of("open"), names.waiting("bob", urgent=False), wait=1
        )
        await found.beat()
        await found.ack()
        assert await worker.pending(names.queue_of("open"), ">") == {}
        state = names.job("bob", "open", "j5", "state")
        seq = await worker.put(state, b"1", expect=0)
        await worker.put(state, encode(State()), expect=seq)
        with pytest.raises(Conflict):
            await worker.put(state, b"3", expect=seq)
        blobs = await worker.each("BLOBS_bob", names.blob("bob", "d1", 0))
        assert [blob.data for blob in blobs] == [SECRET]
        with pytest.raises(Refused, match="does not let"):  # at once, and not after some patience
            await worker.streams()


async def cut_off(admin, victims, remove):
    """Seconds until none of them is connected, in the time that connecting took just before, as a part
    of a second where that took longer: this machine may be slow.
    """
    began = time.monotonic()
    async with Engine.connect(system_of(admin)):
        slowness = max(1.0, 20 * (time.monotonic() - began))
    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(remove)
        while any(victim.connected for victim in victims):
            await anyio.sleep(0.005)
        took = time.monotonic() - began
    print(f"cut off after {took:.3f} s")
    return took / slowness


async def no_way_back(*credentials):
    """That none of them gets in."""
    for each in credentials:
        with pytest.raises(Refused, match="does not know these credentials"):
            async with Engine.connect(each):
                pass


async def test_a_removed_client_is_cut_in_under_a_second(cluster):
    made = await cluster.client("mallory")
    async with cluster.joined(cluster.credentials, made) as (admin, mallory):
        await mallory.put(names.ticket("mallory", P, urgent=False), b"t", once="m1")
        remove = partial(members.remove_client, admin, cluster.credentials, "mallory")
        assert await cut_off(cluster.credentials, [mallory], remove) < 1
        await no_way_back(made)
        assert await admin.pending(names.queue_of(P), "sub.mallory.>") == {}
        await anyio.sleep(1.1)  # tokens tell the second they were made in
        again = await members.add_client(admin, cluster.credentials, "mallory")
        async with Engine.connect(again) as back:
            assert await back.put(names.ticket("mallory", P, urgent=False), b"t", once="m2")
        await no_way_back(made)


@pytest.mark.parametrize("kind", ["worker", "viewer"])
async def test_a_removed_worker_or_viewer_is_cut_in_under_a_second(cluster, kind):
    """By its name, whichever of the credentials that were made for it it has."""
    pool = f"removing-{kind}"
    await cluster.pool(pool)
    await cluster.client("carol")
    async with Admin.open(cluster.credentials) as admin:
        make, remove = {
            "worker": (partial(admin.add_worker, pool, "gone"), partial(admin.remove_worker, pool, "gone")),
            "viewer": (partial(admin.add_viewer, "gone"), partial(admin.remove_viewer, "gone")),
        }[kind]  # fmt: skip
        made = [await make(), await make()]
        ticket = Ticket(id="j", client="carol", forwarded="gone")
        await admin.engine.put(names.forwarded(pool, "gone", urgent=False), encode(ticket))
        async with cluster.joined(*made, await admin.add_worker(pool, "other")) as joined:
            *victims, other = joined
            assert await cut_off(cluster.credentials, victims, remove) < 1
            assert other.connected
            assert await other.last(names.CLUSTER, names.pool(pool)) is not None
        await no_way_back(*made)
        if kind == "worker":
            # What waited for it alone is anybody's.
            assert await admin.engine.pending(names.queue_of(pool), ">") == {
                f"sub.carol.{pool}.n": 1
            }
            assert "w_gone_n" not in await admin.engine.consumers(names.queue_of(pool))
        else:
            assert "gone" not in await admin.viewers()
        with pytest.raises(UsageError):
            await remove()
        async with Engine.connect(await make()):
            pass


async def test_a_viewer_sees_all_that_an_administrator_does_and_changes_nothing(cluster, roles):
    async with Admin.open(roles["viewer"]) as viewer, Admin.open(roles["admin"]) as admin:
        assert await viewer.clients() == await admin.clients()
        assert await viewer.viewers() == await admin.viewers()
        assert (await viewer.view(Q)).pool == await admin.pool(Q)
        look = partial(examine, patience=0, young=1e6)
        assert await look(viewer) == await look(admin)
        for change in (
            viewer.pause(P, "w1"), viewer.unpause(P, "w1"), viewer.update(P, "w1"),
            viewer.update_all(P, print), viewer.forget(P, "w1"), viewer.add_worker(P, "w9"),
            viewer.remove_worker(P, "w1"), viewer.add_pool("x"), viewer.remove_pool(P),
            viewer.add_client("x"), viewer.remove_client("bob"), viewer.add_viewer("x"),
            viewer.remove_viewer("eve"), viewer.set_rate(P, "bob", 2), examine(viewer, fix=True),
        ):  # fmt: skip
            with pytest.raises(UsageError, match="it takes an administrator's"):
                await change


async def test_jobs_and_records_are_what_was_signed(cluster, roles):
    async with cluster.admin() as admin:
        pool = decode((await admin.last("CLUSTER", names.pool(P))).data, Pool)
        bob = decode((await admin.last("CLUSTER", names.client("bob"))).data, Client)
    key = roles["worker"].cluster
    assert sealing.check_pool(pool, key)
    assert not sealing.check_pool(msgspec.structs.replace(pool, key=bytes(32)), key)
    job = Job(id="j", client="bob", pool=P, work=Build(text="()"))
    signed = sealing.sign(encode(job), roles["bob"])
    assert sealing.opened(signed, bob, key) == job
    for wrong in (
        msgspec.structs.replace(signed, job=encode(msgspec.structs.replace(job, urgent=True))),
        sealing.sign(encode(job), roles["client"]),
        sealing.sign(encode(msgspec.structs.replace(job, client="alice")), roles["bob"]),
    ):
        with pytest.raises(Refused):
            sealing.opened(wrong, bob, key)
    forged = msgspec.structs.replace(bob, keys=(roles["client"].key.public,))
    with pytest.raises(Refused):
        sealing.opened(sealing.sign(encode(job), roles["client"]), forged, key)
    sealed = sealing.seal(pool.key, b"word")
    assert b"word" not in sealed
    assert sealing.unseal(roles["worker"].unseal, sealed) == b"word"
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
    assert not roles["worker"].master
    assert not roles["bob"].unseal
    for content in ("", "{}", "[]", '{"kind": "client"}', "\xff"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ConfigError, match="holds no credentials"):
            load_credentials(str(tmp_path / "bad.json"))
    with pytest.raises(ConfigError, match="there are no credentials"):
        load_credentials(str(tmp_path / "none"))
    with pytest.raises(UsageError):
        await members.add_client(None, roles["bob"], "x")
