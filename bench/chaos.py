"""Kills servers and workers at random, and cuts links, while jobs run; then checks every job.

Each must have ended once, with the right result and a whole log. Exit status 1 if one did not.

    bench/chaos.py [--nodes 3] [--workers 6] [--fake 2000] [--real 200] [--seconds 180] [--seed N]

As root: all of it runs in namespaces of its own, so nothing of the machine is touched, and no process
or network outlives it, however it ends. Three servers, as `cluster config` writes them, and the
workers have a network each, on one bridge; a single server (`--nodes 1`) and its workers have the
loopback.
"""

import argparse
import fcntl
import glob
import io
import os
import random
import shutil
import signal
import statistics
import sys
import tarfile
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress

import anyio
from breakable.cluster import Network, Servers, Workers

from obuilder import events
from obuilder.cluster import layout, members, names
from obuilder.cluster.client import Client, Wishes
from obuilder.cluster.credentials import authority_of, save_credentials
from obuilder.cluster.engine import Engine
from obuilder.cluster.messages import ENDED, Build, Custom, State, decode
from obuilder.errors import ClusterError

POOL, CLIENT = "p", "zoe"
PLACE = "/var/tmp/obuilder-chaos-"
LINES = 200
NAMESPACES = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

# --- what is harmed ------------------------------------------------------------------------------


class Harm:
    """Does what is bad, and undoes it."""

    def __init__(self, servers, workers, network, history, engine):
        self.servers, self.workers, self.network = servers, workers, network
        self.history, self.engine = history, engine
        self.nodes, self.everybody = list(servers.running), list(workers.running)
        self.busy, self.quorum, self.done = set(), anyio.Lock(), set()
        self.kinds = {"worker killed, back in seconds": 5, "server killed": 2}
        if len(self.nodes) > 1:
            self.kinds |= {
                "worker killed, back after 40 s": 1, "leader killed": 2, "server cut off": 1,
                "all servers killed": 0, "worker cut off for 1 to 5 s": 2,
                "worker cut off for 45 s": 1, "worker hears nothing for 10 s": 1,
            }  # fmt: skip

    async def rage(self, seconds):
        """Each kind once, in any order; then as chance will, for a time from the first job on."""
        while not self.history.claims:
            await anyio.sleep(0.1)
        until = time.time() + seconds
        first = random.sample(list(self.kinds), len(self.kinds))
        async with anyio.create_task_group() as tasks:
            while first or time.time() < until:
                kind = (
                    first.pop()
                    if first
                    else random.choices(*zip(*self.kinds.items(), strict=True))[0]
                )
                tasks.start_soon(self.worker if kind.startswith("worker") else self.server, kind)
                await anyio.sleep(random.uniform(0.5, min(5, seconds / 3)))

    async def worker(self, kind):
        end, able, laden = time.time() + 5, [], []
        while not laden and time.time() < end:  # while servers are away nobody may have any jobs
            await anyio.sleep(0.05)
            able = sorted(set(self.everybody) - self.busy)  # others are harmed meanwhile
            if len(able) < 2:
                return  # somebody has to do the work
            laden = [name for name in able if self.history.has_jobs(name)]
        name = random.choice(laden or able)
        self.busy.add(name)
        self.history.harmed(kind, name)
        if "killed" in kind:
            self.workers.kill(name)
            await anyio.sleep(40 if "40" in kind else random.uniform(0, 4))
            self.workers.start(name)
        elif "hears" in kind:
            self.network.deafen(name)
            await anyio.sleep(10)
            self.network.heal(name)
        else:
            self.network.cut(name)
            await anyio.sleep(45 if "45" in kind else random.uniform(1, 5))
            self.network.join(name)
        await anyio.sleep(1)
        self.busy.remove(name)

    async def server(self, kind):
        if self.quorum.locked() and kind in self.done:
            return  # one may be lost at a time
        self.done.add(kind)
        async with self.quorum:
            name = random.choice(self.nodes)
            if kind == "leader killed":
                name = await self.leader()
            self.history.harmed(kind, name)
            if kind == "server cut off":
                self.network.cut(name)
                await anyio.sleep(8)
                self.network.join(name)
            else:
                for each in self.nodes if kind == "all servers killed" else [name]:
                    self.servers.kill(each)
                await anyio.sleep(1)
                for each in self.nodes:
                    if each not in self.servers.running:
                        self.servers.start(each)
            await anyio.sleep(8)

    async def leader(self):
        """The server that decides of what `History.probe` writes."""
        streams = await self.engine.streams()
        found = streams[names.state_of(POOL)].get("cluster", {}).get("leader")
        return found or random.choice(self.nodes)


