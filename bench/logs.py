"""What logs of jobs cost: how late they are seen, how fast they are read again, how much is kept.

A worker in a process of its own writes 100 logs at a time, a client in this one follows them all;
beside them, by turns, what core NATS alone takes for the same messages: the ratio is obuilder's figure
over that one. Then a log of 100 MB. `scripts/bench logs`, on a machine at rest:

    bench/logs.py [LOGS [LINES-A-SECOND-OF-EACH [SECONDS]]]
"""

import os
import random
import statistics
import subprocess  # noqa: TID251 # the worker is started by hand
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack

import anyio

from obuilder import events
from obuilder.cluster import layout, logs, members, names, server
from obuilder.cluster.client import Client, Ref
from obuilder.cluster.credentials import authority_of, load_credentials, save_credentials
from obuilder.cluster.engine import Engine
from obuilder.values import Key

POOL, CLIENT, WORKER = "p", "zoe", "w"
SETTLED = 2.0
"""Seconds in which the client is done with logs that have ended, and ready for the next ones."""
KEY = Key("0" * 64)
ROUNDS = 3
LINE = 100
"""Bytes of a line, the time in it included."""
LARGE, PIECE = 100_000_000, 40_000


def now():
    """The same clock in all processes."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def line(number):
    return b"%.6f %d " % (now(), number) + b"x" * (LINE - 30) + b"\n"


def written(data):
    """When each line in what came was written."""
    return [float(text.split(b" ", 1)[0]) for text in data.splitlines()]


# --- the worker's side ---------------------------------------------------------------------------


async def work(there, count, rate, seconds):
    """Write logs, then say as much by core NATS, by turns."""
    worker, admin = (load_credentials(f"{there}/{name}.json") for name in (WORKER, "admin"))
    async with Engine.connect(worker) as engine, Engine.connect(admin) as plain:

        async def paced(say):
            await anyio.sleep(random.random() / rate)
            for number in range(int(seconds * rate)):
                due = anyio.current_time() + 1 / rate
                await say(line(number))
                await anyio.sleep(max(0, due - anyio.current_time()))

        async def log(number, turn):
            async with logs.LogWriter(engine, CLIENT, POOL, f"{turn}-{number}", 1) as sink:

                async def say(data):
                    sink(events.Output(KEY, data))

                await paced(say)

        async def core(number):
            await paced(lambda data: plain.publish(f"bench.{number}", data))

        for turn in range(ROUNDS):
            async with anyio.create_task_group() as tasks:
                for number in range(count):
                    tasks.start_soon(log, number, turn)
            await anyio.sleep(SETTLED)
            async with anyio.create_task_group() as tasks:
                for number in range(count):
                    tasks.start_soon(core, number)


# --- the client's side ---------------------------------------------------------------------------


async def latency(there, admin, count, rate, seconds):
    ours, raw = defaultdict(list), []
    argv = [sys.executable, __file__, "work", there, str(count), str(rate), str(seconds)]
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            Engine.connect(load_credentials(f"{there}/{CLIENT}.json"))
        )
        plain = await stack.enter_async_context(Engine.connect(admin))
        said = await stack.enter_async_context(plain.subscribe("bench.*"))
        tasks = await stack.enter_async_context(anyio.create_task_group())

        async def hear():
            async for message in said:
                came = now()
                raw.append(came - written(message.data)[0])

        async def follow(number, turn):
            async with logs.follow(engine, CLIENT, POOL, f"{turn}-{number}") as pieces:
                async for piece in pieces:
                    came = now()
                    for event in piece.events:
                        if isinstance(event, events.Output):
                            ours[turn] += [came - when for when in written(event.data)]
                    if piece.end:
                        return

        tasks.start_soon(hear)
        worker = subprocess.Popen(argv)  # noqa: ASYNC220
        try:
            for turn in range(ROUNDS):
                async with anyio.create_task_group() as followers:
                    for number in range(count):
                        followers.start_soon(follow, number, turn)
            while worker.poll() is None:
                await anyio.sleep(0.1)
        finally:
            worker.kill()
            worker.wait()
        tasks.cancel_scope.cancel()
    wanted = ROUNDS * count * int(seconds * rate)
    found = [late for delays in ours.values() for late in delays]
    assert len(found) == wanted, f"{len(found)} of {wanted} lines came"
    return found, raw


def parts(delays):
    """p50 and p99 in milliseconds."""
    hundredths = statistics.quantiles(delays, n=100)
    return hundredths[49] * 1000, hundredths[98] * 1000


async def large(there, admin, *, cap):
    """A log of 100 MB, written at once and read again: what is kept, and both speeds in MB/s."""
    worker, client = (load_credentials(f"{there}/{name}.json") for name in (WORKER, CLIENT))
    job = f"large-{cap}"
    async with Engine.connect(admin) as watcher:

        async def kept():
            streams = await watcher.streams()
            return streams[names.logs_of(CLIENT)]["state"]["bytes"]

        await watcher.remove(names.logs_of(CLIENT), ">")
        async with Engine.connect(worker) as engine:
            began = now()
            data = b"x" * (PIECE - 1) + b"\n"
            most = 0
            async with logs.LogWriter(engine, CLIENT, POOL, job, 1, cap=cap) as sink:
                for number in range(LARGE // PIECE):
                    sink(events.Output(KEY, data))
                    while sink._size > 4 << 20:  # noqa: SLF001 # so that nothing is left out
                        await anyio.sleep(0.001)
                    if number % 400 == 0:
                        most = max(most, await kept())
            wrote = LARGE / (now() - began)
        most = max(most, await kept())
        speeds, size = [], 0
        for _ in range(ROUNDS):
            async with Client.open(client) as reader:
                began, size = now(), 0
                async with reader.follow(Ref(POOL, job), live=False) as pieces:
                    async for piece in pieces:
                        size += sum(
                            len(event.data)
                            for event in piece.events
                            if isinstance(event, events.Output)
                        )
                speeds.append(size / (now() - began))
    return most / 1e6, size / 1e6, wrote / 1e6, statistics.median(speeds) / 1e6


async def main():
    given = dict(enumerate(sys.argv[1:]))
    count, rate, seconds = int(given.get(0, 100)), float(given.get(1, 5)), float(given.get(2, 5))
    with tempfile.TemporaryDirectory(prefix="obuilder-bench-", dir="/var/tmp") as there:
        async with server.running(there) as admin, Engine.connect(admin) as engine:
            await layout.ensure_pool(engine, authority_of(admin), POOL)
            made = await members.add_client(engine, admin, CLIENT)
            save_credentials(made, f"{there}/{CLIENT}.json")
            made = await members.add_worker(engine, admin, POOL, WORKER)
            save_credentials(made, f"{there}/{WORKER}.json")
            print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
            ours, raw = await latency(there, admin, count, rate, seconds)
            print(f"{count} logs at a time, {rate:g} lines a second each, {len(ours)} lines:")
            (middle, late), (raw_middle, raw_late) = parts(ours), parts(raw)
            print(
                f"  from the worker's write to the client's event: p50 {middle:.1f}, p99 {late:.1f} ms"
            )
            print(
                f"  core NATS alone, of the same lines: p50 {raw_middle:.1f}, p99 {raw_late:.1f} ms"
            )
            print(f"  ratios: {middle / raw_middle:.1f}, {late / raw_late:.1f}")
            for cap in (2 * LARGE, logs.CAP):
                most, size, wrote, read = await large(there, admin, cap=cap)
                print(
                    f"a log of {LARGE / 1e6:.0f} MB, of which {cap / 1e6:.0f} MB may be kept:"
                    f" never more than {most:.1f} MB in the engine; written at {wrote:.0f} MB/s,"
                    f" {size:.1f} MB read again at {read:.0f} MB/s"
                )


if sys.argv[1:2] == ["work"]:
    anyio.run(work, sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
else:
    anyio.run(main)
