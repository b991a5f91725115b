"""A job from `obuilder submit` to a real worker, as the page, the metrics and the trace tell of it."""

import subprocess
import time
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from prometheus_client.parser import text_string_to_metric_families

import clusters
import program
from collector import attributes, collecting
from obuilder.cluster.credentials import save_credentials
from pages import loopback, pages

pytestmark = [pytest.mark.xdist_group("web"), pytest.mark.needs("root")]
OUTER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SPEC = '((from micro) (shell /bin/sh -c) (run (shell "echo well; echo done")))'


def test_a_job_is_in_its_clients_trace_and_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "s").write_text(SPEC)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(clusters.running()) as cluster,
        collecting() as collector,
        pages(cluster.credentials, loopback()) as page,
    ):
        save_credentials(portal.call(cluster.client, "ann"), str(tmp_path / "ann"))
        save_credentials(portal.call(cluster.worker, "w1"), str(tmp_path / "w1"))
        worker = program.start(
            "worker", "--cluster", "w1", "--store", f"copy:{tmp_path}/store", "--sandbox", "host",
            "--free", "0", cwd=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_SCHEDULE_DELAY="50", streams={"stdin": subprocess.DEVNULL},
        )  # fmt: skip
        try:
            sent = program.finish(program.start(
                "submit", "--cluster", "ann", "--on", clusters.POOL, "-f", "s", ".", cwd=tmp_path,
                TRACEPARENT=OUTER,
            ))  # fmt: skip
            assert sent.status == 0, sent
            assert "well\n" in sent.out + sent.err
            deadline = time.monotonic() + 20
            while not any(span.name == "build" for span in collector.spans):
                assert time.monotonic() < deadline, "no trace came"
                time.sleep(0.05)
            build = collector.named("build")
            assert build.trace_id.hex() == OUTER.split("-")[1]
            assert build.parent_span_id.hex() == OUTER.split("-")[2]
            said = attributes(build)
            assert (said["obuilder.client"], said["obuilder.worker"]) == ("ann", "w1")
            steps = [span for span in collector.spans if span is not build]
            assert {span.parent_span_id for span in steps} == {build.span_id}
            assert any("echo well" in span.name for span in steps)
            path = f"/job/ann/{clusters.POOL}/{said['obuilder.job']}"
            assert "well" in page.until(path, "phase done")
            # The worker's own metrics come through its connection.
            own = page.until(f"/pool/{clusters.POOL}/worker/w1/metrics", "obuilder_")
            assert list(text_string_to_metric_families(own))
        finally:
            worker.kill()
            worker.wait()
