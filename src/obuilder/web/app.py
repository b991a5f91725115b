"""The application: which address is answered by what, and what holds for every answer."""

from collections.abc import Callable, Mapping

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from obuilder.errors import ObuilderError, UsageError
from obuilder.web import actions, ansi, feeds, live, pages
from obuilder.web.session import TOO_MANY
from obuilder.web.site import POLICY, Site, site_of, static

_JOB = "/job/{client}/{pool}/{job}"
_OPEN = ("/healthz", "/login", "/static/", "/theme")
"""Addresses that a private page answers everybody."""


def application(site: Site) -> Starlette:
    """The application over a site."""
    app = Starlette(
        routes=[
            Route("/", pages.pools),
            Route("/pool/{pool}", pages.pool),
            Route("/pool/{pool}/worker/{worker}", pages.worker),
            Route("/pool/{pool}/worker/{worker}/metrics", feeds.worker_metrics),
            Route("/jobs", pages.jobs),
            Route(_JOB, pages.job),
            Route(_JOB + "/log", live.raw),
            Route(_JOB + "/live", live.live),
            Route(_JOB + "/cancel", actions.cancel, methods=["POST"]),
            Route(_JOB + "/rerun", actions.rerun, methods=["POST"]),
            Route("/clients", pages.clients),
            Route("/history", pages.history),
            Route("/login", actions.login_page),
            Route("/login", actions.login, methods=["POST"]),
            Route("/logout", actions.logout, methods=["POST"]),
            Route("/theme", actions.theme, methods=["POST"]),
            Route("/metrics", feeds.metrics),
            Route("/healthz", feeds.health),
            Route("/static/{name}", _static),
        ],
        middleware=[Middleware(Guard, site=site)],
        exception_handlers={
            HTTPException: _http_error,
            ObuilderError: _error,
            Exception: _fault,
        },
    )
    app.state.site = site
    return app


class Guard:
    """What holds for every answer: who may ask, by which name, and what a browser may do with it."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app, self._site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", POLICY)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "same-origin")
                headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
                headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await (await self._answer(scope))(scope, receive, guarded)

    async def _answer(self, scope: Scope) -> ASGIApp:
        """What answers: the application, or a refusal."""
        host = _name(Headers(scope=scope).get("host", ""))
        if self._site.access.hosts and host not in self._site.access.hosts:
            # Else any web site whose name leads to our address could read us in its visitors' browsers.
            return PlainTextResponse(
                "This page is not known by that name: see `obuilder web --host`.\n", 421
            )
        if self._site.access.private and not scope["path"].startswith(_OPEN):
            request = Request(scope)
            token = _bearer(request)
            if token and not self._site.gate.admits(token) and not await self._site.gate.refuse():
                return PlainTextResponse(f"{TOO_MANY}\n", 429)
            if self._site.session(request) is None and not self._site.gate.admits(token):
                if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                    return RedirectResponse(f"/login?back={request.url.path}", 303)
                return PlainTextResponse(
                    "This needs the token.\n", 401, headers={"WWW-Authenticate": "Bearer"}
                )
        return self._app


def _bearer(request: Request) -> str:
    """The token that a program sent, as Prometheus does; empty if none."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token if kind.lower() == "bearer" else ""


def _name(host: str) -> str:
    """A Host header's name, without a port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


_KINDS: Mapping[str, str] = {
    "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml",
}  # fmt: skip
_MADE: Mapping[str, Callable[[], bytes]] = {"ansi.css": lambda: ansi.stylesheet().encode()}


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    try:
        data = _MADE[name]() if name in _MADE else static(name)
    except OSError:
        raise HTTPException(404, "There is no such file.") from None
    return Response(
        data,
        media_type=_KINDS.get(name.rpartition(".")[2], "application/octet-stream"),
        headers={"Cache-Control": "max-age=3600"},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _said(request, error.status_code, error.detail, "")


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ObuilderError)
    status = 400 if isinstance(error, UsageError) else 503
    return _said(request, status, error.message, error.hint or "")


async def _fault(request: Request, _: Exception) -> Response:
    return _said(request, 500, "Something is wrong with this program; its own log says what.", "")


def _said(request: Request, status: int, message: str, hint: str) -> Response:
    return site_of(request).page(
        request, "error.html", status, code=status, message=message, hint=hint
    )
