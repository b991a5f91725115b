"""The client's side on the real engine: contexts, logs, jobs, and what administrators do with them.

Who plays the worker here writes what one writes, with a worker's credentials.
"""

import os
import pathlib
import stat
import time
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

import clusters
from obuilder import events
from obuilder.cluster import contexts, logs, names
from obuilder.cluster.admin import Admin
from obuilder.cluster.blobs import PIECE, Blobs
from obuilder.cluster.client import Client, Wishes
from obuilder.cluster.contexts import Contents, Listed, Listing, Tree
from obuilder.cluster.credentials import authority_of
from obuilder.cluster.doctor import examine
from obuilder.cluster.engine import Engine
from obuilder.cluster.messages import (
    Answer,
    Build,
    Outcome,
    Presence,
    Running,
    State,
    decode,
    encode,
)
from obuilder.engine.inputs import Contexts
from obuilder.errors import ClusterError, CopyError, NoSuchPool, StepFailed, UsageError
from obuilder.spec.decode import parse

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("client")]
KEY = "c" * 64
BUILD = Build(text="((from micro))")


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def names_of():
    return iter(f"client{number}" for number in range(1000))


@pytest.fixture
async def alice(cluster, names_of):
    return await cluster.client(next(names_of))


@asynccontextmanager
async def both(cluster, credentials):
    """A client, and a worker of the pool."""
    worker = await cluster.worker("w1")
    async with Client.open(credentials) as client, Engine.connect(worker) as engine:
        yield client, engine


async def ended(engine, client, ref, **state):
    """Note a job's end, as its worker does."""
    subject = names.job(client.name, ref.pool, ref.id, "state")
    await engine.put(subject, encode(State(**{"attempt": 1, **state})))


# --- contexts ------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "run.sh").write_text("echo\n")
    (root / "run.sh").chmod(0o755)
    (root / "sub" / "empty").touch()
    (root / "big").write_bytes(os.urandom(2 * PIECE + 7))
    os.link(root / "run.sh", root / "sub" / "same")
    os.symlink("../run.sh", root / "sub" / "link")
    os.symlink("/etc/passwd", root / "out")
    (root / "left-out").write_text("secret")
    (root / ".obuilderignore").write_text("left-out\n")
    os.mkfifo(root / "pipe")
    os.utime(root / "run.sh", ns=(10**18, 10**18))
    return root


def listed(root):
    found = {}
    for path, directories, files in os.walk(root):
        for name in directories + files:
            full = os.path.join(path, name)
            status = os.lstat(full)
            kind = stat.S_IFMT(status.st_mode)
            link = os.readlink(full) if kind == stat.S_IFLNK else ""
            content = pathlib.Path(full).read_bytes() if kind == stat.S_IFREG else b""
            times = 0 if kind == stat.S_IFDIR else status.st_mtime_ns
            found[os.path.relpath(full, root)] = (status.st_mode, times, link, content)
    return found


async def test_a_context_comes_out_as_it_went_in(cluster, alice, tree, tmp_path, monkeypatch):
    async with both(cluster, alice) as (client, engine):
        context = await client.send(None, str(tree))
        blobs, contents = Blobs(engine, client.name), Contents(str(tmp_path / "contents"))
        found = await contexts.materialise(blobs, contents, context.manifest, str(tmp_path / "out"))
        (tree / "left-out").unlink()
        (tree / "pipe").unlink()
        assert listed(found.directory) == listed(tree)
        assert os.path.samefile(f"{found.directory}/run.sh", f"{found.directory}/sub/same")
        assert stat.S_IMODE(os.stat(tmp_path / "out").st_mode) == 0o700
        # What was there is not sent again; a change sends what changed.
        again = await contexts.send(client.blobs, contexts.collect(None, str(tree)))
        assert (again.manifest, again.sent) == (context.manifest, 0)
        (tree / "more").write_text("more")
        more = await contexts.send(client.blobs, contexts.collect(None, str(tree)))
        assert (more.sent, more.sent_bytes) == (1, 4)
        assert more.manifest != context.manifest
        assert contents.trim(10) == 0  # a job may be about to read what was used just now
        monkeypatch.setattr(contexts, "IN_USE", -1.0)
        assert contents.trim(10) > 2 * PIECE


