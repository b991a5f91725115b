"""A build as a trace of OpenTelemetry: a span for the build, in it one for each step.

The usual variables say where spans go (OTEL_EXPORTER_OTLP_ENDPOINT and its kin, OTLP over HTTP), whose
they are (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES), and in which trace (TRACEPARENT). Without an
endpoint nothing of this is loaded. That spans can't be sent fails no build.
"""

import logging
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from obuilder import __version__, events
from obuilder.spec.encode import one_line
from obuilder.values import Key, shown

_LONGEST = 200
"""Characters of a span's name."""


class Traces:
    """Sends what builds do as spans, until it is left. `sink` makes the sink of one build.

    What can't be sent is told by `complaint` afterwards.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._provider: TracerProvider | None = None
        self._listener = _Listener()

    def __enter__(self) -> Self:
        """Listen to what the exporter complains of."""
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self._listener)
        logger.propagate = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send what is left. It takes no longer than OTEL_EXPORTER_OTLP_TIMEOUT allows."""
        if self._provider is not None:
            self._provider.shutdown()
        logging.getLogger("opentelemetry").removeHandler(self._listener)

    @property
    def complaint(self) -> str:
        """Why spans were not sent; empty: they were."""
        return self._listener.said

    def sink(
        self, also: events.Sink, *, attributes: Mapping[str, str] | None = None, parent: str = ""
    ) -> events.Sink:
        """A sink for one build, that hands every event on to another.

        `parent` is a trace's context as TRACEPARENT has it, which is asked where it is empty.
        """
        spans = _Spans(self, dict(attributes or {}), parent or self._environ.get("TRACEPARENT", ""))

        def both(event: events.Event) -> None:
            spans.take(event)
            also(event)

        return both

    def tracer(self) -> trace.Tracer:
        """Made when the first event comes: it starts a thread, and a process that has several can enter
        no namespace any more.
        """
        if self._provider is None:
            named = {} if self._environ.get("OTEL_SERVICE_NAME") else {"service.name": "obuilder"}
            resource = Resource.create({**named, "service.version": __version__})
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return self._provider.get_tracer("obuilder", __version__)


class _Listener(logging.Handler):
    """Keeps the first thing that went wrong for good; what is tried again is only warned of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Take what is said."""
        self.said = self.said or record.getMessage()


class _Spans:
    """The spans of one build."""

    def __init__(self, traces: Traces, attributes: dict[str, str], parent: str) -> None:
        self._traces, self._attributes, self._parent = traces, attributes, parent
        self._build: Span | None = None
        self._over = False
        self._steps: dict[Key, Span] = {}
        self._ended: dict[Key, Span] = {}
        self._bytes: dict[Key, int] = {}
        self._plan: dict[Key, events.StepInfo] = {}

    def take(self, event: events.Event) -> None:
        """Follow the build by one event. What comes after its end is no part of it."""
        if self._over:
            return
        match event:
            case events.BuildStarted():
                self._plan = {step.key: step for step in event.steps}
                self._root().set_attribute("obuilder.steps", len(event.steps))
            case events.StepStarted():
                self._start(event)
            case events.Output():
                self._bytes[event.key] = self._bytes.get(event.key, 0) + len(event.data)
            case events.Note(warning=True):
                span = self._steps.get(event.key) if event.key else None
                (span or self._root()).add_event("warning", {"message": shown(event.text)})
            case events.StepCached():
                self._end(event.key, cached=True)
            case events.StepDone():
                self._end(event.key, cached=False)
            case events.StepEnded():
                self._end(event.key, cached=False, code=event.code, message=event.message)
            case events.BuildDone():
                span = self._root()
                span.set_attributes(
                    {
                        "obuilder.result": event.result,
                        "obuilder.steps.cached": event.cached,
                        "obuilder.steps.ran": event.ran,
                    }
                )
                self._close()
            case events.BuildEnded():
                _fail(self._root(), event.code, event.message)
                self._close()
            case events.Progress() | events.Note():
                return

    def _root(self) -> Span:
        if self._build is None:
            context = None
            if self._parent:
                context = TraceContextTextMapPropagator().extract({"traceparent": self._parent})
            self._build = self._traces.tracer().start_span(
                "build", context=context, attributes=self._attributes, start_time=time.time_ns()
            )
        return self._build

    def _start(self, event: events.StepStarted) -> None:
        again = self._steps.pop(event.key, None)
        if again is not None:
            again.end()
        info = self._plan.get(event.key)
        needs = [self._ended[key] for key in (info.needs if info else ()) if key in self._ended]
        self._steps[event.key] = self._traces.tracer().start_span(
            shown(one_line(event.heading))[:_LONGEST],
            context=trace.set_span_in_context(self._root()),
            attributes={"obuilder.step.key": event.key, "obuilder.step.stage": shown(event.stage)},
            links=[Link(span.get_span_context()) for span in needs],
            start_time=time.time_ns(),
        )

    def _end(self, key: Key, *, cached: bool, code: str = "", message: str = "") -> None:
        span = self._steps.pop(key, None)
        if span is None:
            return
        span.set_attribute("obuilder.step.cached", cached)
        span.set_attribute("obuilder.step.output_bytes", self._bytes.pop(key, 0))
        if code:
            _fail(span, code, message)
        span.end()
        self._ended[key] = span

    def _close(self) -> None:
        for span in self._steps.values():
            span.end()
        self._steps.clear()
        self._root().end()
        self._over = True


def _fail(span: Span, code: str, message: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(Status(StatusCode.ERROR, shown(message)))
