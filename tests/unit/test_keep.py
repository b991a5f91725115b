"""Builds that keep only what stages and they themselves come to, on the fakes."""

import os
import time

import anyio
import pytest

import places
from obuilder import Settings, errors, events
from obuilder.engine import prune
from obuilder.engine.cached import look, replay
from workbench import Client, Workbench, run, spec, until

pytestmark = pytest.mark.anyio

SIDE = (
    f"(build side ((from scratch) (shell /bin/sh -c) {run('mark S; echo s > /s')} {run('mark T')}))"
)
OTHER = f"(build other ((from scratch) (shell /bin/sh -c) {run('mark O; echo o > /o')}))"
COPY = "(copy (from (build side)) (src /s) (dst /s))"
WHOLE = spec(run("mark A"), COPY, run("mark B"), run("mark C; echo c"), stages=SIDE)


@pytest.fixture
def bench():
    with places.memory() as directory:
        yield Workbench(directory)


def marks(builder):
    """What the results that are kept did."""
    headings = [record.heading for record in builder.records() if record.kind != "layer"]
    return sorted(heading.partition("mark ")[2][:1] or "copy" for heading in headings)


async def test_what_is_on_the_way_goes_after_the_build(bench):
    async with bench.builder(keep="stages") as builder:
        first = await Client(builder, bench).build(WHOLE)
        assert marks(builder) == ["C", "T"]
        assert set(await builder.store.keys()) == {record.key for record in builder.records()}
        assert len(os.listdir(os.path.join(bench.store, "logs"))) == len(builder.records())
        client = Client(builder, bench)
        again = await client.build(WHOLE)
        assert (again.key, again.ran, again.cached) == (first.key, 0, 7)
        assert client.output == b"c\n"
        # A change makes all that is not there anew, but no stage.
        del bench.ran[:]
        changed = spec(run("mark A"), COPY, run("mark B"), run("mark D"), stages=SIDE)
        await Client(builder, bench).build(changed)
        assert bench.ran == ["A", "B", "D"]
        assert marks(builder) == ["C", "D", "T"]


async def test_such_a_build_is_replayed_without_a_builder(bench):
    settings = Settings(store=f"copy:{bench.store}", keep="stages")
    async with bench.builder(keep="stages") as builder:
        built = await Client(builder, bench).build(WHOLE)
    heard = []
    seen = replay(WHOLE, bench.context, settings, heard.append)
    assert seen is not None
    assert (seen.key, seen.ran, seen.cached) == (built.key, 0, 7)
    changed = spec(run("mark A"), COPY, run("mark B"), stages=SIDE)
    assert replay(changed, bench.context, settings, heard.append) is None


async def test_what_another_build_keeps_stays(bench):
    async with bench.builder() as builder, bench.builder(keep="stages") as passing:
        await Client(builder, bench).build(spec(run("mark A"), run("mark B")))
        await Client(passing, bench).build(spec(run("mark A"), run("mark C"), run("mark D")))
        assert marks(builder) == ["A", "B", "D"]


async def test_what_another_build_is_about_to_keep_stays(bench):
    async with bench.builder() as builder, bench.builder(keep="stages") as passing:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                Client(builder, bench).try_, spec(run("mark A"), run("hold here"), run("mark B"))
            )
            await bench.came["here"].wait()
            await Client(passing, bench).build(spec(run("mark A"), run("mark C")))
            assert "A" in marks(builder)
            bench.free["here"].set()
        assert marks(builder) == ["A", "B", "C", "copy"]  # "copy": the step that was held


@pytest.mark.parametrize("keep", ["all", "stages"])
async def test_what_another_build_only_waits_for_goes_with_the_last(bench, keep):
    first = spec(run("mark A"), run("hold one"), run("mark B"))
    second = spec(run("mark A"), run("hold two"), run("mark C"))
    async with bench.builder(keep="stages") as builder, bench.builder(keep=keep) as other:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Client(builder, bench).try_, first)
            tasks.start_soon(Client(other, bench).try_, second)
            await bench.came["one"].wait()
            await bench.came["two"].wait()
            bench.free["one"].set()
            with anyio.fail_after(10):
                while "B" not in marks(builder):
                    await anyio.sleep(0.01)
            bench.free["two"].set()
        expected = ["B", "C"] if keep == "stages" else ["A", "B", "C", "copy"]
        assert marks(builder) == expected
        assert bench.ran.count("A") == 1


async def test_what_is_waited_for_is_not_dropped_before_it_is_had(bench):
    both = run("hold a; mark A")
    async with bench.builder(keep="stages") as builder, bench.builder(keep="stages") as other:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Client(builder, bench).try_, spec(both, run("mark B")))
            await bench.came["a"].wait()
            client = Client(other, bench)
            tasks.start_soon(client.try_, spec(both, run("mark C")))
            await until(lambda: len(client.told(events.StepStarted)) == 2)
            await anyio.sleep(0.1)
            bench.free["a"].set()
        assert sorted(bench.ran) == ["A", "B", "C"]
        assert len(marks(builder)) == 2


