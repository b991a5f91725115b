"""What the engine keeps, on the fakes: pruning, leases, deleting, and an index that got lost."""

import os
import shutil
import sqlite3
import time
from contextlib import closing

import anyio
import msgspec
import pytest

import places
from obuilder import errors, events
from obuilder.engine.database import SCHEMA, index_path
from obuilder.spec.image import ImageConfig
from workbench import Client, Workbench, run, spec, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench():
    with places.memory() as directory:
        yield Workbench(directory)


def kinds(records):
    return sorted(record.kind for record in records)


TWO = spec(run("mark A; echo A > /a; cat /a"), run("mark B; echo B"))


async def test_prune_takes_what_was_not_used_since(bench):
    began = time.time()
    async with bench.builder() as builder:
        await Client(builder, bench).build(TWO)
        assert await builder.prune(before=began) == []
        assert kinds(await builder.prune(before=time.time() + 60, dry_run=True)) == [
            "layer", "run", "run",
        ]  # fmt: skip
        assert len(await builder.prune(before=time.time() + 60, limit=1)) == 1
        assert len(await builder.prune(before=time.time() + 60)) == 2
        assert (builder.records(), await builder.store.keys()) == ([], [])
        assert os.listdir(os.path.join(bench.store, "logs")) == []
        assert (await Client(builder, bench).build(TWO)).ran == 3


async def test_prune_leaves_what_running_builds_looked_up(bench):
    held = spec(run("echo A > /a"), run("hold here; cat /a"))
    async with bench.builder() as builder, bench.builder() as other:
        await Client(builder, bench).build(spec(run("echo old")))
        client = Client(builder, bench)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.try_, held)
            await bench.came["here"].wait()
            # Neither this process nor another may take what the build stands on.
            gone = [*await builder.prune(), *await other.prune()]
            assert [record.heading for record in gone] == ['/: (run (shell "echo old"))']
            bench.free["here"].set()
        assert client.output == b"A\n"
        assert kinds(await other.prune()) == ["layer", "run", "run"]


async def test_prune_leaves_what_a_build_that_others_left_came_to(bench):
    shared = run("echo A > /a; hold first")
    async with bench.builder() as builder, bench.builder() as other:
        first, second = Client(builder, bench), Client(builder, bench)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.try_, spec(shared))
            await bench.came["first"].wait()
            tasks.start_soon(second.try_, spec(shared, run("hold second; cat /a")))
            await until(lambda: len(second.told(events.StepStarted)) == 2)
            first.scope.cancel()
            await until(lambda: first.scope.cancelled_caught)
            bench.free["first"].set()
            await bench.came["second"].wait()
            assert await other.prune() == []
            bench.free["second"].set()
        assert second.output == b"A\n"
        assert len(await builder.prune()) == 3


async def test_leases_of_the_dead_are_void(bench):
    async with bench.builder() as builder:
        await Client(builder, bench).build(TWO)
    with sqlite3.connect(index_path(bench.store)) as index:
        index.execute("INSERT INTO leases SELECT key, '0123456789abcdef.7' FROM results")
    index.close()
    async with bench.builder() as builder:
        assert len(await builder.prune()) == 3


async def test_deleting_takes_along_what_was_made_from_it(bench):
    async with bench.builder() as builder:
        result = await Client(builder, bench).build(TWO)
        first = builder.record(result.key).base
        assert await builder.delete(first) == 2
        assert kinds(builder.records()) == ["layer"]
        assert await builder.store.keys() == [record.key for record in builder.records()]
        again = Client(builder, bench)
        assert (await again.build(TWO)).key == result.key
        assert bench.ran == ["A", "B", "A", "B"]
        assert again.output == b"A\nB\n"


async def test_a_lost_index_is_made_anew_from_the_store(bench):
    async with bench.builder() as builder:
        await Client(builder, bench).build(TWO)
        with pytest.raises(errors.StepFailed):
            await Client(builder, bench).build(spec(run("exit 1")))
        before = builder.records()
    for name in os.listdir(bench.store):
        if name.startswith("index.sqlite"):
            os.unlink(os.path.join(bench.store, name))
    async with bench.builder() as builder:
        assert [(r.key, r.kind, r.heading, r.base) for r in builder.records()] == [
            (r.key, r.kind, r.heading, r.base) for r in before
        ]
        client = Client(builder, bench)
        assert (await client.build(TWO)).ran == 0
        assert client.output == b"A\nB\n"
    assert kinds(before) == ["failed", "layer", "run", "run"]
    assert bench.ran == ["A", "B"]


