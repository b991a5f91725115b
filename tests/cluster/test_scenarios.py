"""OCluster's fifteen scheduling scenarios (its test_scheduling.ml), on the policy with a fake clock.

Where an outcome differs, its test says why.
"""

from msgspec.structs import replace

from obuilder.cluster import policy
from scheduling import Farm


def test_simple() -> None:
    farm = Farm()
    farm.join("w1", "w2")
    farm.submit("u", "job1", "job2", "job3")
    assert farm.take("w1") == "job1"
    assert farm.take("w2") == "job2"
    assert farm.take("w1") is None
    farm.finish("job2")
    assert farm.take("w2") == "job3"


def test_cached_scheduling() -> None:
    farm = Farm()
    farm.join("w1", "w2")
    for id_, hint in (("1", "a"), ("2", "b"), ("3", "a"), ("4", "a"), ("5", "c")):
        farm.submit("u1", id_, hint=hint)
    assert farm.take("w1") == "1"
    assert farm.take("w2") == "2"
    farm.finish("2")
    assert farm.take("w2") == "5"
    assert [ticket.id for ticket in farm.local["w1", False]] == ["3", "4"]
    farm.leave("w1")
    farm.finish("5")
    assert farm.drained() == ["1", "3", "4"]


def test_unbalanced() -> None:
    farm = Farm()
    farm.join("w1", "w2")
    farm.submit("u", *"12345678", hint="a")
    assert farm.take("w1") == "1"
    assert farm.take("w2") == "8"
    assert len(farm.local["w1", False]) == 6
    farm.finish("1")
    assert farm.drained() == ["2", "3", "4", "5", "6", "7"]


def test_no_workers() -> None:
    farm = Farm()
    farm.submit("u", "1", "2")
    farm.join("w1")
    assert farm.take("w1") == "1"
    farm.finish("1")
    farm.leave("w1")
    assert farm.queued() == ["2"]
    farm.join("w1")
    assert farm.drained() == ["2"]


def test_persist() -> None:
    farm = Farm()
    farm.join("w1", "w2")
    farm.submit("u", "1", hint="a")
    farm.take("w1")
    farm.finish("1")
    again = farm.stored()
    again.join("w2", "w1")
    again.submit("u", "2", hint="a")
    assert again.take("w2") is None
    assert again.take("w1") == "2"
    assert again.running["2"][2], "w1 has its cache"


def test_urgent() -> None:
    farm = Farm()
    farm.join("w1")
    farm.submit("u", "normal1", "normal2")
    farm.submit("u", "urgent1", urgent=True)
    farm.take("w1")
    farm.submit("u", "urgent2", urgent=True)
    farm.leave("w1")
    farm.join("w1")
    assert farm.drained() == ["urgent1", "urgent2", "normal1", "normal2"]


def test_urgent_worker() -> None:
    farm = Farm()
    farm.join("w1", "w2")
    farm.submit("u", "1", "2", hint="a")
    assert farm.take("w1") == "1"
    farm.submit("u", "3", hint="a", urgent=True)
    assert farm.take("w2") is None
    farm.finish("1")
    assert farm.drained() == ["3", "2"]


def test_inactive_gives_its_queue_away() -> None:
    """OCluster moves the queue at once; here others take from it when they have nothing else."""
    farm = Farm()
    farm.join("w1", "w2")
    farm.submit("u", "1", "2", "3", hint="a")
    assert farm.take("w1") == "1"
    assert farm.take("w2") is None
    farm.pause("w1", "worker")
    assert farm.take("w2") == "2"
    farm.pause("w1")
    farm.finish("1")
    assert farm.take("w1") == "3"


def test_inactive_with_nobody_else() -> None:
    farm = Farm()
    farm.join("w1")
    farm.submit("u", "1", "2")
    farm.pause("w1", "admin")
    assert farm.take("w1") is None
    farm.pause("w1")
    assert farm.drained() == ["1", "2"]


def test_cancel_worker_queue() -> None:
    farm = Farm()
    farm.join("w1", "w2")
    farm.submit("u", "1", "2", "3", "4", hint="a")
    assert farm.take("w1") == "1"
    assert farm.take("w2") is None
    assert farm.cancel("2"), "sent on to w1"
    assert farm.backlog() == {"w1": 2}
    farm.submit("u", "5")
    assert farm.cancel("5"), "in the pool's queue"
    farm.leave("w1")
    assert farm.cancel("3"), "of a worker that is gone"
    assert farm.drained() == ["1", "4"]


