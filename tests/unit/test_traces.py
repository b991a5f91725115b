"""Builds as traces, received by a collector of our own that reads OTLP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from collector import Collector, attributes, collecting
from obuilder import events
from obuilder.cli.tracing import wanted
from obuilder.observe.traces import Traces
from obuilder.values import Key
from program import finish, start

A, B, C = Key("a" * 64), Key("b" * 64), Key("c" * 64)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        yield server


STREAM = [
    events.BuildStarted(
        steps=(
            events.StepInfo(A, "", "(from x)", cached=True),
            events.StepInfo(B, "dev", "(run make)", cached=False, needs=(A,)),
            events.StepInfo(C, "", "(run false)", cached=False, needs=(A, B)),
        )
    ),
    events.StepStarted(A, "", "(from x)"),
    events.StepCached(A),
    events.StepStarted(B, "dev", "(run make)"),
    events.Output(B, b"hello"),
    events.Output(B, b" world"),
    events.Note("slow", key=B, warning=True),
    events.StepDone(B, 1.0),
    events.StepStarted(C, "", "(run false)"),
    events.StepEnded(C, "step-failed", "it ended with 1 \udcff", 0.1),
    events.BuildEnded("step-failed", "it ended with 1", 1.2),
    events.Note("after the end", warning=True),
]


def test_a_build_is_a_span_and_each_step_one_in_it(collector: Collector) -> None:
    seen: list[events.Event] = []
    outer = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Traces() as traces:
        sink = traces.sink(seen.append, attributes={"obuilder.job": "j"}, parent=outer)
        for event in STREAM:
            sink(event)
    assert seen == STREAM
    assert traces.complaint == ""
    build, made, failed = (collector.named(n) for n in ("build", "(run make)", "(run false)"))
    assert len(collector.spans) == 4
    assert build.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert build.parent_span_id.hex() == "b7ad6b7169203331"
    assert {span.parent_span_id for span in collector.spans if span is not build} == {build.span_id}
    assert attributes(build) == {
        "obuilder.job": "j",
        "obuilder.steps": 3,
        "error.type": "step-failed",
    }
    assert attributes(made) == {
        "obuilder.step.key": B, "obuilder.step.stage": "dev",
        "obuilder.step.cached": False, "obuilder.step.output_bytes": 11,
    }  # fmt: skip
    assert attributes(collector.named("(from x)"))["obuilder.step.cached"] is True
    assert [event.name for event in made.events] == ["warning"]
    assert (made.status.code, failed.status.code) == (0, 2)
    assert failed.status.message == r"it ended with 1 \xff"
    first = collector.named("(from x)")
    assert {link.span_id for link in failed.links} == {first.span_id, made.span_id}
    assert build.start_time_unix_nano <= made.start_time_unix_nano <= made.end_time_unix_nano
    assert made.end_time_unix_nano <= build.end_time_unix_nano
    assert collector.resources[0]["service.name"] == "obuilder"


def test_builds_of_the_program_are_sent_and_cached_ones_too(
    collector: Collector, tmp_path: Path
) -> None:
    (tmp_path / "s").write_text("((from scratch) (mkdir /here) (mkdir /there))")
    arguments = "build", "-f", "s", "--store", f"copy:{tmp_path}/store", "--sandbox=host", "."
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "ci"}
    for ran in (True, False):
        done = finish(start(*arguments, cwd=tmp_path, **variables))
        assert (done.status, done.err.count("warning: the build")) == (0, 0), done
        (build,) = [span for span in collector.spans if span.name == "build"]
        assert attributes(build)["obuilder.steps.ran"] == (3 if ran else 0)
        assert {r["service.name"] for r in collector.resources} == {"ci"}
        collector.spans.clear()


def test_a_collector_that_is_not_there_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("((from scratch) (mkdir /here))")
    arguments = "build", "-f", "s", "--store", f"copy:{tmp_path}/store", "--sandbox=host", "."
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    done = finish(start(*arguments, cwd=tmp_path, **variables))
    assert done.status == 0
    assert done.err.count("warning: the build's trace was not sent: ") == 1, done.err
    assert len(done.err.splitlines()) == 1, done.err


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_when_traces_are_wanted(environ: dict[str, str], expected: bool) -> None:
    assert wanted(environ) is expected
