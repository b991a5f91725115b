"""What the cluster's policy comes to on a real nats-server: fairness, urgency, affinity, a crowd.

Builders are fake (they sleep). Queues, records and choices are the program's own.
`scripts/bench cluster`, or one of them:

    bench/cluster.py fair|urgent|affinity|many [WORKERS JOBS [SECONDS [PROCESSES [LIMIT]]]]
"""

import math
import os
import random
import re
import statistics
import subprocess  # noqa: TID251 # other processes with workers are started by hand
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio
from msgspec.structs import replace

from obuilder.cluster import layout, members, names, records, server
from obuilder.cluster.credentials import authority_of, load_credentials
from obuilder.cluster.engine import Engine
from obuilder.cluster.messages import Outcome, Presence, Running, Share, State, Ticket, encode
from obuilder.cluster.presence import Name
from obuilder.cluster.queue import Queue, Taken
from obuilder.cluster.sealing import sign_record
from obuilder.errors import ClusterError

POOL = "p"


ASKED = Counter()
"""Messages of this process's workers to the server, by kind."""


class Counted(Engine):
    """A connection that counts what it sends."""

    async def _send(self, subject, data, reply="", headers=None):
        ASKED[kind_of(subject)] += 1
        await super()._send(subject, data, reply, headers)


def kind_of(subject):
    """What a message to the server is about, in a word or two: for who counts them."""
    parts = subject.split(".")
    if subject.startswith("$JS.ACK"):
        return "ack"
    if subject.startswith("$JS.API.DIRECT.GET"):
        return f"get-{parts[5]}" if len(parts) > 5 else "get-several"
    if subject.startswith("$JS.API"):
        return {"MSG": "pull", "INFO": "pending"}.get(parts[3], parts[3].lower())
    return f"put-{parts[0]}"


class Worker:
    """Takes jobs as `Queue` says, and sleeps. What it has the cache of is `cached`."""

    def __init__(self, engine, name, capacity, seconds, done, *, spread=0.0):
        self.engine, self.name, self.capacity, self.done = engine, name, capacity, done
        self.cold, self.warm, self.spread = *seconds, spread
        self.cached, self.running, self.misses = set(), {}, 0
        self.cache_of = lambda ticket: ticket.hint
        self.session = os.urandom(8).hex()
        self.queue = Queue(engine, POOL, name, self.session)
        self.queue.is_running = self.running.__contains__
        self.presence = Name(engine, POOL, name, self.session)

    def me(self):
        rows = tuple(self.running.values())
        return Presence(
            pool=POOL, name=self.name, session=self.session, capacity=self.capacity,
            in_use=sum(row.slots for row in rows), running=rows,
        )  # fmt: skip

    async def work(self):
        await self.presence.take(self.me, lambda _: None)
        async with anyio.create_task_group() as tasks, self.queue.open():
            tasks.start_soon(self.presence.keep, self.me)
            while True:
                try:
                    await self.step(tasks)
                except ClusterError as error:
                    print(f"  {self.name}: {error}", file=sys.stderr)
                    await anyio.sleep(1)

    async def step(self, tasks):
        if self.capacity <= len(self.running):
            await self.queue.full()
            await self.queue.wait()
        elif taken := await self.queue.take(self.me()):
            assert isinstance(taken, Taken)
            ticket = taken.ticket
            self.running[ticket.id] = Running(
                id=ticket.id, client=ticket.client, slots=1, started=time.time(),
                urgent=ticket.urgent, forwarded=ticket.forwarded == self.name,
            )  # fmt: skip
            self.presence.changed()
            tasks.start_soon(self.run, taken)
        else:
            await self.queue.wait()

    async def run(self, taken):
        ticket, began = taken.ticket, time.time()
        with suppress(ClusterError):  # a ticket that is not acknowledged comes again
            held = await records.claim(
                self.engine, taken.held, worker=self.name, session=self.session, now=began,
                warm=taken.warm,
            )  # fmt: skip
            hit = self.cache_of(ticket) in self.cached
            self.misses += not hit
            self.cached.add(self.cache_of(ticket))
            seconds = self.warm if hit else self.cold
            await anyio.sleep(seconds * random.uniform(1 - self.spread, 1 + self.spread))
            won = await records.finish(
                self.engine, held, "done", Outcome(), now=time.time(), log_end=0
            )
            await taken.delivery.ack()
            if won:
                self.done(ticket, began)
        del self.running[ticket.id]
        self.presence.changed()
        self.queue.wake()
        await self.queue.ended(taken, time.time() - began, well=True, useful=True)