async def test_only_what_a_spec_copies_is_listed(tree):
    spec = parse(b"((from micro) (copy (src sub) (dst /s/)))", file="x").spec
    (main,) = contexts.collect(spec, str(tree)).listing.trees
    assert {file.path for file in main.files} == {
        b"sub", b"sub/empty", b"sub/same", b"sub/link",
    }  # fmt: skip
    with pytest.raises(CopyError, match="left out"):
        contexts.collect(
            parse(b"((from micro) (copy (src left-out) (dst /)))", file="x").spec, str(tree)
        )


async def test_a_file_that_changes_while_it_is_sent_is_not_taken(cluster, alice, tree):
    async with Client.open(alice) as client:
        collected = contexts.collect(None, str(tree))
        (tree / "run.sh").write_text("other")
        with pytest.raises(CopyError, match="changed"):
            await contexts.send(client.blobs, collected)


@pytest.mark.parametrize(
    "file",
    [
        Listed(b"../x", "file"), Listed(b"/x", "file"), Listed(b"a//b", "file"), Listed(b".", "dir"),
        Listed(b"x", "file", digest="../../../etc/passwd"), Listed(b"x", "hardlink", target=b"/etc/passwd"),
        Listed(b"link/x", "file", digest="0" * 64),
    ],
)  # fmt: skip
async def test_a_hostile_listing_is_refused(cluster, alice, file, tmp_path):
    link = Listed(b"link", "symlink", target=b"/tmp")
    async with both(cluster, alice) as (client, engine):
        manifest = await client.blobs.put(encode(Listing(trees=(Tree("", (link, file)),))))
        blobs = Blobs(engine, client.name)
        with pytest.raises(ClusterError, match="bad"):
            await contexts.materialise(
                blobs, Contents(str(tmp_path / "c")), manifest, str(tmp_path / "out")
            )
        assert not (tmp_path / "out").exists()


async def test_files_are_checked_when_they_are_read(cluster, alice):
    async with Client.open(alice) as client:
        digest = await client.blobs.put(b"as it was")
        async with cluster.admin() as admin:
            await admin.put(names.blob(client.name, digest, 0), b"otherwise")
        with pytest.raises(ClusterError, match="not what it was"):
            await client.blobs.get(digest)
        with pytest.raises(ClusterError, match="not in the cluster"):
            await client.blobs.get("0" * 64)


# --- logs ----------------------------------------------------------------------------------------


def text(pieces):
    return b"".join(
        event.data for piece in pieces for event in piece.events if isinstance(event, events.Output)
    )


async def read(client, ref, **how):
    async with client.follow(ref, **how) as found:
        return [piece async for piece in found]


