"""Whatever clients, workers and jobs there are: shares are as rates, nobody starves, nothing idles
or is lost.
"""

from hypothesis import given, settings, strategies as st
from msgspec.structs import replace

from obuilder.cluster import policy
from obuilder.cluster.messages import Share
from scheduling import SETTINGS, Farm

RATES = st.lists(st.floats(0.1, 10.0), min_size=2, max_size=6)
COSTS = st.lists(st.floats(0.01, 100.0), min_size=6, max_size=6)


def taken(
    shares: dict[str, Share], costs: dict[str, float], waits: dict[str, policy.Waiting]
) -> str:
    """Take one job of whose turn it is."""
    client = policy.turns(waits, shares)[0].client
    now = policy.floor(waits, shares)
    shares[client] = policy.charged(shares[client], now, costs[client])
    return client


@given(RATES, COSTS, st.integers(1, 200))
@settings(deadline=None)
def test_shares_are_as_rates(rates: list[float], costs: list[float], takes: int) -> None:
    """What two clients that always wait have had, each by its rate, differs by a job of each at most."""
    names = [f"c{n}" for n in range(len(rates))]
    shares = {name: Share(rate=rate) for name, rate in zip(names, rates, strict=True)}
    price = dict(zip(names, costs, strict=False))
    waits = {name: policy.Waiting(0, 1) for name in names}
    had = dict.fromkeys(names, 0.0)
    for _ in range(takes):
        client = taken(shares, price, waits)
        had[client] += price[client] / shares[client].rate
        for one in names:
            for two in names:
                bound = price[one] / shares[one].rate + price[two] / shares[two].rate
                assert had[one] - had[two] <= bound * (1 + 1e-9) + 1e-6


@given(RATES, st.integers(1, 300))
@settings(deadline=None)
def test_who_was_away_has_saved_nothing_up(rates: list[float], takes: int) -> None:
    """After others were served for long, a client that comes back is served in turn, not alone."""
    names = [f"c{n}" for n in range(len(rates) + 1)]
    shares = {name: Share(rate=rate) for name, rate in zip(names, [1.0, *rates], strict=True)}
    price = dict.fromkeys(names, 1.0)
    others = {name: policy.Waiting(0, 1) for name in names[1:]}
    for _ in range(takes):
        taken(shares, price, others)
    everybody = {name: policy.Waiting(0, 1) for name in names}
    first = [taken(shares, price, everybody) for _ in range(5)]
    longest = max(1.0, *(price["c0"] / share.rate for share in shares.values()))
    assert first.count("c0") <= 2 + longest


@given(RATES)
@settings(deadline=None)
def test_nobody_starves(rates: list[float]) -> None:
    """Everybody who waits is served before the others have had what their rates make of one job of
    its.
    """
    names = [f"c{n}" for n in range(len(rates))]
    shares = {name: Share(rate=rate) for name, rate in zip(names, rates, strict=True)}
    price = dict.fromkeys(names, 1.0)
    waits = {name: policy.Waiting(0, 1) for name in names}
    most = sum(rate / min(rates) + 1 for rate in rates)
    served = {taken(shares, price, waits) for _ in range(int(most) + 1)}
    assert served == set(names)


@given(st.lists(st.floats(1.0, 1000.0), min_size=1, max_size=60), st.floats(1e-3, 1e6))
def test_an_estimate_is_among_what_was_seen(times: list[float], outlier: float) -> None:
    seen: float | None = None
    for time in times:
        seen = policy.estimate(seen, time)
    assert seen is not None
    assert min(times) * (1 - 1e-9) <= seen <= max(times) * (1 + 1e-9)
    moved = policy.estimate(seen, outlier)
    assert seen / 2 <= moved <= seen * 2, "one time moves it by half at most"


WORKERS = ("w1", "w2", "w3")
EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"), st.integers(1, 12), st.sampled_from("ab"),
            st.sampled_from(["", "x", "y"]), st.booleans(), st.integers(1, 4),
        ),
        st.tuples(
            st.just("finish"), st.integers(0, 9), st.booleans(), st.sampled_from([0.01, 3.0, 1e4])
        ),
        st.tuples(st.sampled_from(["leave", "join", "pause", "unpause"]), st.sampled_from(WORKERS)),
        st.tuples(st.just("wait"), st.floats(0, 1e7)),
    ),
    max_size=60,
)  # fmt: skip


@given(EVENTS)
@settings(deadline=None, max_examples=200)
def test_nothing_is_lost_twice_or_left(events: list[tuple[object, ...]]) -> None:
    """After any events: each job is in one place; none waits while a worker could run it; all end
    once.
    """
    farm = Farm(settings=replace(SETTINGS, cold=10.0, warm=2.0))
    submitted: set[str] = set()
    done: list[str] = []
    for number, event in enumerate(events):
        match event:
            case ("submit", int(many), str(client), str(hint), bool(urgent), int(slots)):
                ids = [f"{number}.{n}" for n in range(many)]
                submitted.update(ids)
                farm.submit(client, *ids, hint=hint, urgent=urgent, slots=slots)
            case ("finish", int(which), bool(well), float(seconds)) if farm.running:
                id_ = sorted(farm.running)[which % len(farm.running)]
                farm.finish(id_, well=well, seconds=seconds)
                done.append(id_)
            case ("leave", str(name)) if name in farm.workers:
                farm.leave(name)
            case ("join", str(name)) if name not in farm.workers:
                farm.join(name, capacity=4)
            case ("pause", str(name)) if name in farm.workers:
                farm.pause(name, "admin")
            case ("unpause", str(name)) if name in farm.workers:
                farm.pause(name)
            case ("wait", float(seconds)):
                farm.now += seconds
        farm.flow()
        assert sorted([*farm.queued(), *farm.running, *done]) == sorted(submitted)
        idle = [w for w in farm.workers.values() if not w.paused and not w.in_use]
        if idle:
            assert not any(farm.queues.values()), "what waits is taken by who has all its room"
    for id_ in list(farm.running):
        farm.finish(id_)
        done.append(id_)
    for name in WORKERS:
        if name not in farm.workers:
            farm.join(name, capacity=4)
        farm.pause(name)
    done += farm.drained()
    assert sorted(done) == sorted(submitted)