@asynccontextmanager
async def cluster(rates, seconds):
    """A cluster with a pool and clients: its directory, and an administrator."""
    with tempfile.TemporaryDirectory(prefix="obuilder-bench-", dir="/var/tmp") as there:
        async with server.running(there) as admin, Engine.connect(admin) as engine:
            authority = authority_of(admin)
            pool = await layout.ensure_pool(engine, authority, POOL)
            pool = replace(pool, cold=seconds[0], warm=seconds[1])
            await engine.put(names.pool(POOL), encode(sign_record(pool, authority.signer)))
            for client, rate in rates.items():
                await members.add_client(engine, admin, client)
                await engine.put(names.fair(POOL, client), encode(Share(rate=rate)))
            yield there, admin, engine


async def submit(engine, client, tickets, *, window=100):
    """Put jobs into the queue, as clients do."""
    limit = anyio.CapacityLimiter(window)

    async def one(ticket):
        async with limit:
            state = State(submitted=time.time(), hint=ticket.hint, urgent=ticket.urgent)
            await engine.put(names.job(client, POOL, ticket.id, "state"), encode(state))
            subject = names.ticket(client, POOL, urgent=ticket.urgent)
            await engine.put(subject, encode(ticket), once=ticket.id)

    async with anyio.create_task_group() as group:
        for ticket in tickets:
            group.start_soon(one, ticket)


class Scene:
    """Workers in this process, until `jobs` of them are done: how long each waited."""

    def __init__(self, there, admin, engine, jobs, seconds):
        self.admin, self.engine, self.jobs, self.seconds = admin, engine, jobs, seconds
        self.waits, self.submitted, self.workers = defaultdict(dict), {}, []
        self.ended, self.finished = anyio.Event(), 0.0

    def done(self, ticket, began):
        self.waits[ticket.client][ticket.id] = began - self.submitted[ticket.id]
        if sum(map(len, self.waits.values())) == self.jobs:
            self.finished = time.time()
            self.ended.set()

    async def tickets(self, client, count, *, hint=lambda _: "", urgent=False, first=0):
        made = [
            Ticket(id=f"{client}{n}", client=client, hint=hint(n), urgent=urgent)
            for n in range(first, first + count)
        ]
        self.submitted.update((ticket.id, time.time()) for ticket in made)
        await submit(self.engine, client, made)

    @asynccontextmanager
    async def working(self, capacities):
        async with AsyncExitStack() as stack, anyio.create_task_group() as group:
            for number, capacity in enumerate(capacities):
                name = f"w{number}"
                made = await members.add_worker(self.engine, self.admin, POOL, name)
                engine = await stack.enter_async_context(Counted.connect(made))
                self.workers.append(Worker(engine, name, capacity, self.seconds, self.done))
                group.start_soon(self.workers[-1].work)
            yield
            await self.ended.wait()
            group.cancel_scope.cancel()


async def fair(rates):
    seconds = (0.05, 0.05)
    async with cluster(rates, seconds) as made:
        scene = Scene(*made, 220, seconds)
        await scene.tickets("bob", 200)
        async with scene.working([1, 1, 1, 1]):
            await anyio.sleep(0.2)
            await scene.tickets("zoe", 20)
    zoe, bob = scene.waits["zoe"].values(), scene.waits["bob"].values()
    print(
        f"  rates {rates['bob']:g} to {rates['zoe']:g}:  Zoe mean {statistics.mean(zoe):.2f} "
        f"max {max(zoe):.2f}   Bob mean {statistics.mean(bob):.2f}"
    )


