"""The pages that are read: each takes the copy of the cluster and shows a part of it."""

from collections.abc import Awaitable, Callable
from functools import wraps

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from obuilder.cluster.messages import ENDED
from obuilder.web import charts, queue, views
from obuilder.web.graph import plan
from obuilder.web.live import read_log, spec
from obuilder.web.logview import LogView
from obuilder.web.mirror import JobId
from obuilder.web.site import site_of

Handler = Callable[[Request], Awaitable[Response]]


def _of_the_copy(handler: Handler) -> Handler:
    """A page of nothing but the copy: a script that has it is told when it would be the same again."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        tag = site_of(request).tag
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        shown = await handler(request)
        shown.headers["ETag"] = tag
        return shown

    return answer


@_of_the_copy
async def pools(request: Request) -> Response:
    """All pools."""
    site = site_of(request)
    return site.page(request, "pools.html", pools=views.pools(site.mirror))


@_of_the_copy
async def pool(request: Request) -> Response:
    """A pool: its workers, its queue, its clients."""
    site, name = site_of(request), request.path_params["pool"]
    row = views.pool_row(site.mirror, name)
    if row is None:
        raise HTTPException(404, f"There is no pool {name}.")
    return site.page(
        request, "pool.html", pool=row, queue=queue.waiting(site.mirror, name),
        running=views.active(site.mirror, "running", pool=name),
        clients=views.clients(site.mirror, name),
    )  # fmt: skip


@_of_the_copy
async def worker(request: Request) -> Response:
    """A worker: how it stands, and its jobs."""
    site, where = site_of(request), request.path_params
    found = site.mirror.worker(where["pool"], where["worker"])
    if found is None:
        raise HTTPException(404, f"There is no worker {where['worker']} in {where['pool']}.")
    row = views.WorkerRow(found)
    wanted = views.Filter(pool=found.pool, worker=found.name)
    recent = views.jobs(site.mirror, wanted, site.clock(), length=20)
    return site.page(request, "worker.html", row=row, jobs=recent)


@_of_the_copy
async def jobs(request: Request) -> Response:
    """Jobs, the newest first."""
    site, query = site_of(request), request.query_params
    wanted = views.asked(query)
    found = views.jobs(site.mirror, wanted, site.clock(), before=query.get("before", ""))
    address = request.url.remove_query_params("before")
    older = address.include_query_params(before=found.older) if found.older else None
    return site.page(
        request, "jobs.html", wanted=wanted, jobs=found, query=query,
        newest=address.query, older=older.query if older else "",
    )  # fmt: skip


async def job(request: Request) -> Response:
    """A job: what it is, its plan, its steps, its log."""
    site, where = site_of(request), request.path_params
    client, pool, name = where["client"], where["pool"], where["job"]
    state = site.mirror.job(client, pool, name)
    if state is None:
        raise HTTPException(404, "There is no such job, or it is forgotten by now.")
    site.reach()
    around = request.query_params.get("line", "")
    view = LogView(
        around=int(around) if around.isascii() and around.isdecimal() and len(around) < 10 else None
    )
    row = views.JobRow(JobId(id=name, client=client, pool=pool), state)
    place = await read_log(site.engine, row.job, view)
    return site.page(
        request, "job.html", row=row, job=await spec(site.engine, row.job), view=view,
        graph=plan(view.steps), place=place, span=charts.span,
        ahead=queue.ahead(site.mirror, row), ended=state.phase in ENDED,
    )  # fmt: skip


@_of_the_copy
async def clients(request: Request) -> Response:
    """All clients, and what they have of each pool."""
    site = site_of(request)
    return site.page(
        request, "clients.html", clients=views.clients(site.mirror), pools=sorted(site.mirror.pools)
    )


@_of_the_copy
async def history(request: Request) -> Response:
    """What happened over time, as charts."""
    site, query = site_of(request), request.query_params
    wanted = views.asked({"since": "24h", **query})
    now, seconds = site.clock(), wanted.since or 86400.0
    rows = [
        views.JobRow(job, state)
        for job, state in site.mirror.jobs.items()
        if wanted.pool in ("", job.pool) and wanted.client in ("", job.client)
    ]
    buckets = charts.history(rows, now, seconds)
    return site.page(
        request, "history.html", wanted=wanted, buckets=buckets, since=query.get("since", "24h"),
        ends=charts.ends(buckets),
        waiting=charts.times("Waiting times", buckets, "waiting"),
        running=charts.times("Running times", buckets, "running"),
    )  # fmt: skip
