"""Workers on the real engine, over the fakes: OCluster's end-to-end scenarios, and what it has not."""

import time

import anyio
import pytest
from msgspec.structs import replace

from obuilder import events
from obuilder.cluster import names, records
from obuilder.cluster.health import Care
from obuilder.cluster.messages import (
    Build,
    Outcome,
    Paused,
    Presence,
    Signed,
    Ticket,
    Warmth,
    decode,
    encode,
)
from obuilder.cluster.records import Place
from obuilder.cluster.worker import Means
from obuilder.errors import Refused
from workbench import Workbench
from workers import Yard

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("nats")]


@pytest.fixture(autouse=True)
def well(monkeypatch) -> None:
    """The fakes' shell is too small for a trial build; the tests of processes make real ones."""

    async def illness(_) -> None:
        return None

    monkeypatch.setattr("obuilder.cluster.health.illness", illness)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Who waits for a beat, or for its end, need not wait long."""
    monkeypatch.setattr("obuilder.cluster.presence.BEAT", 0.5)


@pytest.fixture
def bench(tmp_path) -> Workbench:
    return Workbench(str(tmp_path))


async def test_jobs_wait_for_a_worker_and_have_their_results_and_logs(yard, bench) -> None:
    first = await yard.submit("echo hello", "mark one", hint="h")
    async with yard.worker("w1", bench):
        state = await yard.ended(first)
        assert (state.phase, state.worker, state.attempt) == ("done", "w1", 1)
        log = await yard.log(first)
        assert any(isinstance(e, events.Output) and b"hello" in e.data for e in log)
        assert isinstance(log[-1], events.BuildDone)
        assert log[-1].result == state.outcome.result
        # A step that fails fails the job, as the build would.
        failed = await yard.ended(await yard.submit("false"))
        assert (failed.phase, failed.outcome.exit_status) == ("failed", 1)
        assert failed.outcome.code == "step-failed"
        # What can't be read, is of an unknown kind, or takes too long, is said.
        bad = await yard.ended(await yard.client.submit(Build(text="((from"), yard.pool))
        assert (bad.outcome.code, bad.outcome.exit_status) == ("spec", 2)
        unknown = await yard.ended(await yard.custom("no-such", b""))
        assert "no-such" in unknown.outcome.message
        slow = await yard.ended(await yard.submit("hold slow", seconds=0.3))
        assert (slow.phase, slow.outcome.code) == ("failed", "job-timed-out")
        secret = await yard.client.submit(
            Build(text='((from scratch) (shell /bin/sh -c) (run (secrets (key (target /k))) (shell "cat /k")))'),
            yard.pool, wishes=_wishes(secrets={"key": b"s3cret"}),
        )  # fmt: skip
        assert (await yard.ended(secret)).phase == "done"
        await yard.until(lambda: _none(yard))
    # Nothing is left of it on the disk of the engine but sealed.
    found = await yard.admin.last(
        names.jobs_of(yard.client.name), names.job(yard.client.name, *_of(secret), "spec")
    )
    assert b"s3cret" not in found.data


async def test_kinds_of_jobs_of_ones_own_are_entry_points_of_what_is_installed(
    yard, bench, tmp_path, monkeypatch
) -> None:
    site = tmp_path / "site"
    (site / "ours-1.dist-info").mkdir(parents=True)
    (site / "ours-1.dist-info" / "METADATA").write_text("Name: ours\nVersion: 1\n")
    (site / "ours-1.dist-info" / "entry_points.txt").write_text(
        "[obuilder.jobs]\nlint = ours_jobs:lint\nsleep = obuilder.testing.jobs:sleep\n"
        "gone = ours_jobs:gone\nplain = os:getcwd\n"
    )
    (site / "ours_jobs.py").write_text(
        "from obuilder import events\n"
        "from obuilder.errors import UsageError\n"
        "async def lint(call):\n"
        "    call.sink(events.Note(text=f'linting {call.payload.decode()}'))\n"
        "    if call.payload == b'bad':\n"
        "        raise UsageError('it is bad')\n"
        "    return call.payload.upper() + call.secrets['key']\n"
    )
    monkeypatch.syspath_prepend(str(site))
    secret = {"key": b"!"}
    async with yard.worker("w1", bench):
        ref = await yard.custom("lint", b"good", secrets=secret)
        state = await yard.ended(ref)
        assert (state.phase, state.outcome.value) == ("done", b"GOOD!")
        assert any(getattr(e, "text", "") == "linting good" for e in await yard.log(ref))
        bad = (await yard.ended(await yard.custom("lint", b"bad", secrets=secret))).outcome
        assert (bad.code, bad.message, bad.exit_status) == ("usage", "it is bad", 2)
        assert (await yard.ended(await yard.custom("sleep", b"0.01"))).outcome.value == b"0.01"
        long = await yard.custom("sleep", b"600")
        await yard.until(lambda: _presence(yard, lambda p: p.in_use == 1), seconds=30)
        await yard.client.cancel(long)
        assert (await yard.ended(long)).phase == "cancelled"
        for kind, said in (("gone", "can't be loaded"), ("plain", "no async function")):
            outcome = (await yard.ended(await yard.custom(kind, b""))).outcome
            assert (outcome.code, said in outcome.message) == ("refused", True)


async def test_slots_are_kept_and_urgent_jobs_go_first(yard, bench) -> None:
    async with yard.worker("w1", bench, means=Means(capacity=2)):
        a, b = await yard.submit("hold a"), await yard.submit("hold b")
        for name in "ab":
            with anyio.fail_after(5):
                await bench.came[name].wait()
        c = await yard.submit("mark c")
        u = await yard.submit("mark u", urgent=True)
        await anyio.sleep(0.3)
        assert bench.ran == []
        bench.free["a"].set()
        await yard.ended(c)
        assert bench.ran == ["u", "c"]
        # A job that takes all slots waits for them, and isn't overtaken for ever.
        big = await yard.submit("mark big", slots=2)
        small = await yard.submit("mark small")
        await anyio.sleep(0.5)
        bench.free["b"].set()
        for ref in (a, b, u, big, small):
            assert (await yard.ended(ref)).phase == "done"


async def test_jobs_are_cancelled_queued_or_running_or_with_their_client(yard, bench) -> None:
    queued = await yard.submit("mark never")
    assert await yard.client.cancel(queued, "not needed")
    async with yard.worker("w1", bench):
        running = await yard.submit("hold x")
        with anyio.fail_after(5):
            await bench.came["x"].wait()
        began = time.monotonic()
        assert await yard.client.cancel(running, "enough")
        state = await yard.ended(running)
        assert time.monotonic() - began < 2
        assert (state.phase, state.outcome.message) == ("cancelled", "cancelled: enough")
        assert state.outcome.exit_status == 130
        assert bench.cut == ["x"]
        assert (await yard.ended(queued)).phase == "cancelled"
        assert bench.ran == []
        assert not await yard.client.cancel(running)
        await yard.until(lambda: _none(yard))


async def test_a_job_whose_client_is_gone_is_cancelled_if_it_was_attached(
    yard, bench, monkeypatch
) -> None:
    monkeypatch.setattr("obuilder.cluster.running.BEAT", 0.3)
    monkeypatch.setattr("obuilder.cluster.client.LEASE", 1.0)
    async with yard.worker("w1", bench):
        ref = await yard.submit("hold x", attached=True)  # and nobody renews its lease
        state = await yard.ended(ref)
        assert state.phase == "cancelled"
        assert "client" in state.outcome.message


async def test_a_name_has_one_live_worker_and_is_had_again_after_it(
    yard, bench, tmp_path, monkeypatch
) -> None:
    other = Workbench(str(_sub(tmp_path)))
    async with yard.worker("w1", bench):
        with pytest.raises(Refused, match="a worker called w1"):
            async with yard.worker("w1", other):
                await anyio.sleep(10)
    async with yard.worker("w1", other):  # the first one left: at once
        assert (await yard.ended(await yard.submit("mark x"))).worker == "w1"


async def test_pause_drain_and_what_runs_meanwhile(yard, bench) -> None:
    subject = names.pause(yard.pool, "w1")
    await yard.admin.put(subject, encode(Paused(reason="holidays", by="eve")))
    ref = await yard.submit("mark x")
    async with yard.worker("w1", bench, means=Means(capacity=3)) as worker:
        await anyio.sleep(0.4)
        assert bench.ran == []
        await yard.until(lambda: _presence(yard, lambda p: p.paused == (("admin", "holidays"),)))
        await yard.admin.remove(names.state_of(yard.pool), subject)
        await yard.admin.publish(subject, b"")
        assert (await yard.ended(ref)).phase == "done"
        held = [await yard.submit(f"hold {n}") for n in "ab"]
        for name in "ab":
            with anyio.fail_after(5):
                await bench.came[name].wait()
        answer = await yard.admin.request(names.question(yard.pool, "w1", "metrics"), b"")
        assert b"obuilder_worker_running_jobs 2" in answer
        worker.drain()
        third = await yard.submit("mark third")
        await yard.until(lambda: _presence(yard, lambda p: p.in_use == 2 and p.paused))
        bench.free["a"].set()
        await yard.ended(held[0])
        bench.free["b"].set()
        await yard.ended(held[1])
        await yard.until(lambda: _presence(yard, lambda p: p is None), seconds=12)
        assert (await yard.client.state(third)).phase == "queued"
    async with yard.worker("w2", bench):
        assert (await yard.ended(third)).worker == "w2"


async def test_told_twice_a_worker_gives_its_jobs_to_others(yard, bench, tmp_path) -> None:
    other = Workbench(str(_sub(tmp_path)))
    ref = await yard.submit("hold x", attempts=1)
    async with yard.worker("w1", bench) as worker:
        with anyio.fail_after(5):
            await bench.came["x"].wait()
        worker.stop()
        other.free["x"].set()
        async with yard.worker("w2", other):
            state = await yard.ended(ref)
    # That worker was not lost: a job with one attempt has it still.
    assert (state.phase, state.worker, state.attempt, state.returned) == ("done", "w2", 2, 1)


async def test_of_two_results_one_is_recorded(yard, bench) -> None:
    async with yard.worker("w1", bench):
        ref = await yard.submit("hold x")
        with anyio.fail_after(5):
            await bench.came["x"].wait()
        held = await yard.held(ref)
        # Another worker thinks that the first is dead, and is faster.
        theirs = await records.claim(
            yard.admin, held, worker="w9", session="s", now=time.time(), warm=False
        )
        outcome = Outcome(message="by w9")
        won = await records.finish(
            yard.admin, theirs, "done", outcome, now=time.time(), log_end=None
        )
        lost = await records.finish(
            yard.admin, held, "done", Outcome(message="by w1"), now=time.time(), log_end=None
        )
        assert (won, lost) == (True, False)
        await yard.until(lambda: bench.cut == ["x"])  # the first is stopped
        state = await yard.ended(ref)
        assert (state.worker, state.outcome.message) == ("w9", "by w9")
        assert (await yard.ended(await yard.submit("mark on"))).worker == "w1"


async def test_what_kills_workers_is_failed_and_what_is_forged_refused(yard, bench) -> None:
    poison = await yard.submit("mark poison", attempts=2)
    held = await yard.held(poison)
    lost = replace(held.state, phase="running", attempt=2, worker="gone", session="old")
    await records.change(yard.admin, held, lost)
    # A ticket that is none, one of no job, and a job that somebody changed.
    await yard.admin.put(names.ticket(yard.client.name, yard.pool, urgent=False), b"\xc1")
    ghost = Ticket(id="ghost", client=yard.client.name)
    await yard.admin.put(names.ticket(yard.client.name, yard.pool, urgent=False), encode(ghost))
    forged = await yard.submit("mark mine")
    place = Place(yard.client.name, *_of(forged))
    stored = await yard.admin.last(names.jobs_of(place.client), place.subject("spec"))
    signed = decode(stored.data, Signed)
    other = replace(signed, job=signed.job.replace(b"mark mine", b"mark evil"))
    await yard.admin.put(place.subject("spec"), encode(other))
    async with yard.worker("w1", bench):
        state = await yard.ended(poison)
        assert (state.phase, state.outcome.code) == ("failed", "workers-lost")
        state = await yard.ended(forged)
        assert (state.phase, state.outcome.code) == ("failed", "refused")
        assert bench.ran == []
        await yard.until(lambda: _none(yard))


async def test_jobs_go_where_their_cache_is_until_that_worker_is_gone(
    yard, bench, tmp_path
) -> None:
    other = Workbench(str(_sub(tmp_path)))
    async with yard.worker("w1", bench, means=Means(capacity=1)):
        assert (await yard.ended(await yard.submit("mark a", hint="h"))).worker == "w1"
        hint = names.hint(yard.pool, "h")

        async def is_known() -> bool:
            found = await yard.admin.last(names.state_of(yard.pool), hint)
            return bool(found and decode(found.data, Warmth).workers)

        await yard.until(is_known)
        blocker = await yard.submit("hold x")
        with anyio.fail_after(5):
            await bench.came["x"].wait()
        async with yard.worker("w2", other, means=Means(capacity=1)) as second:
            warm = await yard.submit("mark b", hint="h")

            async def was_sent() -> bool:
                pending = await yard.admin.pending(names.queue_of(yard.pool), "run.>")
                return bool(pending)

            await yard.until(was_sent)
            bench.free["x"].set()
            state = await yard.ended(warm)
            assert (state.worker, state.warm) == ("w1", True)
            assert (await yard.ended(blocker)).phase == "done"
            assert second.presence().in_use == 0


async def test_a_worker_that_is_ill_or_full_takes_no_jobs_until_it_is_well(
    yard, bench, monkeypatch
) -> None:
    ill = ["step: it is broken"]

    async def illness(_):
        return ill[0]

    care = Care(check_every=0.2, retry=0.2, space_every=0.1, free=0)
    async with yard.worker("w1", bench, care=care) as worker:
        monkeypatch.setattr("obuilder.cluster.health.illness", illness)
        await yard.until(lambda: _presence(yard, lambda p: p.paused == (("health", ill[0]),)))
        ref = await yard.submit("mark x")
        await anyio.sleep(0.3)
        assert bench.ran == []
        ill[0] = None
        assert (await yard.ended(ref)).phase == "done"
        # The disk: nothing is left to prune, so the worker stays paused, and resumes by itself.
        usage = await worker._shop.builder.usage()

        async def full():
            return replace(usage, free=usage.total // 100)

        worker._guard._care = replace(care, free=50.0)
        monkeypatch.setattr(worker._shop.builder, "usage", full)
        await yard.until(lambda: _presence(yard, lambda p: p.paused and p.paused[0][0] == "disk"))
        assert worker._shop.builder.records() == []  # all that could go went
        monkeypatch.undo()
        worker._guard._care = care
        assert (await yard.ended(await yard.submit("mark y"))).phase == "done"


def _wishes(**given):
    from obuilder.cluster.client import Wishes

    return Wishes(**given)


def _of(ref):
    return ref.pool, ref.id


def _sub(path):
    made = path / "other"
    made.mkdir()
    return made


async def _none(yard: Yard) -> bool:
    return await yard.waiting() == 0


async def _presence(yard: Yard, wanted) -> bool:
    found = await yard.admin.last(names.state_of(yard.pool), names.worker(yard.pool, "w1"))
    return bool(wanted(decode(found.data, Presence) if found and found.data else None))
