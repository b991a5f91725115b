"""What programs read: metrics, and whether the page is well."""

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from obuilder.cluster import names
from obuilder.cluster.messages import Answer, decode
from obuilder.errors import ClusterError
from obuilder.web.site import site_of


async def metrics(request: Request) -> Response:
    """All that the page knows, in Prometheus' format."""
    site = site_of(request)
    return Response(generate_latest(site.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def worker_metrics(request: Request) -> Response:
    """A worker's own metrics, over the connection that it has: nothing has to reach it."""
    site, where = site_of(request), request.path_params
    found = site.mirror.worker(where["pool"], where["worker"])
    if found is None or found.presence is None:
        raise HTTPException(404, "There is no such worker, or it is not connected.")
    try:
        said = await site.engine.request(
            names.question(found.pool, found.name, "metrics"), b"", seconds=2
        )
        answer = decode(said, Answer)
    except ClusterError as error:
        raise HTTPException(502, f"The worker does not answer: {error.message}") from None
    return Response(answer.data or answer.text.encode(), media_type=CONTENT_TYPE_LATEST)


async def health(request: Request) -> Response:
    """200 where what pages show is up to date."""
    site = site_of(request)
    if not site.mirror.ready.is_set():
        return PlainTextResponse("starting\n", 503)
    if not site.engine.connected:
        return PlainTextResponse("not connected to the cluster\n", 503)
    return PlainTextResponse("ok\n")
