"""The rules of the cluster's policy, one by one."""

import random

import pytest
from msgspec.structs import replace

from obuilder.cluster import policy
from obuilder.cluster.messages import Pool, Presence, Running, Share, Ticket, Warmth
from obuilder.cluster.policy import Back, Costs, Forward, Hold, Stray, Take, Turn, Waiting
from scheduling import Farm

EXPECTED = Costs(cold=10.0, warm=2.0)


def worker(name: str, *, capacity: int = 2, own: int = 0, **more: object) -> Presence:
    running = tuple(Running(id=f"{name}{n}", client="c", slots=1, started=0) for n in range(own))
    return Presence(
        pool="p", name=name, session="s", capacity=capacity, in_use=own, running=running, **more  # type: ignore[arg-type]
    )  # fmt: skip


def routed(
    ticket: Ticket, warmth: Warmth | None, me: Presence, *others: Presence, now: float = 100.0, **backlog: int
) -> policy.Route:  # fmt: skip
    there = {other.name: other for other in (me, *others)}
    return policy.route(ticket, warmth, me, there, backlog, EXPECTED, now)


def test_urgent_goes_first_and_fairly_then_the_others() -> None:
    shares = {"a": Share(time=5), "b": Share(time=3), "c": Share(time=4)}
    waits = {"a": Waiting(1, 1), "b": Waiting(0, 1), "c": Waiting(2, 0), "d": Waiting()}
    assert policy.turns(waits, shares) == [
        Turn("c", urgent=True), Turn("a", urgent=True), Turn("b", urgent=False), Turn("a", urgent=False),
    ]  # fmt: skip


def test_a_flood_of_urgent_jobs_is_paid_for() -> None:
    shares = {"a": Share(), "b": Share()}
    both = {"a": Waiting(1, 0), "b": Waiting(0, 1)}
    for _ in range(10):
        assert policy.turns(both, shares)[0] == Turn("a", urgent=True)
        shares["a"] = policy.charged(shares["a"], policy.floor(both, shares), 1.0)
    normal = {"a": Waiting(0, 1), "b": Waiting(0, 1)}
    assert policy.turns(normal, shares)[0].client == "b"
    assert policy.floor(normal, shares) == 0, "b has not lost its place"


def test_a_limit_leaves_room_to_others_and_does_not_stop_time() -> None:
    shares = {"a": Share(limit=2), "b": Share(time=50)}
    waits = {"a": Waiting(0, 9), "b": Waiting(0, 9)}
    assert [turn.client for turn in policy.turns(waits, shares, {"a": 1})] == ["a", "b"]
    assert [turn.client for turn in policy.turns(waits, shares, {"a": 2})] == ["b"]
    assert policy.floor(waits, shares, {"a": 2}) == 50, "a newcomer starts beside b"


def test_what_a_job_really_took_is_settled() -> None:
    share = policy.charged(Share(rate=2), 10, 600)
    assert share.time == 310
    assert policy.settled(share, 600, 2).time == 11
    assert policy.settled(Share(time=1), 600, 2).time == 0, "never before the beginning"


def test_workers_that_choose_together_spread_by_rates() -> None:
    shares = {"a": Share(rate=1), "b": Share(rate=3), "c": Share(rate=1, time=1000)}
    waits = dict.fromkeys(shares, Waiting(0, 1))
    draw = random.Random(7).random
    wide = policy.spread(100, 1.0, shares.values())
    assert wide == 20
    first = [policy.turns(waits, shares, spread=wide, draw=draw)[0].client for _ in range(1000)]
    assert first.count("b") / first.count("a") == pytest.approx(3, rel=0.2)
    assert first.count("c") == 0, "it is too far behind"
    assert {policy.turns(waits, shares)[0].client for _ in range(9)} == {"a"}
    rivals = 0.0
    for _ in range(5):
        rivals = policy.raced(rivals, lost=True)
    assert rivals == 31
    for _ in range(6):
        rivals = policy.raced(rivals, lost=False)
    assert rivals == 0


