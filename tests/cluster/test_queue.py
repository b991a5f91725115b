"""Queues of workers without builders on the real engine: who is woken, who is served, what it costs."""

import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

from clusters import Cluster
from obuilder.cluster import accounts, layout, members, names, records
from obuilder.cluster.client import Client
from obuilder.cluster.credentials import authority_of, system_of
from obuilder.cluster.engine import Engine
from obuilder.cluster.messages import (
    Outcome,
    Presence,
    Running,
    Share,
    State,
    Ticket,
    decode,
    encode,
)
from obuilder.cluster.queue import Queue, Taken

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("nats")]


class Counted(Engine):
    """A connection that counts what it sends, by subject."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent: Counter[str] = Counter()

    async def _send(self, subject: str, *args: Any, **more: Any) -> None:
        self.sent[subject] += 1
        await super()._send(subject, *args, **more)


class Hand:
    """A worker with one slot and its queue."""

    def __init__(self, engine: Engine, pool: str, name: str) -> None:
        self.engine, self.pool, self.name = engine, pool, name
        self.session = os.urandom(4).hex()
        self.queue = Queue(engine, pool, name, self.session)
        self.taken: Taken | None = None

    def me(self) -> Presence:
        jobs = (self.taken.ticket,) if self.taken else ()
        return Presence(
            pool=self.pool, name=self.name, session=self.session, capacity=1, in_use=len(jobs),
            running=tuple(Running(id=job.id, client=job.client, slots=1, started=0.0) for job in jobs),
        )  # fmt: skip

    async def take(self) -> str | None:
        """Begin the next job: its name."""
        found = await self.queue.take(self.me())
        if found is None:
            return None
        assert isinstance(found, Taken)
        held = await records.claim(
            self.engine, found.held, worker=self.name, session=self.session, now=time.time(),
            warm=found.warm,
        )  # fmt: skip
        self.taken, self.held = found, held
        return found.ticket.id

    async def end(self, seconds: float = 1.0) -> None:
        """End it, as if it had taken so long."""
        assert self.taken is not None
        taken, self.taken = self.taken, None
        assert await records.finish(
            self.engine, self.held, "done", Outcome(), now=time.time(), log_end=0
        )
        await taken.delivery.ack()
        await self.queue.ended(taken, seconds, well=True, useful=True)
        self.queue.wake()


class Field:
    """A pool of a test's own, with clients and hands."""

    def __init__(self, cluster: Cluster, admin: Engine, pool: str) -> None:
        self.cluster, self.admin, self.pool = cluster, admin, pool
        self.clients: dict[str, str] = {}

    async def client(self, share: Share) -> str:
        name = f"c-{os.urandom(4).hex()}"
        await members.add_client(self.admin, self.cluster.credentials, name)
        await self.admin.put(names.fair(self.pool, name), encode(share))
        return name

    async def submit(self, client: str, *ids: str, urgent: bool = False, to: str = "") -> None:
        for id_ in ids:
            ticket = Ticket(id=id_, client=client, urgent=urgent, forwarded=to)
            state = State(submitted=time.time(), urgent=urgent)
            await self.admin.put(
                names.job(client, self.pool, id_, "state"), encode(state), expect=0
            )
            subject = names.ticket(client, self.pool, urgent=urgent)
            if to:
                subject = names.forwarded(self.pool, to, urgent=urgent)
            await self.admin.put(subject, encode(ticket), once=id_)

    @asynccontextmanager
    async def hands(self, *workers: str) -> AsyncIterator[list[Hand]]:
        async with AsyncExitStack() as stack:
            found = []
            for name in workers:
                made = await self.cluster.worker(name, self.pool)
                engine = await stack.enter_async_context(Counted.connect(made))
                found.append(Hand(engine, self.pool, name))
                await stack.enter_async_context(found[-1].queue.open())
            yield found


@pytest.fixture
async def field(cluster: Cluster) -> AsyncIterator[Field]:
    pool = f"p-{os.urandom(4).hex()}"
    await cluster.pool(pool)
    async with cluster.admin() as admin:
        yield Field(cluster, admin, pool)


