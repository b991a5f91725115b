"""The engine on the fakes: builds that are shared, cancelled, refused, cut off and run side by side."""

import os

import anyio
import pytest

import places
from obuilder import errors, events
from obuilder.engine.inflight import InFlight
from obuilder.values import Key
from workbench import Client, Workbench, run, spec, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench():
    with places.memory() as directory:
        yield Workbench(directory)


@pytest.fixture
async def builder(bench):
    async with bench.builder() as builder:
        yield builder


@pytest.fixture
def client(builder, bench):
    return lambda: Client(builder, bench)


async def content(builder, key, name):
    async with builder.view(key) as root:
        with open(os.path.join(root.path, name)) as file:
            return file.read()


# --- one build --------------------------------------------------------------------------------------


async def test_two_steps_on_an_image_and_again_from_cache(bench, builder, client):
    os.mkdir(os.path.join(bench.context, "image"))
    bench.write("image/base", "from the image\n")
    wanted = spec(
        "(comment begin)",
        run("echo first; cat base >> out"),
        "(env WORD second)",
        run("echo $WORD >> out; cat out"),
        base=f"rootfs:{bench.context}/image",
    )
    first, second = client(), client()
    result = await first.build(wanted)
    assert (result.ran, result.cached) == (3, 0)
    assert await content(builder, result.key, "out") == "from the image\nsecond\n"
    assert first.output == b"first\nfrom the image\nsecond\n"
    headings = [event.heading for event in first.told(events.StepStarted)]
    assert headings[0].startswith("(from rootfs:")
    assert "echo first" in headings[1]
    assert first.told(events.StepStarted)[1].notes[-1] == "/: (comment begin)"
    assert len(first.told(events.StepDone)) == 3

    again = await second.build(wanted)
    assert (again.key, again.ran, again.cached) == (result.key, 0, 3)
    assert second.output == first.output
    assert len(second.told(events.StepCached)) == 3
    assert second.told(events.StepDone) == []


async def test_a_failed_step_keeps_its_root_and_log_but_no_result(bench, builder, client):
    wanted = spec(run("mark tried; echo left > file; echo said; exit 3"))
    with pytest.raises(errors.StepFailed) as failed:
        await client().build(wanted)
    assert (failed.value.status, failed.value.tail) == (3, b"said\n")
    (record,) = [record for record in builder.records() if record.kind == "failed"]
    assert await content(builder, record.key, "file") == "left\n"
    assert builder.log(record.key) == b"said\n"
    with pytest.raises(errors.StepFailed):
        await client().build(wanted)
    assert bench.ran == ["tried", "tried"]


async def test_the_root_of_a_failed_step_is_kept_only_if_wanted(bench):
    async with bench.builder(keep_failed=False) as builder:
        with pytest.raises(errors.StepFailed):
            await Client(builder, bench).build(spec(run("echo said; exit 3")))
        (record,) = [record for record in builder.records() if record.kind == "failed"]
        assert builder.log(record.key) == b"said\n"
        assert record.key not in await builder.store.keys()


async def test_a_step_is_stopped_at_its_time_limit(client):
    limited = run("echo said; sleep 100", "(limits (time 0.2))")
    with pytest.raises(errors.StepTimedOut, match=r"0\.2 s") as late:
        await client().build(spec(limited))
    assert late.value.tail == b"said\n"


async def test_what_the_sandbox_lacks_is_refused_before_anything_runs(bench, builder, client):
    for more, what in (("(network host)", "network"), ("(limits (pids 5))", "pids")):
        with pytest.raises(errors.Unsupported, match=what):
            await client().build(spec(run("mark before"), run("true", more)))
    assert builder.records() == []
    assert bench.ran == []


# --- secrets ---------------------------------------------------------------------------------------


async def test_secrets_are_shown_masked_and_no_part_of_the_key(bench, builder, client):
    shown = "(secrets (token) (other (target /srv/x)))"
    wanted = spec(run("mark ran; cat /run/secrets/token /srv/x > got; cat got", shown))
    first, second = client(), client()
    result = await first.build(wanted, token=b"hunter2", other=b"-word")
    assert await content(builder, result.key, "got") == "hunter2-word"
    assert b"hunter2" not in first.output
    assert b"hunter2" not in builder.log(result.key)
    heading = first.told(events.StepStarted)[-1].heading
    assert "token (target /run/secrets/token)" in heading
    assert "other (target /srv/x)" in heading
    assert (await second.build(wanted, token=b"another", other=b"one")).key == result.key
    assert bench.ran == ["ran"]


