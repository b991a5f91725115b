"""Metrics of the cluster for Prometheus, from the copy of it.

Numbers of what is there now are read off the copy when they are asked for; what happens is counted
from the moment the page starts, as Prometheus wants it. docs/cluster/web.md lists the names. Labels
are names that administrators gave and words of ours: what jobs say of themselves makes no series.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import anyio
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from obuilder import __version__
from obuilder.cluster.accounts import VARZ
from obuilder.cluster.engine import Engine
from obuilder.cluster.messages import ENDED, Presence, State
from obuilder.errors import ClusterError, ObuilderError
from obuilder.web import views
from obuilder.web.mirror import JobId, Mirror

_EVERY = 10.0
_OTHER = "other"
"""A label in place of one that is none of ours."""
_WAITING = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_RUNNING = (1, 5, 15, 60, 180, 600, 1800, 3600, 2 * 3600, 6 * 3600)


class Metrics:
    """Counts what happens to jobs; `registry` has all there is."""

    def __init__(self, mirror: Mirror) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._standing = _Standing(mirror)
        self.registry.register(self._standing)
        self._mirror = mirror
        self._submitted = Counter(
            "obuilder_jobs_submitted", "Jobs that were put in a queue",
            ["pool", "client", "priority"], registry=self.registry,
        )  # fmt: skip
        self._accepted = Counter(
            "obuilder_jobs_accepted", "Jobs that a worker took, again after a worker died too",
            ["pool", "client"], registry=self.registry,
        )  # fmt: skip
        self._ended = Counter(
            "obuilder_jobs_ended", "Jobs that ended: done, failed or cancelled; code: the error's",
            ["pool", "client", "outcome", "code"], registry=self.registry,
        )  # fmt: skip
        self._waited = Histogram(
            "obuilder_job_waiting_seconds", "From submitting to the worker that took it",
            ["pool", "priority"], buckets=_WAITING, registry=self.registry,
        )  # fmt: skip
        self._ran = Histogram(
            "obuilder_job_running_seconds", "From the last worker's taking it to its end",
            ["pool", "outcome", "warm"], buckets=_RUNNING, registry=self.registry,
        )  # fmt: skip
        self._steps = Counter(
            "obuilder_steps", "Steps of jobs that ended; cached: true or false",
            ["pool", "cached"], registry=self.registry,
        )  # fmt: skip

    async def watch(self, engine: Engine, system: Engine) -> None:
        """Ask the engine how it is, again and again, until cancelled. `system`: who may ask servers."""
        while True:
            with suppress(ClusterError):
                streams = await engine.streams()
                servers = await system.gather(VARZ)
                self._standing.streams = {name: info["state"] for name, info in streams.items()}
                self._standing.servers = [json.loads(said)["data"] for said in servers]
            await anyio.sleep(_EVERY)

    def count(self, job: JobId, old: State | None, new: State | None) -> None:
        """A change of a job: a listener of the copy."""
        if new is None or not self._mirror.ready.is_set():
            return
        pool = job.pool if job.pool in self._mirror.pools else _OTHER
        priority = "high" if new.urgent else "low"
        if old is None:
            self._submitted.labels(pool, job.client, priority).inc()
        if new.attempt > (old.attempt if old else 0) and new.started is not None:
            self._accepted.labels(pool, job.client).inc()
            if new.attempt == 1:
                waited = max(0.0, new.started - new.submitted)
                self._waited.labels(pool, priority).observe(waited)
        if new.phase in ENDED and (old is None or old.phase not in ENDED):
            self._end(pool, job.client, new)

    def _end(self, pool: str, client: str, state: State) -> None:
        outcome = state.outcome
        code = outcome.code if outcome else ""
        if code not in _CODES:
            code = _OTHER
        self._ended.labels(pool, client, state.phase, code).inc()
        if state.started is not None and state.ended is not None:
            ran = max(0.0, state.ended - state.started)
            self._ran.labels(pool, state.phase, str(state.warm).lower()).observe(ran)
        if outcome is not None:
            self._steps.labels(pool, "true").inc(max(0, outcome.cached))
            self._steps.labels(pool, "false").inc(max(0, outcome.ran))


def _codes(kind: type[ObuilderError]) -> set[str]:
    return {kind.code}.union(*map(_codes, kind.__subclasses__()))


_CODES = {"", "cancelled", *_codes(ObuilderError)}
"""What an outcome's code may be; kinds of jobs may say any."""