def test_tickets_of_jobs_that_run_do_not_wait() -> None:
    jobs = (
        Running(id="1", client="a", slots=1, started=0),
        Running(id="2", client="a", slots=1, started=0, urgent=True),
        Running(id="3", client="a", slots=1, started=0, forwarded=True),
        Running(id="4", client="gone", slots=1, started=0),
    )
    there = replace(worker("w"), running=jobs)
    pending = {("a", False): 3, ("a", True): 1, ("b", True): 2}
    assert policy.waiting(pending, [there]) == {"a": Waiting(0, 2), "b": Waiting(2, 0)}


def test_costs_are_as_they_were_and_else_in_the_pools_proportion() -> None:
    pool = Pool(name="p", cold=600, warm=10)
    assert policy.costs(None, pool) == Costs(600, 10)
    assert policy.costs(Warmth(cold=60), pool) == Costs(60, 1)
    assert policy.costs(Warmth(warm=20), pool) == Costs(600, 20)
    assert policy.costs(Warmth(cold=5, warm=20), pool) == Costs(5, 5), (
        "warm is never the dearer one"
    )
    assert policy.cost(Costs(600, 10), warm=True, slots=3) == 30


def test_one_job_that_hangs_hardly_moves_an_estimate() -> None:
    assert policy.estimate(None, 10) == 10
    assert policy.estimate(10, 86400) < 16
    times = 10.0
    for _ in range(20):
        times = policy.estimate(times, 40)
    assert times == pytest.approx(40, rel=0.01)


HINTED = Ticket(id="j", client="c", hint="h")


def test_a_job_goes_where_its_cache_is_until_the_wait_is_dearer() -> None:
    warmth = Warmth(workers=(("w1", 90.0),))
    w1, w2 = worker("w1", own=2), worker("w2")
    assert routed(HINTED, warmth, w2, w1) == Forward("w1")
    assert routed(HINTED, warmth, w2, w1, w1=10) == Forward("w1")
    assert routed(HINTED, warmth, w2, w1, w1=11) == Take(warm=False), "11 x 2 s on two slots > 10 s"
    assert routed(HINTED, warmth, worker("w1"), w2) == Take(warm=True)
    assert routed(replace(HINTED, hint=""), warmth, w2, w1) == Take(warm=False)
    paused = replace(w1, paused=(("admin", ""),))
    assert routed(HINTED, warmth, w2, paused) == Take(warm=False)
    assert routed(HINTED, warmth, w2) == Take(warm=False), "w1 is gone"
    sent = replace(HINTED, forwarded="w1")
    assert routed(sent, warmth, w2, w1) == Take(warm=False), "w1 has too much, by what others cost"
    assert routed(replace(sent, forwarded="w0"), warmth, w2, w1) == Forward("w1"), "w0 is gone"
    assert routed(replace(HINTED, forwarded="w2"), warmth, w2, w1) == Take(warm=False)


def test_of_two_with_the_cache_the_one_with_less_to_do() -> None:
    warmth = Warmth(workers=(("w1", 90.0), ("w2", 90.0)))
    w1, w2, w3 = worker("w1", own=2), worker("w2", own=2), worker("w3")
    assert routed(HINTED, warmth, w3, w1, w2, w1=4, w2=3) == Forward("w2")


def test_a_cache_is_made_once_and_forgotten_in_time() -> None:
    w1, w2 = worker("w1"), worker("w2")
    making = policy.started(None, "w1", "s", 100.0)
    assert routed(HINTED, making, w2, w1) == Forward("w1")
    assert routed(HINTED, making, w1, w2) == Take(warm=False), "it joins what it is making"
    again = replace(w1, session="t")
    assert routed(HINTED, making, w2, again) == Take(warm=False), "who made it has died"
    late = 100.0 + policy.OVERDUE * EXPECTED.cold
    assert routed(HINTED, making, w2, w1, now=late) == Take(warm=False)
    made = policy.ended(making, "w1", 110.0, seconds=10, warm=False, well=True, useful=True)
    assert made == Warmth(workers=(("w1", 110.0),), cold=10.0)
    assert routed(HINTED, made, w2, w1) == Forward("w1")
    assert routed(HINTED, made, w2, w1, now=111 + policy.EXPIRES) == Take(warm=False)
    assert routed(HINTED, policy.forgotten(made, "w1"), w2, w1) == Take(warm=False)