# --- what is seen --------------------------------------------------------------------------------


class History:
    """What was done to whom; who took over which job when; how long writes took."""

    def __init__(self):
        self.harms, self.claims, self.vanished = [], defaultdict(dict), []
        self.ends, self.writes, self.restarts = defaultdict(set), [], 0

    def harmed(self, kind, name):
        self.harms.append((time.time(), kind, name))
        print(f"  {kind}: {name}", file=sys.stderr)

    async def listen(self, engine):
        """To all that becomes of jobs."""
        async with engine.watch(
            names.jobs_of(CLIENT), names.job(CLIENT, POOL, "*", "state")
        ) as states:
            async for found in states:
                job = found.subject.split(".")[3]
                if not found.data:  # records are kept: nothing of ours removes one
                    self.vanished.append(job)
                    continue
                state = decode(found.data, State)
                if state.started is not None:
                    self.claims[job].setdefault(state.attempt, (state.started, state.worker))
                if state.phase in ENDED:
                    self.ends[job].add(found.seq)

    async def probe(self, engine):
        """Write something again and again, as everybody does."""
        while True:
            began = time.time()
            with suppress(ClusterError):
                await engine.put(names.hint(POOL, "chaos"), b"")
            self.writes.append((began, time.time()))
            await anyio.sleep(0.05)

    async def mind(self, workers):
        while True:
            self.restarts += workers.restart()
            await anyio.sleep(1)

    def has_jobs(self, worker):
        running = (tries for job, tries in self.claims.items() if job not in self.ends)
        return any(tries[max(tries)][1] == worker for tries in running)

    def takeovers(self):
        """Seconds from what befell a worker to another one's beginning with its job, by kind."""
        found = defaultdict(list)
        for tries in self.claims.values():
            for attempt, (began, worker) in tries.items():
                after = tries.get(attempt + 1)
                if not after:
                    continue
                harms = [h for h in self.harms if h[2] == worker and began - 0.5 < h[0] < after[0]]
                # Of all that befell it, a kill is what it can't have lived through.
                for when, kind, _ in sorted(harms, key=lambda h: ("killed" not in h[1], h[0]))[:1]:
                    found[kind].append(after[0] - when)
        return found

    def stalls(self):
        """Seconds that a write took at most, around what befell servers, by kind."""
        found = defaultdict(list)
        for when, kind, _ in self.harms:
            if not kind.startswith("worker"):
                near = [
                    end - begin for begin, end in self.writes if begin < when + 8 and end > when
                ]
                found[kind].append(max(near, default=0))
        return found


# --- jobs ----------------------------------------------------------------------------------------


def nap(number, longest):
    """What a fake job is given, and comes to."""
    return b"%.3f" % (longest * (1 + number % 10) / 10)


def work(kind, number, longest):
    if kind == "fake":
        return Custom("nap", nap(number, longest))
    loop = f"while [ $i -lt {LINES} ]; do echo line $i of {number}; i=$((i+1)); done"
    text = f'((from micro) (run (shell "i=0; {loop}; echo made by {number} > /made")))'
    return Build(text=text, artifacts=("/made",))


