"""Builds as traces of OpenTelemetry, where the environment says where to; else nothing is loaded."""

import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from obuilder import events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from obuilder.observe.traces import Traces


class Traced(Protocol):
    """Makes a sink that also sends what a build does; one for each build."""

    def __call__(
        self, sink: events.Sink, attributes: Mapping[str, str] | None = None, /, *, parent: str = ""
    ) -> events.Sink:
        """The sink; `attributes` are of the build's span, `parent` the context it stands in if it is
        not the environment's.
        """


def _untraced(
    sink: events.Sink, _: Mapping[str, str] | None = None, /, *, parent: str = ""
) -> events.Sink:
    del parent
    return sink


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether traces are to be sent."""
    return (
        bool(
            environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
            or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        )
        and environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and environ.get("OTEL_TRACES_EXPORTER", "otlp") in ("", "otlp")
    )


class Tracing:
    """Gives a `Traced`; leaving it sends what is left. What goes wrong is a warning."""

    def __init__(self) -> None:
        self._traces: Traces | None = None

    def __enter__(self) -> Traced:
        """Begin."""
        if not wanted():
            return _untraced
        try:
            from obuilder.observe.traces import Traces
        except ImportError:
            _warn("OpenTelemetry is not installed: `pip install 'obuilder[otel]'`")
            return _untraced
        self._traces = Traces().__enter__()
        return self._traces.sink

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        if self._traces is not None:
            self._traces.__exit__(kind, error, trace)
            if self._traces.complaint:
                _warn(self._traces.complaint)


def _warn(text: str) -> None:
    sys.stderr.write(f"warning: the build's trace was not sent: {text}\n")