async def test_an_index_of_an_older_version_is_taken_over(bench):
    async with bench.builder() as builder:
        result = await Client(builder, bench).build(TWO)
        base = await builder.import_image("mine", "micro")
        before = builder.records()
    older = {
        "name": base.name, "digest": base.digest, "platform": msgspec.to_builtins(base.platform),
        "layers": msgspec.to_builtins(base.layers), "config": {"env": [["A", "b"]], "user": "1"},
    }  # fmt: skip
    with closing(sqlite3.connect(index_path(bench.store), isolation_level=None)) as index:
        index.execute("UPDATE images SET base = ?", (msgspec.msgpack.encode(older),))
        index.executescript(
            "DROP TABLE finals; DROP TABLE blobs; CREATE TABLE specs (x); PRAGMA user_version = 1"
        )
    async with bench.builder() as builder:
        assert [record.key for record in builder.records()] == [record.key for record in before]
        assert builder.images()["mine"].config == ImageConfig(env=(("A", "b"),), user="1")
        again = await Client(builder, bench).build(TWO)
        assert (again.key, again.ran) == (result.key, 0)
        assert builder.layers(print).final(result.key) == again.final, "the new tables are there"
        assert await builder.prune()
    with closing(sqlite3.connect(index_path(bench.store))) as index:
        assert index.execute("PRAGMA user_version").fetchone() == (SCHEMA,)


async def test_a_damaged_index_is_put_aside(bench):
    async with bench.builder() as builder:
        await Client(builder, bench).build(TWO)
    with open(index_path(bench.store), "r+b") as file:
        file.write(b"no index at all " * 64)
    async with bench.builder() as builder:
        assert (await Client(builder, bench).build(TWO)).ran == 0
    with open(index_path(bench.store) + ".damaged", "rb") as file:
        assert file.read(16) == b"no index at all "


async def test_a_reboot_takes_what_was_not_yet_on_disk_and_nothing_else(bench):
    settled = spec(run("mark settled; echo 1"))
    failing = spec(run("mark settled; echo 1"), run("mark volatile; echo 2"), run("exit 1"))
    async with bench.builder() as builder:
        await Client(builder, bench).build(settled)
        with pytest.raises(errors.StepFailed):
            await Client(builder, bench).build(failing)
    with sqlite3.connect(index_path(bench.store)) as index:
        changed = index.execute("UPDATE results SET boot = 'another' WHERE boot IS NOT NULL")
        assert changed.rowcount == 2  # the step after, and the root of the one that failed
    index.close()
    async with bench.builder() as builder:
        assert kinds(builder.records()) == ["layer", "run"]
        assert len(await builder.store.keys()) == 2
        with pytest.raises(errors.StepFailed):
            await Client(builder, bench).build(failing)
    assert bench.ran == ["settled", "volatile", "volatile"]


async def test_a_long_build_is_on_disk_before_it_ends(bench, monkeypatch):
    monkeypatch.setattr("obuilder.engine.builder._SYNC_EVERY", 0.02)
    long = spec(run("mark first; echo 1"), run("hold here; echo 2"))
    async with bench.builder() as builder, anyio.create_task_group() as tasks:
        tasks.start_soon(Client(builder, bench).try_, long)
        await bench.came["here"].wait()
        with anyio.fail_after(5), closing(sqlite3.connect(index_path(bench.store))) as index:
            while index.execute("SELECT 1 FROM results WHERE boot IS NOT NULL").fetchone():
                await anyio.sleep(0.01)
        bench.free["here"].set()
    assert bench.ran == ["first"]


async def test_a_mere_crash_takes_nothing(bench):
    failing = spec(run("mark before; echo 2"), run("exit 1"))
    for _ in range(2):
        async with bench.builder() as builder:
            with pytest.raises(errors.StepFailed):
                await Client(builder, bench).build(failing)
    assert bench.ran == ["before"]


async def test_a_cache_outlives_builds_and_the_first_release_wins(bench):
    def using(script):
        return spec(run(script, "(cache (c (target /c)))"))

    async with bench.builder() as builder:
        await Client(builder, bench).build(using("echo 1 > /c/one"))
        slow, quick = Client(builder, bench), Client(builder, bench)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.try_, using("echo late > /c/two; hold here; cat /c/one"))
            await bench.came["here"].wait()
            await quick.build(using("cat /c/one; echo early > /c/two"))
            bench.free["here"].set()
        assert (slow.output, quick.output) == (b"1\n", b"1\n")
        last = Client(builder, bench)
        await last.build(using("cat /c/one /c/two"))
        assert last.output == b"1\nearly\n"
        assert await builder.delete_volume("c")
        with pytest.raises(errors.StepFailed):
            await last.build(using("cat /c/one  /c/two"))


async def test_results_that_somebody_removed_are_made_anew(bench):
    more = spec(run("mark A; echo A > /a; cat /a"), run("mark B; echo B"), run("cat /a"))
    async with bench.builder() as builder:
        first = await Client(builder, bench).build(TWO)
        for key in await builder.store.keys():
            shutil.rmtree(os.path.join(bench.store, "results", key))
        with pytest.raises(errors.SnapshotMissing) as raised:
            await Client(builder, bench).build(more)
        assert "build again" in raised.value.hint
        assert builder.records() == []
        assert (await Client(builder, bench).build(more)).ran == 4
        shutil.rmtree(os.path.join(bench.store, "results", first.key))
        with pytest.raises(errors.SnapshotMissing):
            await builder.shell(first.key)
        assert (await Client(builder, bench).build(TWO)).ran == 1
