"""`obuilder worker` as a process, on a real store: killed, told to stop, cut off from the cluster."""

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import AsyncIterator

import anyio
import pytest

import clusters
import program
from clusters import Cluster
from obuilder.cluster import layout, names
from obuilder.cluster.client import Wishes
from obuilder.cluster.credentials import save_credentials
from obuilder.cluster.messages import Build
from obuilder.cluster.server import Local
from workers import Yard

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("nats"), pytest.mark.needs("overlay")]
TIED = ("setpriv", "--pdeathsig", "KILL")
STEP = '((from micro) (run (shell "{}")))'


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with clusters.running() as ready:
        yield ready


class Workers:
    """Processes, killed with the test."""

    def __init__(self, yard: Yard, directory: str) -> None:
        self._yard, self._directory = yard, directory
        self.started: list[program.Process] = []

    async def start(self, name: str, *options: str) -> program.Process:
        """A worker that takes jobs."""
        path = f"{self._directory}/{name}.json"
        save_credentials(await self._yard.cluster.worker(name, self._yard.pool), path)
        with open(f"{path}.log", "wb") as log:
            process = program.start(
                "worker", "--cluster", path, "--store", f"overlayfs:{self._directory}/{name}",
                "--capacity", "2", "--free", "0", *options, cwd=self._directory,
                streams={"stdin": subprocess.DEVNULL, "stderr": log}, before=TIED,
            )  # fmt: skip
        self.started.append(process)
        await self._yard.until(lambda: b"takes jobs" in self.said(name), seconds=30)
        return process

    def said(self, name: str) -> bytes:
        with open(f"{self._directory}/{name}.json.log", "rb") as file:
            return file.read()


@pytest.fixture
async def workers(yard, place) -> AsyncIterator[Workers]:
    made = Workers(yard, place.directory)
    try:
        yield made
    finally:
        for process in made.started:
            process.kill()
            process.wait()


async def _build(yard: Yard, text: str, **wishes) -> object:
    return await yard.client.submit(Build(text=text), yard.pool, wishes=Wishes(**wishes))


async def _runs(yard: Yard, ref) -> bool:
    return (await yard.client.state(ref)).phase == "running"


async def test_a_killed_workers_job_runs_elsewhere(yard, workers) -> None:
    for urgent in (True, False):  # so that the test need not wait for half a minute
        await yard.admin.ensure_consumer(
            names.queue_of(yard.pool),
            {**layout._CONSUMER, "durable_name": names.waiting(yard.client.name, urgent=urgent),
             "filter_subject": names.ticket(yard.client.name, yard.pool, urgent=urgent),
             "ack_wait": 3_000_000_000},
        )  # fmt: skip
    first = await workers.start("w1")
    ref = await _build(yard, STEP.format("echo began; sleep 2; echo whole"))
    await yard.until(lambda: _runs(yard, ref), seconds=30)
    first.kill()
    first.wait()
    # Nor until its name is nobody's.
    await yard.admin.remove(names.state_of(yard.pool), names.worker(yard.pool, "w1"))
    await workers.start("w2")
    with anyio.fail_after(60):
        state = await yard.client.wait(ref)
    assert (state.phase, state.worker, state.attempt) == ("done", "w2", 2)
    said = b"".join(getattr(event, "data", b"") for event in await yard.log(ref))
    assert said == b"began\nwhole\n"


async def test_a_job_outlives_a_break_of_the_network(yard, workers) -> None:
    await workers.start("w1")
    ref = await _build(yard, STEP.format("echo one; sleep 2; echo two"))
    await yard.until(lambda: _runs(yard, ref), seconds=30)
    local = Local(yard.cluster.directory)
    server = local.pid()
    assert server is not None
    os.kill(server, signal.SIGKILL)
    await yard.until(lambda: local.pid() is None)
    await anyio.sleep(2.5)  # it ends meanwhile
    again = local.start(local.prepare(), tied=True)
    try:
        with anyio.fail_after(40):
            state = await yard.client.wait(ref)
        assert (state.phase, state.attempt) == ("done", 1)
        said = b"".join(getattr(event, "data", b"") for event in await yard.log(ref))
        assert said == b"one\ntwo\n"
    finally:
        again.discard()


async def test_signals_end_a_worker_and_other_names_are_refused(yard, workers, place) -> None:
    process = await workers.start("w1")
    path = f"{place.directory}/w1.json"
    other = program.start("worker", "--cluster", path, "--name", "w2", cwd=place.directory)
    again = program.start("worker", "--cluster", path, "--store", f"overlayfs:{place.directory}/x",
                          cwd=place.directory)  # fmt: skip
    assert (await anyio.to_thread.run_sync(program.finish, other)).status == 2
    ended = await anyio.to_thread.run_sync(program.finish, again)
    assert (ended.status, "a worker called w1" in ended.err) == (6, True)
    ref = await _build(yard, STEP.format("sleep 2; echo done"))
    await yard.until(lambda: _runs(yard, ref), seconds=30)
    process.terminate()
    with anyio.fail_after(20):
        state = await yard.client.wait(ref)
        assert state.phase == "done"
        assert await anyio.to_thread.run_sync(process.wait) == 0
    # Twice: what runs is given back.
    process = await workers.start("w1")
    ref = await _build(yard, STEP.format("sleep 60; echo late"))
    await yard.until(lambda: _runs(yard, ref), seconds=30)
    process.terminate()
    await yard.until(lambda: b"a signal ended it" in workers.said("w1"), seconds=30)
    process.terminate()
    with anyio.fail_after(30):
        assert await anyio.to_thread.run_sync(process.wait) == 0
    assert (await yard.client.state(ref)).phase == "queued"


async def test_secrets_artifacts_and_updates(yard, workers, tmp_path) -> None:
    hook = tmp_path / "prepared"
    process = await workers.start("w1", "--update-command", f"touch {hook}")
    text = (
        "((from micro) (run (secrets (token (target /t))) (network none)"
        ' (shell "mkdir /out; wc -c < /t > /out/size")))'
    )
    work = Build(text=text, artifacts=("/out/size",), push=())
    ref = await yard.client.submit(work, yard.pool, wishes=Wishes(secrets={"token": b"four"}))
    outcome = await yard.client.result(ref)
    assert outcome.artifacts is not None
    sent = io.BytesIO(await yard.client.blobs.get(outcome.artifacts))
    with tarfile.open(fileobj=sent) as archive:
        file = archive.extractfile("out/size")
        assert file is not None
        assert file.read().strip() == b"4"
    pushed = Build(text="((from micro))", push=("127.0.0.1:1/x/y:1",))
    state = await yard.ended(await yard.client.submit(pushed, yard.pool))
    assert (state.outcome.code, "--allow-push" in state.outcome.message) == ("refused", True)
    answer = await yard.admin.request(names.control(yard.pool, "w1", "update"), b"", seconds=20)
    assert b"restarts" in answer
    with anyio.fail_after(20):
        assert await anyio.to_thread.run_sync(process.wait) == 0
    assert hook.exists()


async def test_who_is_told_to_end_while_the_cluster_is_away_ends(yard, workers) -> None:
    worker = await workers.start("w1")
    local = Local(yard.cluster.directory)
    server = local.pid()
    assert server is not None
    os.kill(server, signal.SIGKILL)
    await yard.until(lambda: local.pid() is None)
    await anyio.sleep(7.5)  # it looks for jobs meanwhile, and asks for forty seconds
    worker.terminate()
    with anyio.fail_after(20):
        assert await anyio.to_thread.run_sync(worker.wait) == 0
    assert b"error" not in workers.said("w1")