async def test_a_ticket_wakes_one_worker_and_costs_few_messages(field) -> None:
    client = await field.client(Share())
    async with field.hands("w1", "w2", "w3") as hands:
        for hand in hands:
            assert await hand.take() is None
        woken: list[Hand] = []

        async def wait(hand: Hand) -> None:
            await hand.queue.wait()
            woken.append(hand)

        for hand in hands:
            hand.engine.sent.clear()
        async with anyio.create_task_group() as tasks:
            for hand in hands:
                tasks.start_soon(wait, hand)
            await field.submit(client, "j1")
            with anyio.fail_after(10):
                while not woken:
                    await anyio.sleep(0.01)
            [one] = woken
            assert await one.take() == "j1"
            assert len(woken) == 1
            await one.queue.full()
            await field.submit(client, "j2")
            with anyio.fail_after(10):
                while len(woken) < 2:
                    await anyio.sleep(0.01)
            assert woken[1] is not one, "it has no room"
            assert await woken[1].take() == "j2"
            tasks.cancel_scope.cancel()
        await one.end()
        sent = one.engine.sent
        assert sum(sent.values()) == 6, sent


async def test_what_comes_just_before_a_worker_sleeps_is_seen(field, monkeypatch) -> None:
    client = await field.client(Share())
    async with field.hands("w1") as [hand]:
        gone = Ticket(id="gone", client=client)  # has no record: it is dropped
        await field.admin.put(names.ticket(client, field.pool, urgent=False), encode(gone))
        stand = hand.queue._bell.stand

        async def stand_late() -> bool:
            await field.submit(client, "j1")  # as many tickets as before
            return await stand()

        monkeypatch.setattr(hand.queue._bell, "stand", stand_late)
        found = await hand.take()
        if found is None:  # the queue gave it out later than it said that there is one more
            await hand.queue.wait()
            found = await hand.take()
        assert found == "j1"


async def test_those_who_sleep_are_woken_by_those_who_see_more(field) -> None:
    client = await field.client(Share())
    async with field.hands("w1", "w2", "w3") as hands:
        for hand in hands:
            assert await hand.take() is None
        began: list[str] = []

        async def work(hand: Hand) -> None:
            while (id_ := await hand.take()) is None:
                await hand.queue.wait()
            await hand.queue.full()
            began.append(id_)

        # Whoever is called for the three does not come: the first one that does calls the others.
        called = [hand.queue._bell for hand in hands]
        await field.submit(client, "j1", "j2", "j3")
        with anyio.fail_after(10):
            while sum(len(bell.called) for bell in called) < 1:
                await anyio.sleep(0.01)
        for bell in called:
            bell.called.clear()
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                hands[0].queue.wake()
                for hand in hands:
                    tasks.start_soon(work, hand)
        assert sorted(began) == ["j1", "j2", "j3"]


async def test_clients_are_served_by_their_rates_and_pay_what_jobs_took(field) -> None:
    slow, fast = await field.client(Share(rate=1)), await field.client(Share(rate=3))
    async with field.hands("w1") as [hand]:
        await field.submit(slow, *(f"s{n}" for n in range(8)))
        await field.submit(fast, *(f"f{n}" for n in range(12)))
        order = []
        for number in range(12):
            order.append((await hand.take() or "")[0])
            await hand.end(10.0)
            if number == 5:
                await field.submit(slow, "u", urgent=True)
        assert order[6] == "u" or order[7] == "u", order
        assert order.count("f") in (8, 9), order
        for client, rate in ((slow, 1.0), (fast, 3.0)):
            found = await field.admin.last(
                names.state_of(field.pool), names.fair(field.pool, client)
            )
            share = decode(found.data, Share)
            assert share.rate == rate
            assert 20 <= share.time <= 45, "tens of seconds, not the ten minutes that were expected"


async def test_a_limit_holds_for_who_is_called_too(field, monkeypatch) -> None:
    monkeypatch.setattr("obuilder.cluster.outlook._LEAST", 0.0)
    monkeypatch.setattr("obuilder.cluster.outlook._MOST", 0.0)
    client = await field.client(Share(limit=1))
    async with field.hands("w1", "w2") as hands:
        for hand in hands:
            await field.admin.put(names.worker(field.pool, hand.name), encode(hand.me()))
            assert await hand.take() is None
        await field.submit(client, "j1")
        first = None
        with anyio.fail_after(10):
            while first is None:
                for hand in hands:
                    if first is None and await hand.take():
                        first = hand
                await anyio.sleep(0.01)
        await field.admin.put(names.worker(field.pool, first.name), encode(first.me()))
        other = next(hand for hand in hands if hand is not first)
        await field.submit(client, "j2")
        await anyio.sleep(0.2)
        assert await other.take() is None
        await first.end()
        await field.admin.put(names.worker(field.pool, first.name), encode(first.me()))
        assert await first.take() == "j2"


