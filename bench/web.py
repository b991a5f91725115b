"""What the web page costs: `scripts/bench web`, on a machine at rest.

A cluster of 20 pools, 1,000 workers, 100 clients and 100,000 jobs, half of which wait, as the page's
copy has it: the memory that the jobs take, and the processor time of what each page shows. Then a
log of 100,000 lines, from its events to the page's lines.
"""

import resource
import time
from collections.abc import Callable

from prometheus_client import generate_latest

from obuilder import events
from obuilder.cluster import names
from obuilder.cluster.messages import Client, Outcome, Pool, Presence, State, encode
from obuilder.values import Key
from obuilder.web import charts, queue, views
from obuilder.web.logview import LogView
from obuilder.web.metrics import Metrics
from obuilder.web.mirror import Mirror

JOBS, POOLS, CLIENTS, WORKERS = 100_000, 20, 100, 1000


def _filled(now: float) -> Mirror:
    mirror = Mirror()
    for number in range(POOLS):
        mirror.take(names.pool(f"pool{number}"), encode(Pool(name=f"pool{number}")))
    for number in range(CLIENTS):
        mirror.take(names.client(f"client{number}"), encode(Client(name=f"client{number}")))
    for number in range(WORKERS):
        pool, name = f"pool{number % POOLS}", f"w{number}"
        worker = Presence(pool=pool, name=name, session="s", capacity=4, in_use=2)
        mirror.take(names.worker(pool, name), encode(worker))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(JOBS):
        submitted = now - 86400 * (JOBS - number) / JOBS
        state = State(
            submitted=submitted, title=f"irmin#{number} on debian-12", hint=f"irmin-{number % 50}"
        )
        if number < JOBS // 2:
            outcome = Outcome(result=Key("a" * 64), cached=3, ran=4)
            state = State(
                phase="done", attempt=1, worker=f"w{number % WORKERS}", submitted=submitted,
                started=submitted + 5, ended=submitted + 60, outcome=outcome, title=state.title,
                hint=state.hint,
            )  # fmt: skip
        client, pool = f"client{number % CLIENTS}", f"pool{number % POOLS}"
        mirror.take(names.job(client, pool, names.new_job(), "state"), encode(state))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{'memory of the jobs':<28} {grown / 1024:8.0f} MiB")
    return mirror


def _timed(what: str, work: Callable[[], object]) -> None:
    began = time.process_time()
    work()
    print(f"{what:<28} {1000 * (time.process_time() - began):8.1f} ms")


def main() -> None:
    """Print it."""
    now = time.time()
    mirror = _filled(now)
    metrics = Metrics(mirror)
    rows = [views.JobRow(job, state) for job, state in mirror.jobs.items()]
    log = [events.Output(Key("a" * 64), b"line %d of many\n" % n) for n in range(100_000)]
    view = LogView()
    _timed("all pools", lambda: views.pools(mirror))
    _timed("a pool's queue", lambda: queue.waiting(mirror, "pool1"))
    _timed("the newest jobs", lambda: views.jobs(mirror, views.Filter(), now))
    _timed("jobs with words none has", lambda: views.jobs(mirror, views.Filter(text="?"), now))
    _timed("clients", lambda: views.clients(mirror))
    _timed("history of a day", lambda: charts.history(rows, now, 86400.0))
    _timed("metrics", lambda: generate_latest(metrics.registry))
    _timed("a log of 100,000 lines", lambda: [view.feed(event, now) for event in log])


if __name__ == "__main__":
    main()