async def test_what_a_build_comes_by_is_kept_even_if_it_fails(bench):
    async with bench.builder() as builder, bench.builder(keep="stages") as passing:
        async with anyio.create_task_group() as tasks:
            first = spec(run("mark A"), run("hold here"), run("mark B"))
            tasks.start_soon(Client(passing, bench).try_, first)
            await bench.came["here"].wait()
            await Client(builder, bench).try_(spec(run("mark A"), run("exit 1")))
            bench.free["here"].set()
        assert "A" in marks(builder)


async def test_what_a_killed_build_was_about_to_drop_goes_with_the_next(bench, monkeypatch):
    settings = Settings(store=f"copy:{bench.store}", keep="stages")

    async def killed(*_, **__):
        raise errors.StoreError("killed")

    async with bench.builder(keep="stages") as builder:
        monkeypatch.setattr(prune, "drop_unused", killed)
        client = Client(builder, bench)
        await client.build(WHOLE)
        assert any("could not be deleted: killed" in note.text for note in client.told(events.Note))
        monkeypatch.undo()
        assert len(marks(builder)) == 6
        assert replay(WHOLE, bench.context, settings, client.heard.append) is None
        assert (await client.build(WHOLE)).ran == 0
        assert marks(builder) == ["C", "T"]


async def test_what_only_the_store_knows_of_is_not_kept_either(bench):
    async with bench.builder(keep="stages") as builder:
        await Client(builder, bench).try_(spec(run("mark A"), run("exit 1")))
    for name in os.listdir(bench.store):
        if name.startswith("index"):
            os.unlink(os.path.join(bench.store, name))
    async with bench.builder(keep="stages") as builder:
        assert "A" in marks(builder)
        await Client(builder, bench).build(spec(run("mark A"), run("mark B")))
        assert bench.ran == ["A", "B"]
        assert [mark for mark in marks(builder) if mark in "AB"] == ["B"]


async def test_who_comes_while_others_are_pruned_is_not_taken_for_dead(bench):
    async with bench.builder() as builder, bench.builder() as other:
        await Client(builder, bench).build(spec(run("mark A"), run("mark B")))
        await Client(builder, bench).build(spec(run("mark C")))
        delete = builder.store.delete
        async with anyio.create_task_group() as tasks:

            async def delete_while_another_begins(key):
                builder.store.delete = delete
                wanted = spec(run("mark A"), run("mark B"), run("hold here"), run("mark D"))
                tasks.start_soon(Client(other, bench).try_, wanted)
                await bench.came["here"].wait()
                await delete(key)

            builder.store.delete = delete_while_another_begins
            await builder.prune()
            assert len(marks(builder)) > 0
            bench.free["here"].set()
        assert bench.ran.count("D") == 1


async def test_what_is_not_needed_is_not_to_run(bench):
    settings = Settings(store=f"copy:{bench.store}")
    async with bench.builder(keep="stages") as builder:
        await Client(builder, bench).build(WHOLE)
    plan, cached = look(WHOLE, bench.context, settings)
    assert cached == plan.steps.keys()
    changed = spec(run("mark A"), COPY, run("mark B"), stages=SIDE)
    plan, cached = look(changed, bench.context, settings)
    to_run = [step.heading for key, step in plan.steps.items() if key not in cached]
    assert len(to_run) == 3
    assert not any("mark T" in heading or "mark S" in heading for heading in to_run)


async def test_stages_of_one_name_are_all_kept(bench):
    inner = "(build dev ((from scratch) (shell /bin/sh -c) {}))"
    outer = "(build {} (" + inner + "(from scratch) (copy (from (build dev)) (src /f) (dst /f))))"
    stages = "".join(outer.format(x, run(f"mark {x}; echo {x} > /f")) for x in "XY")
    copies = "".join(f"(copy (from (build {x})) (src /f) (dst /{x}))" for x in "XY")
    async with bench.builder(keep="stages") as builder:
        await Client(builder, bench).build(spec(copies, run("mark Z"), stages=stages))
        assert marks(builder) == ["X", "Y", "Z", "copy", "copy"]


async def test_a_build_that_failed_goes_on_where_it_was(bench):
    async with bench.builder(keep="stages") as builder:
        with pytest.raises(errors.StepFailed):
            await Client(builder, bench).build(spec(run("mark A"), run("mark B"), run("exit 1")))
        del bench.ran[:]
        await Client(builder, bench).build(spec(run("mark A"), run("mark B"), run("mark C")))
        assert bench.ran == ["C"]
        assert [mark for mark in marks(builder) if mark in "ABC"] == ["C"]


async def test_what_is_not_kept_is_pruned_before_all_that_is(bench):
    async with bench.builder(keep="stages") as builder:
        with pytest.raises(errors.StepFailed):
            await Client(builder, bench).build(spec(run("mark A"), run("exit 1")))
        await Client(builder, bench).build(spec(run("mark B")))
        hour = 3600
        assert await builder.prune(before=time.time() - hour, dry_run=True) == []
        gone = await builder.prune(limit=2)
        assert [record.kind for record in gone] == ["failed", "run"]
        assert marks(builder) == ["B"]


async def test_every_stage_that_is_copied_from_is_kept(bench):
    copies = f"{COPY} (copy (from (build other)) (src /o) (dst /o))"
    async with bench.builder(keep="stages") as builder:
        await Client(builder, bench).build(spec(copies, run("mark Z"), stages=SIDE + OTHER))
        assert marks(builder) == ["O", "T", "Z"]