def test_what_failed_teaches_no_times_but_may_leave_a_cache() -> None:
    making = policy.started(None, "w1", "s", 100.0)
    useless = policy.ended(making, "w1", 101.0, seconds=1, warm=False, well=False, useful=False)
    assert useless == Warmth()
    useful = policy.ended(making, "w1", 101.0, seconds=1, warm=False, well=False, useful=True)
    assert useful == Warmth(workers=(("w1", 101.0),))


def test_a_hint_is_written_again_only_for_what_is_new() -> None:
    def after(was: Warmth | None, worker: str, now: float, seconds: float) -> Warmth:
        return policy.ended(was, worker, now, seconds=seconds, warm=True, well=True, useful=True)

    first = after(None, "w1", 0.0, 10)
    assert policy.is_news(None, first, "w1")
    assert not policy.is_news(first, after(first, "w1", 60.0, 12), "w1"), "it is much as it was"
    assert policy.is_news(first, after(first, "w1", 60.0, 40), "w1"), "it takes longer"
    assert policy.is_news(first, after(first, "w1", 2 * policy.REFRESHED, 10), "w1"), "it is old"
    assert policy.is_news(first, after(first, "w2", 60.0, 10), "w2"), "one more has it"
    assert policy.is_news(first, policy.started(first, "w2", "s", 60.0), "w2")
    now = first
    for _ in range(4):
        now = after(now, "w1", 60.0, 12.5)
    assert not policy.is_news(first, now, "w1")
    for _ in range(20):
        now = after(now, "w1", 60.0, 13.5)
    assert policy.is_news(first, now, "w1"), "small changes add up"


def test_a_hint_remembers_the_last_workers() -> None:
    warmth: Warmth | None = None
    for number in range(policy.REMEMBERED + 5):
        warmth = policy.ended(
            warmth, f"w{number}", float(number), seconds=1, warm=False, well=True, useful=True
        )
    assert warmth is not None
    assert [name for name, _ in warmth.workers] == [
        f"w{n}" for n in range(5, policy.REMEMBERED + 5)
    ]


def test_a_big_job_finds_room_or_waits_for_it() -> None:
    big = Ticket(id="j", client="c", slots=2)
    busy, idle, small = worker("w1", own=1), worker("w2"), worker("w3", capacity=1)
    assert routed(big, None, busy, idle) == Forward("w2")
    assert routed(big, None, busy, idle, w2=1) == Hold(2), "w2 is about to be busy"
    assert routed(big, None, busy, small) == Hold(2)
    assert routed(replace(big, forwarded="w1"), None, busy, idle) == Hold(2)
    assert routed(big, None, small, busy) == Forward("w1")
    assert routed(big, None, small) == Back(policy.RETRY)
    assert routed(replace(big, slots=9), None, busy, idle) == Back(policy.RETRY)


def test_a_job_that_nobody_can_run_is_looked_at_again() -> None:
    farm = Farm()
    farm.join("w1")
    farm.submit("u", "big", slots=3)
    farm.submit("u", "next")
    assert farm.flow() == ["next"], "it is in nobody's way"
    farm.join("w2", capacity=4)
    farm.now += policy.RETRY
    assert farm.flow() == ["big"]


def test_memory_and_processors_are_parts_of_a_worker() -> None:
    machine = worker("w", capacity=4, memory=16 << 30, cpus=8.0)
    job = Ticket(id="j", client="c")
    assert policy.slots(job, machine) == 1
    assert policy.slots(replace(job, memory=5 << 30), machine) == 2
    assert policy.slots(replace(job, cpus=8.0), machine) == 4
    assert policy.slots(replace(job, memory=17 << 30), machine) == 5, "more than there is"
    assert policy.slots(replace(job, memory=17 << 30), worker("x")) == 1, "nothing is known of x"


def test_others_queues_are_helped_with_when_they_are_too_long_or_nobodys() -> None:
    w1, w2 = worker("w1", own=2), worker("w2")
    paused = replace(worker("w3"), paused=(("health", ""),))
    there = {"w1": w1, "w2": w2, "w3": paused}
    assert policy.strays({"w1": 10, "w2": 3}, "w2", there, EXPECTED) == []
    found = policy.strays({"w1": 11, "w2": 99, "w3": 1, "gone": 2}, "w2", there, EXPECTED)
    assert found == [Stray("gone", 0), Stray("w3", 0), Stray("w1", 10)]
