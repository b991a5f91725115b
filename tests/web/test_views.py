"""What pages show, from what the cluster's streams say."""

import re

import pytest

from obuilder.cluster import names
from obuilder.cluster.messages import (
    Client,
    Known,
    Message,
    Outcome,
    Paused,
    Phase,
    Pool,
    Presence,
    Share,
    State,
    encode,
)
from obuilder.errors import UsageError
from obuilder.web import charts, mirror as mirrors, queue, views
from obuilder.web.metrics import Metrics
from obuilder.web.mirror import JobId, Mirror
from obuilder.web.session import LASTS, Gate

NOW = 1_800_000_000.0


def told(*messages: tuple[str, Message | None]) -> Mirror:
    mirror = Mirror()
    for subject, message in messages:
        mirror.take(subject, b"" if message is None else encode(message))
    return mirror


def state(job: str, client: str = "ann", pool: str = "p", **parts: object) -> tuple[str, State]:
    return names.job(client, pool, job, "state"), State(**{"submitted": NOW - 60, **parts})  # type: ignore[arg-type] # a test's


POOL = (names.pool("p"), Pool(name="p", cold=100.0))


def presence(name: str, **parts: object) -> tuple[str, Presence]:
    given = {"capacity": 4, "in_use": 1, "session": "s", **parts}
    return names.worker("p", name), Presence(pool="p", name=name, **given)  # type: ignore[arg-type] # a test's


# --- the copy ------------------------------------------------------------------------------------


def test_the_copy_has_the_last_of_everything_and_forgets_what_is_gone() -> None:
    mirror = told(
        POOL, state("1"), state("2"), state("1", phase="running", worker="w", started=NOW)
    )
    assert mirror.active["p"] == {JobId(id=name, client="ann", pool="p") for name in "12"}
    mirror.take(*((subject := state("1")[0]), encode(State(phase="done")))[0:2])
    assert len(mirror.active["p"]) == 1
    mirror.take(subject, b"")
    assert [job.id for job in mirror.order] == ["2"]
    version = mirror.version
    mirror.take("nobody.knows.this", b"x")
    mirror.take(names.pool("q"), b"no message")
    mirror.take(names.pool("q"), encode(Pool(name="q", v=99)))
    assert (mirror.version, list(mirror.pools)) == (version, ["p"])


def test_of_jobs_that_ended_the_oldest_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "KEPT", 3)
    mirror = told(state("1"), *(state(name, phase="done") for name in "3524"), state("6"))
    assert [job.id for job in mirror.order] == ["1", "5", "6"]
    assert set(mirror.order) == set(mirror.jobs)
    assert mirror.numbers["ann", "p"] == {"queued": 2, "done": 1}
    mirror.take(state("1")[0], b"")
    assert mirror.numbers["ann", "p"] == {"queued": 1, "done": 1}


def test_of_what_jobs_say_only_so_much_is_remembered() -> None:
    outcome = Outcome(message="m" * 10**6, value=b"v" * 10**6)
    mirror = told(state("1", title="t" * 10**6, hint="h" * 10**6, outcome=outcome))
    (found,) = mirror.jobs.values()
    assert found.outcome is not None
    assert (len(found.title), len(found.hint), len(found.outcome.message)) == (300, 300, 4000)
    assert found.outcome.value == b""
    mirror.take('job.ann.p."><b>.state', encode(State()))
    assert len(mirror.jobs) == 1


def test_listeners_hear_of_changes_alone() -> None:
    mirror, heard = told(POOL), []
    with mirror.listening(lambda job, old, new: heard.append((job.id, old, new))):
        for _ in range(2):
            mirror.take(state("1")[0], encode(state("1")[1]))
    mirror.take(state("1")[0], b"")
    assert heard == [("1", None, state("1")[1])]


# --- pools, workers, clients ---------------------------------------------------------------------


def test_how_a_worker_stands() -> None:
    mirror = told(
        POOL,
        presence("ready"), presence("full", in_use=4), presence("sick", paused=(("health", "no crun"),)),
        presence("off"), (names.pause("p", "off"), Paused(reason="new disk")),
        (names.known("p", "gone"), Known(first=1, last=2)),
        (names.pause("p", "never"), Paused()),
    )  # fmt: skip
    rows = {row.worker.name: row for row in map(views.WorkerRow, mirror.workers("p"))}
    assert {name: row.standing for name, row in rows.items()} == {
        "ready": "ready", "full": "full", "sick": "paused", "off": "paused", "gone": "gone", "never": "gone",
    }  # fmt: skip
    assert rows["sick"].reasons == ["its health check fails: no crun"]
    assert rows["off"].reasons == ["an administrator paused it: new disk"]
    pool = views.pools(mirror)[0]
    assert (pool.capacity, pool.in_use, pool.count("ready", "full"), pool.count("gone")) == (
        16,
        7,
        2,
        2,
    )


