"""Builds as traces, received by a collector of our own that reads OTLP."""

import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from obuilder import events
from obuilder.cli.tracing import wanted
from obuilder.observe.traces import Traces
from obuilder.values import Key
from program import finish, start

A, B, C = Key("a" * 64), Key("b" * 64), Key("c" * 64)


class Collector(http.server.ThreadingHTTPServer):
    """Takes spans over HTTP, as collectors do."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def named(self, name: str) -> Span:
        (found,) = [span for span in self.spans if span.name == name]
        return found


class Answering(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        assert self.path == "/v1/traces"
        for found in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.server.resources.append(
                {a.key: a.value.string_value for a in found.resource.attributes}
            )
            for scope in found.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, object]:
    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}


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
