"""What a worker counts, as Prometheus reads it."""

from typing import TYPE_CHECKING

from msgspec import Struct

from obuilder.cluster.messages import Outcome, Presence

if TYPE_CHECKING:
    from obuilder.cluster.health import Guard


class Counts(Struct):
    """Since the worker started."""

    accepted: int = 0
    hits: int = 0
    misses: int = 0
    jobs: dict[str, int] = {}
    seconds: dict[str, float] = {}

    def ended(self, phase: str, seconds: float, outcome: Outcome) -> None:
        """A job ended after so many seconds."""
        self.jobs[phase] = self.jobs.get(phase, 0) + 1
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self.hits += outcome.cached
        self.misses += outcome.ran


def text(me: Presence, counts: Counts, guard: "Guard") -> str:
    """All of it, in Prometheus' text format."""
    lines: list[str] = []

    def one(name: str, kind: str, about: str, *values: tuple[str, float]) -> None:
        lines.append(f"# HELP obuilder_worker_{name} {about}")
        lines.append(f"# TYPE obuilder_worker_{name} {kind}")
        lines.extend(f"obuilder_worker_{name}{labels} {value}" for labels, value in values)

    one("jobs_accepted_total", "counter", "Jobs taken", ("", counts.accepted))
    one("job_seconds", "summary", "Time that jobs took, by how they ended",
        *((f'_sum{{result="{phase}"}}', counts.seconds[phase]) for phase in sorted(counts.jobs)),
        *((f'_count{{result="{phase}"}}', counts.jobs[phase]) for phase in sorted(counts.jobs)),
    )  # fmt: skip
    one("running_jobs", "gauge", "Jobs that run", ("", len(me.running)))
    one("slots", "gauge", "Slots there are", ("", me.capacity))
    one("slots_in_use", "gauge", "Slots that jobs take", ("", me.in_use))
    one("paused", "gauge", "Whether it takes no jobs, and why",
        *([(f'{{reason="{why}"}}', 1) for why, _ in me.paused] or [("", 0)]))  # fmt: skip
    one("unhealthy", "gauge", "Whether the last trial build failed", ("", int(not guard.healthy)))
    one("healthcheck_seconds", "gauge", "Time of the last trial build", ("", guard.seconds))
    one("cache_hits_total", "counter", "Steps that were there already", ("", counts.hits))
    one("cache_misses_total", "counter", "Steps that ran", ("", counts.misses))
    one("pruned_total", "counter", "Results deleted to make room", ("", guard.pruned))
    if me.free is not None and me.total is not None:
        one("store_free_bytes", "gauge", "Room in the store", ("", me.free))
        one("store_bytes", "gauge", "The store's disk", ("", me.total))
    return "\n".join(lines) + "\n"
