"""Kills servers and workers at random, and cuts links, while jobs run; then checks every job.

Each must have ended once, with the right result and a whole log. Exit status 1 if one did not.

    bench/chaos.py [--nodes 3] [--workers 6] [--fake 2000] [--real 200] [--seconds 120] [--links]

With --links each worker has a network namespace of its own, whose link is cut now and then.
"""

import argparse
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess  # noqa: TID251 # servers and workers are started, and killed, by hand
import sys
import tempfile
import time
from collections import Counter, defaultdict

import anyio

from obuilder import events
from obuilder.cluster import layout, members, names, server
from obuilder.cluster.client import Client, Wishes
from obuilder.cluster.credentials import authority_of, load_credentials, save_credentials
from obuilder.cluster.engine import Engine
from obuilder.cluster.messages import Build, Custom, State, decode
from obuilder.cluster.production import write_configuration
from obuilder.errors import ClusterError

POOL = "p"
GATE = "10.213.0.1"
"""Where servers listen if workers have networks of their own."""


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class Servers:
    """Of one node as `cluster up` makes it, or of three as `cluster config` does."""

    def __init__(self, directory, nodes, host):
        self.directory, self.running = directory, {}
        if nodes == 1:
            local = server.Local(directory)
            local.prepare()
            self.argv = {"local": ["-c", f"{directory}/nats.conf"]}
        else:
            sockets = [socket.create_server((host, 0)) for _ in range(2 * nodes)]
            ports = [each.getsockname()[1] for each in sockets]
            for each in sockets:
                each.close()
            hosts = [f"{host}:{ports[n]}:{ports[nodes + n]}" for n in range(nodes)]
            write_configuration(directory, hosts, port=1, cluster_port=1, state=".")
            self.argv = {f"node{n + 1}": ["-c", "nats.conf"] for n in range(nodes)}

    def start(self, name):
        own = os.path.join(self.directory, name)
        os.makedirs(own, exist_ok=True)
        argv = [server.find_server(), *self.argv[name], "-l", f"{own}/log"]
        self.running[name] = subprocess.Popen(argv, cwd=own)

    def kill(self, name):
        self.running[name].kill()
        self.running.pop(name).wait()