async def test_a_log_is_followed_live_and_replayed_from_anywhere(cluster, alice):
    async with both(cluster, alice) as (client, engine):
        ref = await client.submit(BUILD, clusters.POOL)
        live, late, told = [], [], []

        async def follow():
            async with client.follow(ref) as pieces:
                async for piece in pieces:
                    live.append(piece)
                    if words := text([piece]).split():
                        late.append(time.monotonic() - told[int(words[-1])])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            async with logs.LogWriter(engine, client.name, ref.pool, ref.id, 1) as writer:
                writer(events.StepStarted(key=KEY, stage="", heading="run \udcff"))
                for number in range(20):
                    told.append(time.monotonic())
                    writer(events.Output(KEY, b"%d\n" % number))
                    await anyio.sleep(0.02)
                writer(events.StepDone(KEY, 1.0))
            await ended(engine, client, ref, phase="done", log_end=writer.count)
        assert text(live) == b"".join(b"%d\n" % number for number in range(20))
        assert [piece.number for piece in live] == list(range(writer.count))
        assert sorted(late)[len(late) // 2] < 0.2  # seconds: it came as it was written
        assert live[0].events[0] == events.StepStarted(key=KEY, stage="", heading="run \\xff")
        stored = await read(client, ref, live=False)
        assert [piece.events for piece in stored] == [piece.events for piece in live]
        assert await read(client, ref) == stored
        assert await read(client, ref, offset=3) == stored[3:]


async def test_a_large_log_is_capped_in_the_engine_and_keeps_start_and_tail(cluster, alice):
    async with both(cluster, alice) as (client, engine):
        ref = await client.submit(BUILD, clusters.POOL)
        cap, line = 8 << 20, b"x" * 9_990 + b"\n"
        writer = logs.LogWriter(engine, client.name, ref.pool, ref.id, 1, cap=cap)
        async with writer:
            writer(events.StepStarted(key=KEY, stage="", heading="run"))
            for number in range(4000):
                writer(events.Output(KEY, b"%08d" % number + line))
                if number % 100 == 0:
                    await anyio.sleep(0.02)
            writer(events.StepDone(KEY, 1.0))
        await ended(engine, client, ref, phase="done", log_end=writer.count)
        async with cluster.admin() as admin:
            size = (await admin.streams())[names.logs_of(client.name)]["state"]["bytes"]
        assert size < cap * 1.1
        began = time.monotonic()
        found = await read(client, ref)
        print(f"replay: {size / 1e6 / (time.monotonic() - began):.0f} MB/s")
        shown = text(found)
        assert shown.startswith(b"00000000")
        assert shown.endswith(b"00003999" + line)
        told = [
            event.text
            for piece in found
            for event in piece.events
            if isinstance(event, events.Note)
        ]
        left_out = sum(int(note.split()[1]) for note in told)
        assert left_out + len(shown) == 4000 * (len(line) + 8)
        kinds = [type(event) for piece in found for event in piece.events]
        assert kinds[0] is events.StepStarted
        assert kinds[-1] is events.StepDone


async def test_a_new_attempt_begins_the_log_anew(cluster, alice):
    async with both(cluster, alice) as (client, engine):
        ref = await client.submit(BUILD, clusters.POOL)
        lost = logs.LogWriter(engine, client.name, ref.pool, ref.id, 1)
        with suppress(InterruptedError):
            async with lost:
                lost(events.Output(KEY, b"first"))
                raise InterruptedError
        found = []

        async def follow():
            found.extend(await read(client, ref))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await anyio.sleep(0.2)
            async with logs.LogWriter(engine, client.name, ref.pool, ref.id, 2) as writer:
                writer(events.Output(KEY, b"second"))
            await ended(engine, client, ref, phase="done", attempt=2, log_end=writer.count)
        assert [piece.attempt for piece in found] == [1, 1, 2, 2, 2]
        assert text(found) == b"firstsecond"
        assert found[2].events[0].warning


# --- jobs ----------------------------------------------------------------------------------------


async def test_jobs_are_submitted_listed_found_cancelled_and_run_again(cluster, alice):
    async with both(cluster, alice) as (client, engine):
        with pytest.raises(NoSuchPool, match="nowhere"):
            await client.submit(BUILD, "nowhere")
        first = await client.submit(
            BUILD, clusters.POOL, wishes=Wishes(title="one", hint="h", secrets={"s": b"hunter2"})
        )
        second = await client.submit(BUILD, clusters.POOL, wishes=Wishes(title="two"))
        assert [row.id for row in await client.list()] == [second.id, first.id]
        assert [row.state.title for row in await client.list(hint="h")] == ["one"]
        assert await client.list(since=time.time() + 60) == []
        assert await client.find(first.id[-8:]) == first
        assert await client.find("") == second
        with pytest.raises(UsageError, match="no job"):
            await client.find("zzz")
        job = await client.job(first)
        assert b"hunter2" not in encode(job)
        assert await client.cancel(first, "no need")
        assert not await client.cancel(first)
        with pytest.raises(ClusterError, match="cancelled: no need") as caught:
            await client.result(first)
        assert caught.value.exit_status == 130
        again = await client.rerun(first)
        assert (await client.job(again)).rerun == first.id
        await ended(engine, client, again, phase="done", outcome=Outcome(result=KEY, ran=2))
        assert (await client.result(again)).result == KEY
        failed = Outcome(code="step-failed", message="it failed", exit_status=1)
        await ended(engine, client, second, phase="failed", outcome=failed)
        with pytest.raises(StepFailed, match="it failed"):
            await client.result(second)
        assert [row.id for row in await client.list(phases=["failed"])] == [second.id]


async def test_a_client_that_goes_takes_what_is_attached_to_it_along(cluster, alice):
    async with Client.open(alice) as client:
        ref = await client.submit(BUILD, clusters.POOL, wishes=Wishes(attached=True))
        async with client.attached([ref]):
            assert (await client.state(ref)).phase == "queued"
        assert (await client.state(ref)).phase == "cancelled"


async def test_building_on_a_pool_is_as_building_here(cluster, alice, tree):
    spec = parse(b"((from micro) (copy (src sub) (dst /s/)))", file="x").spec
    async with both(cluster, alice) as (client, engine):
        seen = []

        async def work():
            while not (rows := await client.list(phases=["queued"])):
                await anyio.sleep(0.02)
            (row,) = rows
            async with logs.LogWriter(engine, client.name, row.pool, row.id, 1) as writer:
                writer(events.BuildDone(KEY, 1.0, 1, 2))
            outcome = Outcome(result=KEY, cached=1, ran=2)
            await ended(engine, client, row, phase="done", outcome=outcome, log_end=writer.count)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            result = await client.build(
                spec, Contexts(str(tree)), pool=clusters.POOL, sink=seen.append
            )
        assert (result.key, result.cached, result.ran) == (KEY, 1, 2)
        assert events.BuildDone(KEY, 1.0, 1, 2) in seen


# --- administrators ------------------------------------------------------------------------------


@asynccontextmanager
async def as_admin(cluster):
    async with Admin.open(cluster.credentials) as admin:
        yield admin


def presence(name, **more):
    return encode(
        Presence(
            **{
                "pool": "admin",
                "name": name,
                "session": "s",
                "capacity": 4,
                "in_use": 0,
                "at": time.time(),
                **more,
            }
        )
    )


async def test_workers_are_paused_drained_and_forgotten(cluster, alice):
    async with as_admin(cluster) as admin:
        await admin.add_pool("admin", "linux/amd64")
        with pytest.raises(UsageError, match="not known"):
            await admin.pause("admin", "w1")
        assert await admin.pause("admin", "w1", "broken fan", make=True)
        assert not await admin.pause("admin", "w1")
        view = await admin.view("admin")
        assert [(worker.name, worker.paused.reason) for worker in view.workers] == [
            ("w1", "broken fan")
        ]
        running = (Running("j", "alice", 1, 0.0),)
        at = names.worker("admin", "w1")
        await admin.engine.put(at, presence("w1", in_use=1, running=running), ttl=60)
        with pytest.raises(UsageError, match="still connected"):
            await admin.forget("admin", "w1")
        assert (await admin.view("admin")).capacity == 4
        said = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(admin.drain, "admin", "w1", said.append)
            await anyio.sleep(0.3)
            await admin.engine.put(at, presence("w1", paused=(("admin", ""),)), ttl=60)
        assert said == ["w1: Running jobs: 1", "w1: Running jobs: 0"]
        await admin.engine.remove(names.state_of("admin"), at)
        await admin.drain("admin", "w1", said.append)
        assert said[-1] == "w1: Disconnected (nothing to drain)"
        assert await admin.unpause("admin", "w1") is True
        await admin.pause("admin", "w1", make=True)
        await admin.forget("admin", "w1")
        assert (await admin.view("admin")).workers == ()


async def test_an_update_tries_one_worker_first(cluster):
    async with as_admin(cluster) as admin, anyio.create_task_group() as tasks:
        await admin.add_pool("up")
        gone = []

        async def worker(name, *, back=True):
            at = names.worker("up", name)
            await admin.engine.put(at, presence(name, session="old"))

            async def update(subject, data):
                gone.append(name)
                await admin.engine.remove(names.state_of("up"), at)
                if back:
                    await admin.engine.put(at, presence(name, session="new"))
                return encode(Answer())

            async with admin.engine.serve(names.control("up", name, "update"), update):
                await anyio.sleep_forever()

        for name, back in (("a", True), ("b", True), ("c", False)):
            tasks.start_soon(lambda n=name, b=back: worker(n, back=b))
        while len(await admin.presences("up")) < 3:
            await anyio.sleep(0.05)
        await anyio.sleep(0.2)
        said = []
        assert await admin.update_all("up", said.append, patience=1.0) == ["c"]
        assert gone[0] == "a"
        assert said[0] == "Testing update on first worker in pool: a"
        assert "b restarted OK." in said
        await admin.engine.put(names.worker("up", "a"), presence("a", session="old"))
        with pytest.raises(ClusterError, match="not connected"):
            await admin.update("up", "nobody")
        tasks.cancel_scope.cancel()


async def test_rates_are_set_and_removing_a_client_cancels_what_it_has_waiting(cluster, alice):
    async with as_admin(cluster) as admin:
        with pytest.raises(UsageError, match="no client"):
            await admin.set_rate(clusters.POOL, "nobody", 2.0)
        await admin.set_rate(clusters.POOL, alice.name, 2.5)
        async with Client.open(alice) as client:
            ref = await client.submit(BUILD, clusters.POOL)
            (sharer,) = [
                one for one in (await admin.view(clusters.POOL)).clients if one.name == alice.name
            ]
            assert (sharer.rate, sharer.waiting) == (2.5, 1)
            assert await admin.remove_client(alice.name) == 1
        found = await admin.engine.last(
            names.jobs_of(alice.name), names.job(alice.name, ref.pool, ref.id, "state")
        )
        assert decode(found.data, State).phase == "cancelled"
        assert alice.name not in {one.name for one in await admin.clients()}
        with pytest.raises(UsageError, match="no client"):
            await admin.remove_client(alice.name)
        with pytest.raises(ClusterError):
            async with Client.open(alice):
                pass


async def test_the_doctor_finds_and_mends(cluster, alice):
    async with as_admin(cluster) as admin:
        await admin.add_pool("sick")
        async with Client.open(alice) as client:
            ref = await client.submit(BUILD, "sick")
        before = [one.what for one in await examine(admin, patience=0.1)]
        assert not [what for what in before if "sick" in what]
        queue = names.queue_of("sick")
        await admin.engine.remove(queue, "sub.>")
        await admin.engine.drop_consumer(queue, names.waiting(alice.name, urgent=True))
        await admin.engine.put("sub.stranger.sick.n", b"?")
        late = presence("late", pool="sick", at=time.time() - 3600, paused=(("disk", "5 % free"),))
        await admin.engine.put(names.worker("sick", "late"), late)
        found = [one.what for one in await examine(admin, patience=0.1, young=0.0)]
        for part in (
            "no place in the queue", "stranger, who is no client", "waits without a ticket",
            "off the cluster's", "paused itself: disk",
        ):  # fmt: skip
            assert any(part in what for what in found), (part, found)
        await examine(admin, fix=True, patience=0.1, young=0.0)
        left = [one.what for one in await examine(admin, patience=0.1, young=0.0)]
        assert all("late" in what for what in left if "sick" in what), left
        assert await admin.engine.pending(queue, ">") == {f"sub.{alice.name}.sick.n": 1}
        assert ref.pool == "sick"


async def test_others_credentials_are_refused(cluster, alice):
    with pytest.raises(UsageError, match="administrator"):
        authority_of(alice)
    with pytest.raises(UsageError, match="of a admin, not of a client"):
        async with Client.open(cluster.credentials):
            pass
    async with Client.open(alice) as client:
        client.blobs._engine.patience = 1.0
        with pytest.raises(ClusterError):
            await client.blobs._engine.put(names.pause(clusters.POOL, "w1"), b"")