def test_push_back() -> None:
    farm = Farm()
    farm.join("w1", "w2")
    farm.submit("u", "1", "2", "3", hint="a")
    farm.take("w1")
    farm.take("w2")
    farm.pause("w1", "worker")
    farm.finish("1")
    farm.pause("w1")
    assert farm.drained() == ["2", "3"]


def test_fairness() -> None:
    farm = Farm({"alice": 2.0, "bob": 2.0})
    farm.join("w1", "w2")
    farm.submit("alice", "a1", "a2", "a3")
    assert farm.flow() == ["a1", "a2"]
    farm.submit("bob", "b1", "b2", "b3")
    farm.finish("a1")
    order = farm.flow()
    for id_ in ("a2", "b1", "a3"):
        farm.finish(id_)
        order += farm.flow()
    assert order == ["b1", "a3", "b2", "b3"]


def test_fairness_rates() -> None:
    farm = Farm({"alice": 5.0, "bob": 1.0})
    farm.join("w1", "w2")
    farm.submit("alice", "a1", "a2", "a3", "a4", "a5")
    assert farm.flow() == ["a1", "a2"]
    farm.submit("bob", "b1", "b2", "b3")
    farm.finish("a1")
    assert farm.drained() == ["b1", "a3", "a4", "a5", "b2", "b3"]


def test_reasons_to_be_inactive() -> None:
    """Each reason is enough; they are kept by the worker's record (tests of workers)."""
    farm = Farm()
    farm.join("w1")
    farm.submit("u", "1")
    farm.pause("w1", "worker", "admin")
    assert farm.take("w1") is None
    farm.pause("w1", "admin")
    assert farm.take("w1") is None
    farm.pause("w1", "shutdown")
    assert farm.take("w1") is None
    farm.pause("w1")
    assert farm.take("w1") == "1"


def test_a_paused_worker_is_not_sent_jobs_after_a_restart() -> None:
    farm = Farm()
    farm.join("w1", "w2")
    farm.submit("u", "1", hint="a")
    farm.take("w1")
    farm.finish("1")
    again = farm.stored()
    again.join("w1", "w2")
    again.pause("w1", "admin")
    again.submit("u", "2", hint="a")
    assert again.take("w2") == "2"


def test_forget() -> None:
    farm = Farm()
    farm.join("w1", "w2")
    farm.submit("u", "1", hint="a")
    farm.take("w1")
    farm.finish("1")
    farm.hints["a"] = policy.forgotten(farm.hints["a"], "w1")
    farm.submit("u", "2", hint="a")
    assert farm.take("w2") == "2"


def test_what_is_stored_is_fair_after_a_restart() -> None:
    """OCluster forgets what clients have had."""
    farm = Farm()
    farm.join("w1")
    farm.submit("alice", *(f"a{n}" for n in range(4)))
    farm.submit("bob", *(f"b{n}" for n in range(4)))
    farm.take("w1")
    farm.finish("a0")
    again = farm.stored()
    again.queues = farm.queues
    again.join("w1")
    assert again.drained()[:3] == ["b0", "a1", "b1"]


def test_a_big_job_is_not_overtaken_for_ever() -> None:
    farm = Farm()
    farm.join("w1", capacity=2)
    farm.submit("small", "s1", "s2", "s3")
    assert farm.flow() == ["s1", "s2"]
    farm.submit("big", "b", slots=2)
    farm.finish("s1")
    assert farm.flow() == [], "the slot is kept for b"
    farm.finish("s2")
    assert farm.flow() == ["b"]
    farm.finish("b")
    assert farm.drained() == ["s3"]


def test_a_hundred_hints_are_each_made_once() -> None:
    farm = Farm(settings=replace(Farm().settings, cold=400.0, warm=20.0))
    farm.join("w1", capacity=2)
    farm.join("w2", "w3", "w4", capacity=4)
    farm.join("w5", capacity=8)
    for turn in range(8):
        for hint in range(100):
            farm.submit("u", f"{hint}.{turn}", hint=str(hint))
    assert len(farm.drained()) == 800
    assert len(farm.misses) <= 105
