"""The Python API as its users meet it: everything comes from `obuilder` itself."""

# ruff: noqa: PT012, ASYNC221 - contexts that are what is tested, programs that are waited for

import os
import re
import subprocess  # programs of users are processes
import sys

import anyio
import pytest

from obuilder import Builder, Settings, errors, events, parse
from program import REPO, running, until

pytestmark = [pytest.mark.anyio, pytest.mark.needs("overlay", "crun")]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def settings(place):
    return Settings(store=place.store)


@pytest.fixture
def context(place):
    path = os.path.join(place.directory, "context")
    os.mkdir(path)
    return path


def spec(*ops):
    text = f"((from micro) (shell /bin/sh -c) {' '.join(ops)})"
    return parse(text.encode(), file="a test").spec


def run(command):
    return f'(run (shell "{command}"))'


async def test_a_builder_leaves_nothing_open(settings, context):
    counts = []
    for number in range(3):
        async with Builder.open(settings) as builder:
            await builder.build(spec(run(f"echo {number}")), context)
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1] == counts[2], counts


async def test_a_build_gives_its_result_and_tells_each_event(settings, context):
    heard = []
    with open(os.path.join(context, "greeting"), "w") as file:
        file.write("hello\n")
    wanted = spec("(copy (src greeting) (dst /in/))", run("cat /in/greeting | tee /out"))
    async with Builder.open(settings) as builder:
        result = await builder.build(wanted, context, sink=heard.append)
        assert (result.ran, result.cached) == (3, 0)
        assert [type(event) for event in heard if isinstance(event, events.Output)] != []
        assert b"".join(e.data for e in heard if isinstance(e, events.Output)).endswith(b"hello\n")
        assert heard[-1] == events.BuildDone(
            result=result.key, seconds=result.seconds, cached=0, ran=3
        )
        async with builder.view(result.key) as root:
            with open(os.path.join(root.path, "out")) as file:
                assert file.read() == "hello\n"
        again = await builder.build(wanted, context)
        assert (again.key, again.ran, again.cached) == (result.key, 0, 3)
        assert builder.log(result.key) == b"hello\n"


async def test_a_build_can_be_read_as_a_stream(settings, context):
    seen = list[str]()
    async with Builder.open(settings) as builder:
        async with builder.stream(spec(run("echo one; echo two")), context) as stream:
            async for event in stream:
                match event:
                    case events.BuildStarted(steps=steps):
                        seen.append(f"{len(steps)} steps")
                    case events.Output(data=data):
                        seen.extend(data.decode().split())
                    case events.BuildDone(ran=ran):
                        seen.append(f"{ran} ran")
        assert (seen[0], seen[-3:]) == ("2 steps", ["one", "two", "2 ran"])


async def test_a_stream_ends_with_what_went_wrong(settings, context):
    heard = []
    async with Builder.open(settings) as builder:
        with pytest.raises(errors.StepFailed) as failed:
            async with builder.stream(spec(run("echo oops; exit 3")), context) as stream:
                heard.extend([event async for event in stream])
        assert (failed.value.status, failed.value.tail, failed.value.code) == (
            3, b"oops\n", "step-failed",
        )  # fmt: skip
        assert isinstance(heard[-1], events.BuildEnded)
        assert heard[-1].code == "step-failed"


async def test_what_the_reader_of_a_stream_raises_stays_as_it_is(settings, context):
    async with Builder.open(settings) as builder:
        with pytest.raises(LookupError, match="mine"):
            async with builder.stream(spec(run("sleep 7361")), context) as stream:
                async for event in stream:
                    if isinstance(event, events.StepStarted) and "7361" in event.heading:
                        raise LookupError("mine")
        assert await builder.store.keys() == [r.key for r in builder.records()]


async def test_leaving_a_stream_cancels_the_build(settings, context):
    wanted = spec(run("echo started; sleep 7362"))
    async with Builder.open(settings) as builder:
        with anyio.fail_after(20):
            async with builder.stream(wanted, context) as stream:
                async for event in stream:
                    if isinstance(event, events.Output) and b"started" in event.data:
                        break
        assert [record.kind for record in builder.records()] == ["layer"]
    assert running("sleep", "7362") == []


async def test_mistakes_come_as_exceptions(settings, context):
    with pytest.raises(errors.SpecError, match="foo"):
        spec("(foo)")
    with pytest.raises(errors.UnknownBackend):
        async with Builder.open(Settings(store="nosuch:/x")):
            pass
    async with Builder.open(settings) as builder:
        with pytest.raises(errors.CopyError, match="missing"):
            await builder.build(spec("(copy (src missing) (dst /x))"), context)
        with pytest.raises(errors.UsageError, match="secret"):
            await builder.build(spec('(run (secrets (tok)) (shell "true"))'), context)
        with pytest.raises(errors.ObuilderError, match="not a directory"):
            await builder.build(spec(), os.path.join(context, "nowhere"))