class Workers:
    """Real workers, each a process, in a network namespace if there are `links`."""

    def __init__(self, directory, links):
        self.directory, self.links, self.running = directory, links, {}
        self.log = open(f"{directory}/workers.log", "wb")  # noqa: SIM115 # for as long as we live
        kinds = os.path.join(directory, "kinds", "chaos-0.dist-info")
        os.makedirs(kinds)
        for name, text in (
            ("METADATA", "Metadata-Version: 2.1\nName: chaos\nVersion: 0\n"),
            ("entry_points.txt", "[obuilder.jobs]\nnap = obuilder.testing.jobs:sleep\n"),
        ):
            with open(os.path.join(kinds, name), "w") as file:
                file.write(text)
        paths = [os.path.dirname(kinds), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env = {**os.environ, "PYTHONPATH": ":".join(paths)}

    def start(self, name):
        own = f"{self.directory}/{name}"
        argv = [
            *(["nsenter", f"--net=/run/netns/ob{name}"] if self.links else []),
            sys.executable, "-m", "obuilder", "worker", "--cluster", f"{own}.json",
            "--store", f"overlayfs:{own}", "--capacity", "8", "--health-every", "0", "--free", "0",
        ]  # fmt: skip
        self.running[name] = subprocess.Popen(
            argv, env=self.env, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL
        )

    def kill(self, name):
        self.running[name].kill()
        self.running.pop(name).wait()

    def link(self, name, state):
        ip("link", "set", f"ob{name}h", state)


def networks(stack, workers):
    """A bridge without a way out, and a namespace on it for each worker."""
    ip("link", "add", "obchaos", "type", "bridge")
    stack.append(["link", "del", "obchaos"])
    ip("addr", "add", f"{GATE}/24", "dev", "obchaos")
    ip("link", "set", "obchaos", "up")
    for number, name in enumerate(workers):
        ip("netns", "add", f"ob{name}")
        stack.append(["netns", "del", f"ob{name}"])
        ip(
            "link",
            "add",
            f"ob{name}h",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            f"ob{name}",
        )
        ip("link", "set", f"ob{name}h", "master", "obchaos", "up")
        inside = ["-n", f"ob{name}"]
        ip(*inside, "addr", "add", f"10.213.0.{10 + number}/24", "dev", "eth0")
        ip(*inside, "link", "set", "eth0", "up")
        ip(*inside, "link", "set", "lo", "up")


class History:
    """What was done to whom, and who took over which job when."""

    def __init__(self):
        self.hurt, self.takeovers = Counter(), defaultdict(list)
        self.last, self.holder = {}, {}

    def harm(self, kind, name):
        self.hurt[kind] += 1
        self.last[name] = (time.time(), kind)

    def heard(self, job, state):
        before = self.holder.get(job)
        if state.phase != "running" or (before and before[0] >= state.attempt):
            return
        self.holder[job] = (state.attempt, state.worker)
        if before and before[1] in self.last:
            when, kind = self.last[before[1]]
            self.takeovers[kind].append(state.started - when)


async def harm(servers, workers, history, until, *, links):
    """Something bad, now and then, and its repair."""
    names_ = sorted(workers.running)

    async def hit(group, kind, name, pause):
        history.harm(kind, name)
        group.kill(name)
        await anyio.sleep(pause)
        group.start(name)

    async with anyio.create_task_group() as tasks:
        await anyio.sleep(2)
        tasks.start_soon(hit, workers, "worker killed", names_[0], 1)  # at the least
        while time.time() < until:
            await anyio.sleep(random.uniform(1, 4))
            chance = random.random()
            if chance < 0.3 and len(servers.running) == len(servers.argv):
                tasks.start_soon(
                    hit, servers, "server killed", random.choice(list(servers.running)), 1
                )
            elif chance < 0.6 and links:
                name = random.choice(names_)
                history.harm("link cut", name)
                workers.link(name, "down")
                await anyio.sleep(random.choice([1, 5, 40]) if chance < 0.4 else 2)
                workers.link(name, "up")
            elif alive := [name for name in names_ if name in workers.running]:
                tasks.start_soon(
                    hit, workers, "worker killed", random.choice(alive), random.uniform(0, 5)
                )


def nap(number, longest):
    """What a fake job is given, and comes to."""
    return b"%.3f" % (longest * (1 + number % 10) / 10)


async def check(client, ref, kind, number, longest):
    """What is wrong with a job that has ended; nothing if all is well."""
    state = await client.state(ref)
    if state.phase != "done" or state.outcome is None:
        why = state.outcome.message if state.outcome else ""
        return f"{ref.id} is {state.phase}: {why}"
    text, said = "", []
    async with client.follow(ref, live=False) as pieces:
        async for piece in pieces:
            said += piece.events
    text = "".join(
        each.data.decode() if isinstance(each, events.Output) else getattr(each, "text", "") + "\n"
        for each in said
    )
    tries = text.split("Building on ")[1:]  # what was said before a worker died is kept
    if not 1 <= len(tries) <= state.attempt:
        return f"the log of {ref.id} has {len(tries)} beginnings, and there were {state.attempt}"
    text = tries[-1]
    if kind == "fake":
        if state.outcome.value != nap(number, longest):
            return f"{ref.id} came to {state.outcome.value!r}"
        return "" if "sleeping for" in text else f"the log of {ref.id} is not whole: {text!r}"
    wanted = [f"line {line} of {number}" for line in range(200)]
    lines = [line for line in text.splitlines() if re.fullmatch(rf"line \d+ of {number}", line)]
    if lines != wanted:
        return f"the log of {ref.id} has {len(lines)} of 200 lines"
    return "" if state.outcome.result else f"{ref.id} has no result"


async def pooled(engine, admin):
    """Whether the pool is made: it takes all servers, which come one by one."""
    try:
        await layout.ensure_pool(engine, authority_of(admin), POOL)
    except ClusterError:
        return False
    return True


async def there(engine):
    """How many workers have come."""
    return len(await engine.pending(names.state_of(POOL), names.worker(POOL)))


async def chaos(args, directory):
    everybody = [f"w{number}" for number in range(args.workers)]
    undo, history = [], History()
    servers = workers = None
    try:
        if args.links:
            networks(undo, everybody)
        servers = Servers(f"{directory}/servers", args.nodes, GATE if args.links else "127.0.0.1")
        for name in servers.argv:
            servers.start(name)
        workers = Workers(directory, args.links)
        if args.nodes == 1:
            local = server.Local(f"{directory}/servers")
            admin = await local.ready(local.prepare())
        else:
            admin = load_credentials(f"{directory}/servers/admin.json")
        async with Engine.connect(admin) as engine:
            engine.patience = 90
            with anyio.fail_after(60):
                while not await pooled(engine, admin):
                    await anyio.sleep(0.5)
            zoe = await members.add_client(engine, admin, "zoe")
            for name in everybody:
                made = await members.add_worker(engine, admin, POOL, name)
                save_credentials(made, f"{directory}/{name}.json")
                workers.start(name)

            async def listen():
                async with engine.subscribe(f"live.job.zoe.{POOL}.*.state") as said:
                    async for message in said:
                        if message.data:
                            history.heard(
                                message.subject.split(".")[4], decode(message.data, State)
                            )

            async with anyio.create_task_group() as tasks, Client.open(zoe) as client:
                tasks.start_soon(listen)
                with anyio.fail_after(90):
                    while await there(engine) < len(everybody):
                        await anyio.sleep(0.2)
                client._engine.patience = 90  # noqa: SLF001
                jobs, limit = {}, anyio.CapacityLimiter(16)
                wishes = Wishes(attempts=1000)

                async def submit(kind, number):
                    if kind == "fake":
                        work = Custom("nap", nap(number, args.nap))
                    else:
                        loop = (
                            f"while [ $i -lt 200 ]; do echo line $i of {number}; i=$((i+1)); done"
                        )
                        work = Build(text=f'((from micro) (run (shell "i=0; {loop}")))')
                    async with limit:
                        jobs[await client.submit(work, POOL, wishes=wishes)] = kind, number

                began = time.time()
                async with anyio.create_task_group() as busy:
                    busy.start_soon(
                        lambda: harm(
                            servers, workers, history, began + args.seconds, links=args.links
                        )
                    )
                    order = [("fake", n) for n in range(args.fake)] + [
                        ("real", n) for n in range(args.real)
                    ]
                    random.shuffle(order)
                    for kind, number in order:
                        busy.start_soon(submit, kind, number)
                with anyio.move_on_after(args.patience):
                    while len(await client.list(phases=["queued", "running"])) > 0:
                        await anyio.sleep(1)
                took = time.time() - began
                found = [await check(client, ref, *what, args.nap) for ref, what in jobs.items()]
                wrong = [text for text in found if text]
                rows = await client.list()
                queue = await engine.pending(names.queue_of(POOL), ">")
                tasks.cancel_scope.cancel()
    finally:
        for group in (workers, servers):
            for name in list(group.running) if group else ():
                group.kill(name)
        for words in reversed(undo):
            ip(*words)
    wanted = args.fake + args.real
    again = sum(row.state.attempt > 1 for row in rows)
    print(f"{wanted} jobs, {args.nodes} servers, {args.workers} workers: {dict(history.hurt)}")
    ended = sum(row.state.phase == "done" for row in rows)
    print(f"  ended {ended} in {took:.0f} s, {again} of them after another try")
    print(
        f"  wrong or lost: {len(wrong) + abs(wanted - len(rows))}; tickets left: {sum(queue.values())}"
    )
    for text in wrong[:10]:
        print(f"    {text}")
    print("  takeovers: the soonest, the middle one, the latest")
    for kind, seconds in history.takeovers.items():
        middle, few, many = statistics.median(seconds), min(seconds), max(seconds)
        print(f"  {kind}: {len(seconds)} jobs taken over: {few:.1f}, {middle:.1f}, {many:.1f} s")
    return bool(wrong) or len(rows) != wanted or bool(queue)


def main():
    parser = argparse.ArgumentParser()
    for name, default in (
        ("nodes", 3),
        ("workers", 6),
        ("fake", 2000),
        ("real", 200),
        ("seconds", 120),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--patience", type=int, default=600)
    parser.add_argument("--nap", type=float, default=5.0, help="seconds of the longest fake job")
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()
    random.seed(args.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = tempfile.mkdtemp(prefix="obuilder-chaos-", dir="/var/tmp")
    failed = True
    try:
        failed = anyio.run(chaos, args, directory)
    finally:
        if failed:
            print(f"see {directory}")
        else:
            shutil.rmtree(directory)
    sys.exit(failed)


main()