async def urgent():
    seconds = (0.05, 0.05)
    async with cluster({"bob": 1, "zoe": 1}, seconds) as made:
        scene = Scene(*made, 105, seconds)
        await scene.tickets("bob", 100)
        async with scene.working([1, 1]):
            for number in range(5):
                await anyio.sleep(0.25)
                await scene.tickets("zoe", 1, urgent=True, first=number)
    waits = sorted(scene.waits["zoe"].values())
    print(f"  {waits[0] * 1000:.0f} to {waits[-1] * 1000:.0f} ms")


async def affinity(hinted):
    seconds = (0.4, 0.02)
    ASKED.clear()
    async with cluster({"zoe": 1}, seconds) as made:
        scene = Scene(*made, 1200, seconds)
        real = {f"zoe{n}": str(n * 7919 % 150) for n in range(1200)}
        await scene.tickets("zoe", 1200, hint=lambda n: real[f"zoe{n}"] if hinted else "")
        began = time.time()
        async with scene.working([2, 4, 4, 4, 8]):
            for worker in scene.workers:
                worker.cache_of = lambda ticket: real[ticket.id]
    misses = sum(worker.misses for worker in scene.workers)
    print(f"  {misses} misses (150 are needed), {scene.finished - began:.1f} s")
    show_asked(ASKED, 1200)


# --- many workers --------------------------------------------------------------------------------


async def crowd(there, first, count, seconds):
    """Workers of one process: they say what each job waited for, and what they asked for."""
    admin = load_credentials(f"{there}/admin.json")
    rows = []

    def done(ticket, began):
        rows.append(f"{ticket.id} {began:.4f}")

    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        main = await stack.enter_async_context(Engine.connect(admin))
        for number in range(first, first + count):
            await layout.ensure_worker(main, POOL, f"w{number}")
            made = authority_of(admin).worker(POOL, f"w{number}")
            engine = await stack.enter_async_context(Counted.connect(made))
            worker = Worker(engine, f"w{number}", 1, (seconds, seconds), done, spread=0.5)
            group.start_soon(worker.work)
        while True:
            await anyio.sleep(0.5)
            batch, rows[:] = rows[:], []
            said = [" ".join(f"{kind}={n}" for kind, n in ASKED.items()), *batch]
            await main.publish(f"bench.done.{first}", "\n".join(said).encode())