async def test_a_secret_that_nobody_gave_is_missed_before_anything_runs(bench, builder, client):
    wanted = spec(run("mark before"), run("true", "(secrets (token))"))
    with pytest.raises(errors.UsageError, match="couldn't find a value for the requested secret"):
        await client().build(wanted, other=b"x")
    assert bench.ran == []
    assert builder.records() == []


# --- stages -----------------------------------------------------------------------------------------


async def test_a_stage_that_nobody_needs_is_not_built(bench, client):
    stages = f"(build used ((from scratch) (shell sh -c) {run('mark used; echo 1 > /f')}))"
    stages += f"(build unused ((from scratch) (shell sh -c) {run('mark unused')}))"
    await client().build(spec("(copy (from (build used)) (src /f) (dst /g))", stages=stages))
    assert bench.ran == ["used"]


def _two_stages():
    stages = "".join(
        f"(build {name} ((from scratch) (shell sh -c) {run(f'hold {name}; echo {name} > /f')}))"
        for name in ("a", "b")
    )
    copies = [f"(copy (from (build {name})) (src /f) (dst /{name}))" for name in ("a", "b")]
    return spec(*copies, run("cat /a /b"), stages=stages)


async def test_stages_that_do_not_depend_on_each_other_run_at_the_same_time(bench, client):
    one = client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.try_, _two_stages())
        with anyio.fail_after(10):
            await bench.came["a"].wait()
            await bench.came["b"].wait()
        bench.free["b"].set()
        bench.free["a"].set()
    assert one.output == b"a\nb\n"


async def test_no_more_steps_run_at_one_time_than_allowed(bench):
    async with bench.builder(parallel=1) as builder:
        one = Client(builder, bench)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.try_, _two_stages())
            with anyio.fail_after(10):
                await bench.came["a"].wait()
            await anyio.wait_all_tasks_blocked()
            assert not bench.came["b"].is_set()
            bench.free["a"].set()
            bench.free["b"].set()
        assert one.output == b"a\nb\n"


async def test_what_comes_after_a_stage_rebuilt_to_the_same_files_is_cached(bench, client):
    def wanted():
        made = "(copy (src input) (dst /input))" + run("mark stage; echo same > /out")
        stages = f"(build stage ((from scratch) (shell sh -c) {made}))"
        copied = "(copy (from (build stage)) (src /out) (dst /got))"
        return spec(copied, run("mark after; cat /got"), stages=stages)

    bench.write("input", "1")
    first = await client().build(wanted())
    bench.write("input", "2, which makes no difference")
    second = await client().build(wanted())
    assert bench.ran == ["stage", "after", "stage"]
    assert second.key == first.key
    assert second.ran == 2
    bench.write("input", "1")
    assert (await client().build(wanted())).ran == 0


# --- builds that share steps -------------------------------------------------------------------------


async def test_a_step_that_two_builds_need_is_made_once_and_both_see_its_log(bench, client):
    shared = run("mark shared; echo one; hold here; echo two")
    clients = {name: client() for name in ("B", "C")}
    async with anyio.create_task_group() as tasks:
        for name, each in clients.items():
            tasks.start_soon(each.try_, spec(shared, run(f"mark {name}; echo {name}")))
        await until(lambda: [each.output for each in clients.values()] == [b"one\n", b"one\n"])
        bench.free["here"].set()
    assert clients["B"].output == b"one\ntwo\nB\n"
    assert clients["C"].output == b"one\ntwo\nC\n"
    assert sorted(bench.ran) == ["B", "C", "shared"]
    assert clients["B"].result.key != clients["C"].result.key


async def test_who_shares_a_step_shares_its_failure(bench, client):
    failing = run("mark failing; echo said; hold here; exit 9")
    clients = [client(), client()]
    async with anyio.create_task_group() as tasks:
        for number, each in enumerate(clients):
            tasks.start_soon(each.try_, spec(failing, run(f"mark {number}")))
        await until(lambda: [each.output for each in clients] == [b"said\n", b"said\n"])
        bench.free["here"].set()
    assert bench.ran == ["failing"]
    for each in clients:
        assert isinstance(each.error, errors.StepFailed)
        assert (each.error.status, each.error.tail, each.output) == (9, b"said\n", b"said\n")
        assert each.heard[-1].code == "step-failed"


async def test_a_step_that_fails_while_another_client_comes_fails_for_both(bench, client):
    wanted = spec(run("hold here; exit 9"))
    first, second = client(), client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.try_, wanted)
        await bench.came["here"].wait()
        bench.free["here"].set()
        tasks.start_soon(second.try_, wanted)
    assert [each.error.status for each in (first, second)] == [9, 9]