def test_clients_have_shares_and_numbers() -> None:
    mirror = told(
        POOL, (names.client("ann"), Client(name="ann", added=5)), (names.client("bob"), Client(name="bob")),
        (names.fair("p", "ann"), Share(rate=2)),
        state("1"), state("2", phase="running"), state("3", phase="failed"), state("4", client="old"),
    )  # fmt: skip
    rows = {row.name: row for row in views.clients(mirror)}
    assert (rows["ann"].queued, rows["ann"].running, rows["ann"].ended) == (1, 1, 1)
    assert rows["ann"].shares["p"].rate == 2
    assert [rows[name].revoked for name in ("ann", "bob", "old")] == [False, False, True]
    assert [row.name for row in views.clients(mirror, "p")] == ["ann", "old"]


# --- jobs ----------------------------------------------------------------------------------------


def test_jobs_are_found_by_all_that_is_asked_and_come_in_pages() -> None:
    phases: tuple[Phase, ...] = ("queued", "done", "failed")
    mirror = told(
        *(
            state(
                f"{n:02}", client=("ann", "bob")[n % 2], phase=phases[n % 3], title=f"Job {n}",
                submitted=NOW - 3600 * (20 - n), worker="w" if n % 3 else "",
            )
            for n in range(20)
        ),
        state("99", title="", hint="Lwt on Debian", outcome=Outcome(message="it Broke")),
    )  # fmt: skip

    def found(**query: str) -> list[str]:
        return [row.job.id for row in views.jobs(mirror, views.asked(query), NOW).rows]

    assert len(found()) == 21
    assert found(client="bob", phase="failed") == ["17", "11", "05"]
    assert found(since="1h") == ["99", "19"]
    assert found(text="lwt ON") == found(text="broke") == ["99"]
    assert found(text="job 1", worker="w", client="ann") == ["16", "14", "10"]
    assert found(pool="q") == []
    first = views.jobs(mirror, views.Filter(), NOW, length=15)
    rest = views.jobs(mirror, views.Filter(), NOW, length=15, before=first.older)
    assert (len(first.rows), len(rest.rows), rest.older) == (15, 6, "")
    with pytest.raises(UsageError, match="no job is 'bad'"):
        views.asked({"phase": "bad"})
    with pytest.raises(UsageError, match="look back"):
        views.asked({"since": "1y"})


def test_how_long_a_job_waited_and_ran() -> None:
    job = JobId(id="1", client="a", pool="p")
    queued, ran = State(submitted=NOW - 9), State(submitted=NOW - 9, started=NOW - 5, ended=NOW - 1)
    assert (views.JobRow(job, queued).waited(NOW), views.JobRow(job, queued).ran(NOW)) == (9, None)
    assert (views.JobRow(job, ran).waited(NOW), views.JobRow(job, ran).ran(NOW)) == (4, 4)


def test_the_queue_is_in_the_order_of_the_workers_policy() -> None:
    mirror = told(
        POOL,
        (names.fair("p", "ann"), Share(rate=1, time=50)), (names.fair("p", "bob"), Share(rate=4, time=50)),
        *(state(f"a{n}", client="ann") for n in range(3)),
        *(state(f"b{n}", client="bob") for n in range(3)),
        (names.fair("p", "cyd"), Share(time=50)), state("c0", client="cyd", urgent=True),
    )  # fmt: skip
    order = queue.waiting(mirror, "p")
    assert [one.row.job.id for one in order] == ["c0", "a0", "b0", "b1", "b2", "a1", "a2"]
    assert [one.start for one in order[1:]] == [0, 0, 25, 50, 100, 200]
    assert queue.ahead(mirror, order[3].row) == 3
    assert queue.ahead(mirror, views.JobRow(order[0].row.job, State(phase="running"))) == 0
    assert queue.waiting(mirror, "none") == []


# --- history and words ---------------------------------------------------------------------------