async def many(workers, jobs, seconds, processes, limit):
    rates = {f"c{number}": number + 1.0 for number in range(4)}
    part, each = math.ceil(workers / processes), jobs // 4
    submitted, began, peak, asked = {}, {}, 0, {}
    async with cluster(rates, (seconds, seconds)) as (there, admin, engine):
        await members.add_worker(engine, admin, POOL, "w0")  # and the account of all of them
        pid = server.Local(there).pid()
        argv = [sys.executable, __file__, "crowd", there]
        starts = range(0, workers, part)
        children = [
            subprocess.Popen([*argv, str(first), str(min(part, workers - first)), str(seconds)])  # noqa: ASYNC220
            for first in starts
        ]
        try:
            while len(await engine.pending(names.state_of(POOL), names.worker(POOL))) < workers:
                await anyio.sleep(0.5)
            idle, used = memory(pid), await rest(pid, [child.pid for child in children])
            rooms = {client: anyio.Semaphore(workers) for client in rates}

            async def feed(client):
                """Each client has as many jobs waiting as there are workers."""

                async def one(number):
                    ticket = Ticket(id=f"{client}-{number}", client=client)
                    submitted[ticket.id] = time.time()
                    await submit(engine, client, [ticket])

                async with anyio.create_task_group() as group:
                    for number in range(each):
                        await rooms[client].acquire()
                        group.start_soon(one, number)

            before, start = None, time.time()
            told = start
            async with engine.subscribe("bench.done.*") as said, anyio.create_task_group() as group:
                for client in rates:
                    group.start_soon(feed, client)
                async for batch in said:
                    head, *rows = batch.data.decode().split("\n")
                    asked[batch.subject] = dict(part.split("=") for part in head.split())
                    if before is None and len(asked) == processes:
                        before = total(asked)
                    for row in rows:
                        id_, when = row.split()
                        began[id_] = float(when)
                        rooms[id_.partition("-")[0]].release()
                    peak = max(peak, memory(pid))
                    if time.time() > told + 60:
                        told = time.time()
                        print(f"  … {len(began)} after {told - start:.0f} s", file=sys.stderr)
                    if len(began) == 4 * each or time.time() > start + limit:
                        break
                group.cancel_scope.cancel()
            took = time.time() - start
            server_s = spent(pid) - used[pid]
            workers_s = sum(spent(child.pid) - used[child.pid] for child in children)
            left = sum((await engine.pending(names.queue_of(POOL), ">")).values())
        finally:
            for child in children:
                child.kill()
                child.wait()
    ordered = sorted(began[id_] - submitted[id_] for id_ in began)
    half = sorted(began, key=began.get)[: len(began) // 2]
    had = [sum(id_.startswith(f"{client}-") for id_ in half) / len(half) for client in rates]
    waits = " ".join(f"{ordered[int(len(ordered) * part_)]:.2f}" for part_ in (0.5, 0.9, 0.99))
    print(f"  {len(began)} jobs done once each in {took:.0f} s, {left} tickets left")
    print(f"  {len(began) / took:.1f} jobs/s ({workers / seconds:.0f} if choosing took no time)")
    print(f"  waits p50, p90, p99: {waits} s, with four jobs ahead of each worker")
    print(f"  server: {idle} MiB with idle workers, {peak} at most")
    print(
        f"  processor time a job: server {1000 * server_s / len(began):.2f} ms, "
        f"all workers {1000 * workers_s / len(began):.2f} ms"
    )
    print(
        f"  of the first half clients with rates 1, 2, 3, 4 had {' '.join(f'{h:.3f}' for h in had)}"
    )
    show_asked(
        {kind: n - (before or {}).get(kind, 0) for kind, n in total(asked).items()}, len(began)
    )


async def rest(server, crowds, seconds=10):
    """What idle workers cost; the time that each process has used by then."""
    before = spent(server)
    await anyio.sleep(seconds)
    cost = (spent(server) - before) / seconds
    print(f"  with idle workers the server takes {100 * cost:.0f} % of a processor")
    return {pid: spent(pid) for pid in (server, *crowds)}


def total(asked):
    kinds = {kind for each in asked.values() for kind in each}
    return {kind: sum(int(each.get(kind, 0)) for each in asked.values()) for kind in kinds}


def show_asked(asked, jobs):
    """What workers asked of the server for each job."""
    each = {kind: n / jobs for kind, n in sorted(asked.items(), key=lambda item: -item[1])}
    shown = ", ".join(f"{kind} {n:.2f}" for kind, n in each.items() if n >= 0.05)
    print(f"  a job: {sum(each.values()):.1f} messages to the server: {shown}")


def spent(pid):
    """Seconds of processor time that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) // 1024


def main():
    what, *rest = sys.argv[1:] or ["all"]
    if what == "crowd":
        anyio.run(crowd, rest[0], int(rest[1]), int(rest[2]), float(rest[3]))
        return
    if what in ("all", "fair"):
        print("Bob queues 200 jobs of 50 ms, Zoe 20 a little later, 4 slots: seconds of waiting")
        anyio.run(fair, {"bob": 1000, "zoe": 0.001})
        anyio.run(fair, {"bob": 1, "zoe": 2})
    if what in ("all", "urgent"):
        print("An urgent job behind 100 of 50 ms, 2 slots: it waits")
        anyio.run(urgent)
    if what in ("all", "affinity"):
        print("1,200 jobs, 150 caches, 5 workers with 2, 4, 4, 4, 8 slots (hit 20 ms, miss 400 ms)")
        for hinted in (False, True):
            print(f"  {'with' if hinted else 'without'} hints:", end="")
            anyio.run(affinity, hinted)
    if what in ("all", "many"):
        given = dict(enumerate(rest))
        workers, jobs = int(given.get(0, 100)), int(given.get(1, 2000))
        seconds, processes = float(given.get(2, 2.0)), int(given.get(3, 2))
        limit = float(given.get(4, 1200))
        print(
            f"{jobs} jobs of {seconds:g} s, {workers} workers in {processes} processes, 4 clients"
        )
        anyio.run(many, workers, jobs, seconds, processes, limit)


main()