async def test_cancelling_ends_the_steps_and_keeps_what_was_made(settings, context):
    wanted = spec(run("echo kept > /kept"), run("echo started; sleep 7363"))
    heard = []
    async with Builder.open(settings) as builder:
        started = anyio.Event()

        def sink(event):
            heard.append(event)
            if isinstance(event, events.Output) and b"started" in event.data:
                started.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: builder.build(wanted, context, sink=sink))
            with anyio.fail_after(20):
                await started.wait()
            # The shell has said so, and then starts it.
            await anyio.to_thread.run_sync(until, lambda: running("sleep", "7363"), "sleep runs")
            tasks.cancel_scope.cancel()
        assert running("sleep", "7363") == []
        assert heard[-1].code == "cancelled"
        assert sorted(record.kind for record in builder.records()) == ["layer", "run"]
        assert os.listdir(os.path.join(settings.directory, "drafts")) == []
        result = await builder.build(spec(run("echo kept > /kept")), context)
        assert result.ran == 0


async def test_builds_at_the_same_time_share_their_steps(settings, context):
    shared = run("sleep 0.3; cat /proc/sys/kernel/random/uuid | tee /id")
    results, outputs = {}, {"a": b"", "b": b""}
    async with Builder.open(settings) as builder:

        async def build(name):
            def sink(event):
                if isinstance(event, events.Output):
                    outputs[name] += event.data

            wanted = spec(shared, run(f"echo {name} > /name"))
            results[name] = await builder.build(wanted, context, sink=sink)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(build, "a")
            tasks.start_soon(build, "b")
        assert results["a"].key != results["b"].key
        assert len(builder.records()) == 4  # the base, the shared step, one of each
        uuids = [re.findall(rb"[0-9a-f]{8}-[0-9a-f-]{27}", text) for text in outputs.values()]
        assert len(uuids[0]) == 1
        assert uuids[0] == uuids[1]


async def test_one_of_two_can_be_cancelled(settings, context):
    wanted = spec(run("echo started; sleep 0.7; echo done"))
    async with Builder.open(settings) as builder:
        leave, result = anyio.CancelScope(), []

        def sink(event):
            if isinstance(event, events.Output) and b"started" in event.data:
                leave.cancel()

        async def leaver():
            with leave:
                await builder.build(wanted, context, sink=sink)

        async def stayer():
            result.append(await builder.build(wanted, context))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leaver)
            tasks.start_soon(stayer)
        assert leave.cancelled_caught
        assert builder.log(result[0].key) == b"started\ndone\n"


async def test_the_page_of_the_api_has_a_program_that_runs(place, context):
    text = (REPO / "docs" / "api.md").read_text()
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    with open(os.path.join(context, "obuilder.spec"), "w") as file:
        file.write('((from micro) (run (shell "echo hello")))')
    done = subprocess.run(
        [sys.executable, "-c", program.replace("/var/lib/obuilder", f"{place.directory}/store")],
        cwd=context, env={**os.environ, "PYTHONPATH": str(REPO / "src")},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hello" in done.stdout


async def test_names_are_loaded_when_they_are_used():
    program = (
        "import sys, obuilder; before = set(sys.modules); obuilder.events; obuilder.Settings;"
        "assert 'anyio' not in sys.modules and 'obuilder.engine.builder' not in sys.modules;"
        "from obuilder import *; assert Builder.open and Result and parse and Spec and errors;"
        "assert set(obuilder.__all__) <= set(dir(obuilder))"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPO / "src")},
        check=True,
    )
    import obuilder

    with pytest.raises(AttributeError, match="no attribute 'Bilder'"):
        _ = obuilder.Bilder


async def test_layers_of_named_images_are_kept_and_of_no_others(settings, context, place):
    root = os.path.join(place.directory, "root")
    os.mkdir(root)
    bases = []
    async with Builder.open(settings) as builder:
        for text in ("old", "new"):
            with open(os.path.join(root, "file"), "w") as file:
                file.write(text)
            bases.append(await builder.import_image("mine", f"rootfs:{root}"))
        await builder.import_image("other", f"rootfs:{root}")
        assert len(builder.records()) == 2
        await builder.prune()  # the name went to another image
        (record,) = builder.records()
        assert bases[0].digest != bases[1].digest
        builder.remove_image("mine")
        await builder.prune()  # it has another name
        assert builder.records() == [record]
        builder.remove_image("other")
        await builder.prune()
        assert builder.records() == []