def test_history_is_counted_into_pieces_of_time() -> None:
    rows = [
        views.JobRow(JobId(id=str(n), client="a", pool="p"), State(
            phase=phase, submitted=NOW - ago - 10, started=NOW - ago - 8, ended=NOW - ago,
        ))
        for n, (phase, ago) in enumerate([("done", 5), ("failed", 5), ("cancelled", 5), ("done", 3500), ("done", 9999)])
    ]  # fmt: skip
    buckets = charts.history(rows, NOW, 3600.0, pieces=6)
    assert [bucket.ended for bucket in buckets] == [1, 0, 0, 0, 0, 3]
    assert (buckets[-1].waiting, buckets[-1].running) == ((2, 2), (8, 8))
    for chart in (charts.ends(buckets), charts.times("t", buckets, "waiting")):
        assert re.fullmatch(r"<svg .*</svg>", chart)
    assert charts.percentile([3, 1, 2], 0.5) == 2
    assert charts.ends(charts.history([], NOW, 60.0)).count("<rect") == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90000, "1 d 1 h"), (-5, "0.0 s"), (None, "")],
)  # fmt: skip
def test_how_times_are_said(seconds: float | None, words: str) -> None:
    assert views.duration(seconds) == words


# --- metrics -------------------------------------------------------------------------------------


def test_metrics_count_what_happens_from_the_start_of_the_page() -> None:
    mirror = told(
        POOL, (names.client("ann"), Client(name="ann")), state("0"), presence("w", free=5, total=9)
    )
    metrics = Metrics(mirror)
    from prometheus_client import generate_latest

    with mirror.listening(metrics.count):
        mirror.take(state("1")[0], encode(state("1")[1]))
        mirror.ready.set()
        running = {"phase": "running", "attempt": 1, "started": NOW - 50}
        ended = {
            **running,
            "phase": "failed",
            "ended": NOW,
            "outcome": Outcome(code="step-failed", cached=2, ran=3),
        }
        for parts in ({}, running, running, {**running, "attempt": 2}, ended):
            mirror.take(state("2", **parts)[0], encode(state("2", **parts)[1]))
        for number in range(50):  # who makes names up makes no series
            odd = {**ended, "outcome": Outcome(code=f"odd-{number}")}
            subject, message = state("3", pool=f"odd-{number}", **odd)
            mirror.take(subject, encode(message))
    text = generate_latest(metrics.registry).decode()
    for line in (
        'obuilder_jobs_submitted_total{client="ann",pool="p",priority="low"} 1.0',
        'obuilder_jobs_accepted_total{client="ann",pool="p"} 2.0',
        'obuilder_jobs_ended_total{client="ann",code="step-failed",outcome="failed",pool="p"} 1.0',
        'obuilder_job_waiting_seconds_bucket{le="15.0",pool="p",priority="low"} 1.0',
        'obuilder_job_running_seconds_sum{outcome="failed",pool="p",warm="false"} 50.0',
        'obuilder_steps_total{cached="true",pool="p"} 2.0',
        'obuilder_queue_length{client="ann",pool="p",priority="low"} 2.0',
        'obuilder_pool_workers_ready{pool="p"} 1.0',
        'obuilder_worker_space_free_bytes{pool="p",worker="w"} 5.0',
        'obuilder_worker_unhealthy{pool="p",worker="w"} 0.0',
        'obuilder_jobs_ended_total{client="ann",code="other",outcome="failed",pool="other"} 50.0',
    ):
        assert line in text.splitlines(), text
    assert "odd-" not in text


# --- sessions ------------------------------------------------------------------------------------


def test_a_session_is_of_who_knew_the_token_for_its_time_and_its_forms_are_its_own() -> None:
    gate, other = Gate(b"a long enough token"), Gate(b"another long token")
    assert gate.admits("a long enough token\n")
    assert not gate.admits("a long enough tokem")
    assert not Gate(None).admits("")
    cookie, second = gate.begin(NOW), gate.begin(NOW)
    session, mine = gate.session(cookie, NOW + 5), gate.session(second, NOW + 5)
    assert session is not None
    assert mine is not None
    assert gate.proves(session, session.form)
    assert not gate.proves(session, mine.form)
    assert gate.session(cookie, NOW + LASTS + 1) is None
    assert other.session(cookie, NOW) is None
    assert Gate(None).session(cookie, NOW) is None
    name, until, signature = cookie.split(".")
    for forged in (
        "",
        "x",
        f"{name}.{int(until) + 9}.{signature}",
        f"other.{until}.{signature}",
        f"{name}.\u0661.{signature}",
    ):
        assert gate.session(forged, NOW) is None