async def check(client, ref, kind, number, longest):
    """What is wrong with a job that has ended; nothing if all is well."""
    state = await client.state(ref)
    if state.phase != "done" or state.outcome is None:
        why = state.outcome.message if state.outcome else ""
        return f"{ref.id} is {state.phase}: {why}"
    said, last = [], (0, -1)
    async with client.follow(ref, live=False) as pieces:
        async for piece in pieces:
            if (piece.attempt, piece.number) <= last:
                return f"the log of {ref.id} goes back from {last} to {piece.number}"
            last = (piece.attempt, piece.number)
            said += piece.events
    if not piece.end or piece.attempt != state.attempt or piece.number + 1 != state.log_end:
        return f"the log of {ref.id} ends with {piece.attempt}/{piece.number}, not {state.log_end}"
    text = "".join(
        each.data.decode() if isinstance(each, events.Output) else getattr(each, "text", "") + "\n"
        for each in said
    )
    tries = text.split("Building on ")[1:]  # what was said before a worker died is kept
    if not 1 <= len(tries) <= state.attempt:
        return f"the log of {ref.id} has {len(tries)} beginnings, and there were {state.attempt}"
    if kind == "fake":
        if state.outcome.value != nap(number, longest):
            return f"{ref.id} came to {state.outcome.value!r}"
        return "" if "sleeping for" in tries[-1] else f"the log of {ref.id} is not whole: {text!r}"
    lines = [line for line in tries[-1].splitlines() if line.startswith("line ")]
    if lines != [f"line {line} of {number}" for line in range(LINES)]:
        return f"the log of {ref.id} has {len(lines)} of {LINES} lines"
    archive = io.BytesIO(await client.blobs.get(state.outcome.artifacts))
    with tarfile.open(fileobj=archive) as opened:
        content = [opened.extractfile(name).read() for name in opened if name.isfile()]
    return "" if content == [b"made by %d\n" % number] else f"{ref.id} made {content}"


async def submit_all(client, args):
    """All jobs in any order, many at a time: what each is."""
    jobs, limit = {}, anyio.CapacityLimiter(16)
    order = [("fake", n) for n in range(args.fake)] + [("real", n) for n in range(args.real)]
    random.shuffle(order)

    async def submit(kind, number):
        async with limit:
            wishes = Wishes(attempts=1000)
            ref = await client.submit(work(kind, number, args.nap), POOL, wishes=wishes)
            jobs[ref] = kind, number

    async with anyio.create_task_group() as tasks:
        for what in order:
            tasks.start_soon(submit, *what)
    return jobs


# --- all of it -----------------------------------------------------------------------------------


async def patiently(attempt):
    """Try until it works: servers come one by one."""
    with anyio.fail_after(240):
        while True:
            with suppress(ClusterError):
                if found := await attempt():
                    return found
            await anyio.sleep(0.3)


async def chaos(args, directory):
    nodes = [f"node{number + 1}" for number in range(args.nodes)]
    everybody = [f"w{number}" for number in range(args.workers)]
    network = Network([*nodes, *everybody] if args.nodes > 1 else [])
    servers, workers = Servers(f"{directory}/servers", nodes, network), Workers(directory, network)
    history = History()
    admin = await servers.admin()
    await patiently(lambda: reachable(admin))
    async with Engine.connect(admin) as engine, Engine.connect(admin) as other:

        async def pooled():
            return await layout.ensure_pool(engine, authority_of(admin), POOL)

        async def there():
            found = await engine.pending(names.state_of(POOL), names.worker(POOL))
            return len(found) == len(everybody)

        await patiently(pooled)
        zoe = await patiently(lambda: members.add_client(engine, admin, CLIENT))
        for name in everybody:
            made = await members.add_worker(engine, admin, POOL, name)
            save_credentials(made, f"{directory}/{name}.json")
            workers.start(name)
        await patiently(there)
        async with Client.open(zoe) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(history.listen, engine)
            tasks.start_soon(history.probe, other)
            tasks.start_soon(history.mind, workers)
            harm, began = Harm(servers, workers, network, history, engine), time.time()
            async with anyio.create_task_group() as busy:
                busy.start_soon(harm.rage, args.seconds)
                jobs = await submit_all(client, args)
            with anyio.move_on_after(args.patience):
                while await client.list(phases=["queued", "running"]):
                    await anyio.sleep(0.5)
            took = time.time() - began
            found = [await check(client, ref, *what, args.nap) for ref, what in jobs.items()]
            rows = await client.list()
            left = await tickets_left(engine)
            tasks.cancel_scope.cancel()
    workers.end()
    wrong = [text for text in found if text]
    wrong += [f"{job} was told to be gone" for job in history.vanished]
    wrong += [
        f"{job} ended {len(ends)} times" for job, ends in history.ends.items() if len(ends) > 1
    ]
    wrong += [f"{row.id} was never submitted" for row in rows if row.id not in {r.id for r in jobs}]
    report(args, history, rows, wrong, left, took)
    return bool(wrong) or bool(left) or len(rows) != args.fake + args.real