async def test_two_processes_make_a_step_once_and_the_follower_sees_the_whole_log(bench, builder):
    wanted = spec(run("mark made; echo one; hold here; echo two"))
    async with bench.builder() as other:
        first, second = Client(builder, bench), Client(other, bench)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.try_, wanted)
            await bench.came["here"].wait()
            tasks.start_soon(second.try_, wanted)
            await until(lambda: second.output == b"one\n")
            # The log gets its final name while it is followed.
            bench.free["here"].set()
    assert first.output == second.output == b"one\ntwo\n"
    assert second.result.key == first.result.key
    assert bench.ran == ["made"]
    assert len(second.told(events.StepCached)) == 2


async def test_a_follower_takes_over_when_the_other_process_gives_up(bench, builder):
    wanted = spec(run("mark made; echo one; hold here; echo two"))
    async with bench.builder() as other:
        first, second = Client(builder, bench), Client(other, bench)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.try_, wanted)
            await bench.came["here"].wait()
            tasks.start_soon(second.try_, wanted)
            await until(lambda: second.output == b"one\n")
            first.scope.cancel()
            await until(lambda: len(bench.ran) == 2)
            bench.free["here"].set()
        assert other.log(second.result.key) == b"one\ntwo\n"
    assert bench.ran == ["made", "made"]
    assert second.output.endswith(b"one\ntwo\n")
    assert second.result.ran == 1


# --- cancelling --------------------------------------------------------------------------------------


async def test_one_client_cancels_and_nothing_is_left(bench, builder, client):
    one = client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.try_, spec(run("echo kept > /kept"), run("echo said; hold here")))
        await bench.came["here"].wait()
        one.scope.cancel()
    assert one.scope.cancelled_caught
    assert bench.cut == ["here"]
    assert one.heard[-1].code == "cancelled"
    assert [record.kind for record in builder.records()] == ["run", "layer"]
    for folder in ("drafts", "locks", "run"):
        assert os.listdir(os.path.join(bench.store, folder)) == []


async def test_when_one_of_two_cancels_the_other_gets_its_result(bench, client):
    wanted = spec(run("mark made; echo one; hold here; echo two"))
    first, second = client(), client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.try_, wanted)
        await bench.came["here"].wait()
        tasks.start_soon(second.try_, wanted)
        await until(lambda: second.output == b"one\n")
        first.scope.cancel()
        await until(lambda: first.scope.cancelled_caught)
        bench.free["here"].set()
    assert (bench.ran, bench.cut) == (["made"], [])
    assert second.output == b"one\ntwo\n"
    assert second.result.ran == 1


async def test_when_both_cancel_the_step_is_cancelled(bench, builder, client):
    wanted = spec(run("echo said; hold here"))
    clients = [client(), client()]
    async with anyio.create_task_group() as tasks:
        for each in clients:
            tasks.start_soon(each.try_, wanted)
        await until(lambda: [each.output for each in clients] == [b"said\n", b"said\n"])
        for each in clients:
            assert bench.cut == []
            each.scope.cancel()
            await until(lambda each=each: each.scope.cancelled_caught)
    assert bench.cut == ["here"]
    assert [record.kind for record in builder.records()] == ["layer"]


async def test_leaving_an_old_failed_step_does_not_touch_the_one_that_took_its_place():
    made, scope, free = [], anyio.CancelScope(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        inflight, key = InFlight(tasks), Key("0" * 64)

        async def failing(making):
            made.append("failing")
            # As this one ends, the next comes and who wanted it leaves.
            tasks.start_soon(wait, "second")
            scope.cancel()
            raise errors.StepFailed("no")

        async def lasting(making):
            made.append("lasting")
            await free.wait()

        async def leave():
            with scope:
                await inflight.share(key, failing, lambda _: None, "first")

        async def wait(name):
            await inflight.share(key, lasting, lambda _: None, name)
            made.append(name)

        tasks.start_soon(leave)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(wait, "third")
        await anyio.wait_all_tasks_blocked()
        assert made == ["failing", "lasting"]
        free.set()
    assert sorted(made[2:]) == ["second", "third"]


async def test_who_comes_while_a_step_is_being_cancelled_waits_and_starts_afresh(bench, client):
    wanted = spec(run("mark made; echo said; hold here"))
    bench.cleared["here"] = anyio.Event()
    first, second = client(), client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.try_, wanted)
        await bench.came["here"].wait()
        first.scope.cancel()
        await until(lambda: bench.cut)
        tasks.start_soon(second.try_, wanted)
        await until(lambda: len(second.told(events.StepStarted)) == 2)
        await anyio.wait_all_tasks_blocked()
        assert (bench.ran, bench.cut, second.output) == (["made"], ["here"], b"")
        bench.free["here"].set()
        bench.cleared.pop("here").set()
    assert bench.ran == ["made", "made"]
    assert second.output == b"said\n"
    assert second.result.ran == 1