async def test_what_waits_for_a_worker_that_is_gone_is_not_forgotten(field, monkeypatch) -> None:
    monkeypatch.setattr("obuilder.cluster.outlook._STRAYS", 0.0)
    client = await field.client(Share())
    await field.cluster.worker("gone", field.pool)
    async with field.hands("w1") as [hand]:
        await field.submit(client, "lost", to="gone")
        await field.submit(client, *(f"j{n}" for n in range(3)))
        assert await hand.take() == "lost", "though others wait, and always would"


async def test_what_is_delivered_to_nobody_is_given_back_at_once(field, monkeypatch) -> None:
    """Else it would wait for its time to be over, half a minute."""
    client = await field.client(Share())
    stream, consumer = names.queue_of(field.pool), names.waiting(client, urgent=False)
    async with field.hands("w1", "w2") as (one, two):
        with anyio.move_on_after(0.2):
            await one.engine.pull(stream, consumer, wait=5)
            pytest.fail("nothing waits")
        await field.submit(client, "a")  # which goes to the pull that was cancelled
        found = await two.engine.pull(stream, consumer, wait=5)
        assert found is not None
        assert found.tries == 2
        await found.ack()

        send = one.engine._send

        async def twice(subject: str, *args: Any, **more: Any) -> None:
            await send(subject, *args, **more)
            if ".MSG.NEXT." in subject:
                await send(subject, *args, **more)

        # So it comes to the server while an account is changed, now and then.
        monkeypatch.setattr(one.engine, "_send", twice)
        await field.submit(client, "b", "c")
        first = await one.engine.pull(stream, consumer, wait=5)
        monkeypatch.undo()
        second = await two.engine.pull(stream, consumer, wait=5)
        assert first is not None
        assert second is not None
        assert (first.tries, second.tries) == (1, 2)
        assert {decode(each.data, Ticket).id for each in (first, second)} == {"b", "c"}


async def test_one_more_worker_changes_no_account(field) -> None:
    """While one is changed requests of its workers may be lost or come twice."""
    account = (await field.cluster.worker("w1", field.pool)).account
    async with Engine.connect(system_of(field.cluster.credentials)) as system:

        async def token() -> bytes:
            return await system.request(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"")

        before = await token()
        await anyio.sleep(1.1)  # tokens tell the second that they were made in
        await field.cluster.worker("w2", field.pool)
        assert await token() == before
        await members.remove_worker(field.admin, field.cluster.credentials, field.pool, "w2")
        assert await token() != before


async def test_servers_forget_what_was_answered(field) -> None:
    """A way for answers between accounts is looked through again and again, and would be kept for long."""
    main = accounts.main_account(authority_of(field.cluster.credentials).master).public
    async with (
        Engine.connect(system_of(field.cluster.credentials)) as system,
        field.hands("w1") as (one,),
    ):

        async def kept() -> int:
            said = json.loads(await system.request(f"$SYS.REQ.ACCOUNT.{main}.INFO", b""))
            return len(said["data"].get("responses") or {})

        before = await kept()
        subject = names.known(field.pool, "w1")
        for _ in range(50):
            await one.engine.put(subject, b"{}")
            await one.engine.last(names.state_of(field.pool), subject)
            await one.engine.pending(names.queue_of(field.pool), ">")
            await one.queue.take(one.me())
        assert await kept() < before + 20


async def test_clients_see_a_pool_at_once(field) -> None:
    """They read a copy of it, which is made by the way."""
    name = f"p-{os.urandom(4).hex()}"
    client = await field.cluster.client("seer")
    async with Client.open(client) as seer:
        for platform in ("linux/arm64", "linux/s390x") * 20:
            authority = authority_of(field.cluster.credentials)
            await layout.ensure_pool(field.admin, authority, name, platform=platform)
            assert (await seer.pool(name)).platform == platform