_OF_POOLS: tuple[tuple[str, str, Callable[[views.PoolRow], float]], ...] = (
    (
        "workers_connected",
        "Workers that are there",
        lambda row: len(row.workers) - row.count("gone"),
    ),
    ("workers_ready", "Workers that take jobs", lambda row: row.count("ready", "full")),
    ("workers_paused", "Workers that are there and take none", lambda row: row.count("paused")),
    ("workers_gone", "Workers that were there once", lambda row: row.count("gone")),
    ("capacity", "Slots of the workers that are there", lambda row: row.capacity),
    ("in_use", "Slots with jobs in them", lambda row: row.in_use),
    ("jobs_running", "Jobs that run", lambda row: row.running),
)
_OF_WORKERS: tuple[tuple[str, str, Callable[[Presence], float | None]], ...] = (
    ("capacity", "Slots", lambda found: found.capacity),
    ("in_use", "Slots with jobs in them", lambda found: found.in_use),
    ("load", "The machine's load average of a minute", lambda found: found.load),
    ("space_free_bytes", "Free in its store", lambda found: found.free),
    ("space_total_bytes", "Of its store", lambda found: found.total),
    ("start_time_seconds", "When it started", lambda found: found.since),
)


class _Standing(Collector):
    """What there is now."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self.streams: Mapping[str, Mapping[str, Any]] = {}
        self.servers: list[Mapping[str, Any]] = []

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on the cluster."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All of it."""
        yield InfoMetricFamily("obuilder_web", "This program", value={"version": __version__})
        yield from self._pools()
        yield from self._queues()
        yield from self._workers()
        yield from self._engine()

    def _pools(self) -> Iterator[Metric]:
        rows = views.pools(self._mirror)
        for name, text, number in _OF_POOLS:
            family = GaugeMetricFamily(f"obuilder_pool_{name}", text, labels=["pool"])
            for row in rows:
                family.add_metric([row.name], number(row))
            yield family

    def _queues(self) -> Iterator[Metric]:
        lengths = {
            (pool, client, priority): 0
            for client, pool in self._mirror.numbers
            if pool in self._mirror.pools
            for priority in ("high", "low")
        }
        oldest: dict[str, float] = {}
        for pool in self._mirror.pools:
            for row in views.active(self._mirror, "queued", pool=pool):
                lengths[pool, row.job.client, "high" if row.state.urgent else "low"] += 1
                oldest[pool] = min(oldest.get(pool, row.state.submitted), row.state.submitted)
        length = GaugeMetricFamily(
            "obuilder_queue_length", "Jobs that wait", labels=["pool", "client", "priority"]
        )
        for labels, number in lengths.items():
            length.add_metric(list(labels), number)
        yield length
        since = GaugeMetricFamily(
            "obuilder_queue_oldest_timestamp_seconds", "When the job that waits longest was submitted",
            labels=["pool"],
        )  # fmt: skip
        for pool, at in oldest.items():
            since.add_metric([pool], at)
        yield since

    def _workers(self) -> Iterator[Metric]:
        labels = ["pool", "worker"]
        rows = [
            views.WorkerRow(one)
            for pool in self._mirror.pools
            for one in self._mirror.workers(pool)
        ]
        there = [(row, row.presence) for row in rows if row.presence is not None]
        for name, text, number in _OF_WORKERS:
            family = GaugeMetricFamily(f"obuilder_worker_{name}", text, labels=labels)
            for row, presence in there:
                if (value := number(presence)) is not None:
                    family.add_metric([row.worker.pool, row.worker.name], value)
            yield family
        why = GaugeMetricFamily(
            "obuilder_worker_paused",
            "1 for each reason why a worker takes no jobs",
            labels=[*labels, "reason"],
        )
        unhealthy = GaugeMetricFamily(
            "obuilder_worker_unhealthy", "1: its health check fails", labels=labels
        )
        for row, presence in there:
            place = [row.worker.pool, row.worker.name]
            reasons = {reason for reason, _ in presence.paused} | (
                {"admin"} if row.worker.paused else set()
            )
            for reason in sorted(reasons):
                why.add_metric([*place, reason], 1)
            unhealthy.add_metric(place, float("health" in reasons))
        yield why
        yield unhealthy

    def _engine(self) -> Iterator[Metric]:
        for name, text, key in (
            ("bytes", "What a stream of the engine keeps", "bytes"),
            ("messages", "Messages in a stream of the engine", "messages"),
        ):
            family = GaugeMetricFamily(f"obuilder_stream_{name}", text, labels=["stream"])
            for stream, state in self.streams.items():
                family.add_metric([stream], state[key])
            yield family
        for name, text, key in (
            ("memory_bytes", "Memory of a server of the engine", "mem"),
            ("connections", "Who is connected to it", "connections"),
            ("slow_consumers", "Connections that it cut as they were too slow", "slow_consumers"),
        ):
            family = GaugeMetricFamily(f"obuilder_server_{name}", text, labels=["server"])
            for server in self.servers:
                family.add_metric([str(server["server_name"])], server[key])
            yield family