async def reachable(admin):
    async with Engine.connect(admin):
        return True


async def tickets_left(engine):
    """How many: those of jobs that ended while their ack was lost come back once, after 30 seconds."""
    left = 0
    for _ in range(120):
        left = sum((await engine.pending(names.queue_of(POOL), ">")).values())
        if not left:
            break
        await anyio.sleep(0.5)
    return left


def report(args, history, rows, wrong, left, took):
    ended = sum(row.state.phase == "done" for row in rows)
    again = sum(row.state.attempt > 1 for row in rows)
    print(
        f"{args.fake} fake and {args.real} real jobs, {args.nodes} servers, {args.workers} workers"
    )
    print(f"  ended {ended} in {took:.0f} s, {again} of them after another try")
    print(f"  wrong or lost: {len(wrong)}; tickets left: {left}")
    print(f"  workers that ended by themselves: {history.restarts}")
    for text in wrong[:20]:
        print(f"    {text}")
    counts = Counter(kind for _, kind, _ in history.harms)
    print("  seconds: the fewest, the middle, the most")
    for what, table in (
        ("jobs were elsewhere", history.takeovers()),
        ("a write", history.stalls()),
    ):
        for kind, seconds in sorted(table.items()):
            few, middle, many = min(seconds), statistics.median(seconds), max(seconds)
            print(
                f"  {kind} ({counts[kind]} times); {what} ({len(seconds)}):"
                f" {few:.1f}, {middle:.1f}, {many:.1f}"
            )


def sweep():
    """Remove what runs left that were killed: directories, and control groups of their steps."""
    for directory in glob.glob(f"{PLACE}*"):
        with suppress(OSError), open(f"{directory}/lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            groups_of(directory)
            shutil.rmtree(directory, ignore_errors=True)


def groups_of(directory):
    """Remove the control groups of steps whose stores are in a directory: how many there were."""
    found = []
    for path in glob.glob(f"{directory}/*/sandbox-id"):
        with open(path) as file:
            found += glob.glob(f"/sys/fs/cgroup/**/*{file.read().strip()}*", recursive=True)
    for group in sorted(found, reverse=True):
        with suppress(OSError):
            os.rmdir(group)
    return len(found)


def main():
    parser = argparse.ArgumentParser()
    counts = {"nodes": 3, "workers": 6, "fake": 2000, "real": 200, "seconds": 180, "patience": 900}
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--nap", type=float, default=5.0, help="seconds of the longest fake job")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    args = parser.parse_args()
    if os.getpid() != 1:  # the first of a pid namespace takes all others along
        sys.stdout.flush()
        again = [sys.executable, __file__, *sys.argv[1:], "--seed", str(args.seed)]
        os.execvp("unshare", ["unshare", *NAMESPACES, *again])
    print(f"--seed {args.seed}", flush=True)
    random.seed(args.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sweep()
    directory = tempfile.mkdtemp(prefix=os.path.basename(PLACE), dir=os.path.dirname(PLACE))
    with open(f"{directory}/lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failed = anyio.run(chaos, args, directory)
        left = groups_of(directory)
        print(f"  control groups left: {left}")
        if failed or left:
            os.unlink(f"{directory}/lock")  # so that it stays
            print(f"see {directory}")
        else:
            shutil.rmtree(directory)
    sys.exit(bool(failed or left))


main()
