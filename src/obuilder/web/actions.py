"""What changes something: a form with POST, of somebody who knows the token, from a page of ours."""

from urllib.parse import parse_qsl, urlsplit

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from obuilder.web import control
from obuilder.web.live import asked_job as _job
from obuilder.web.session import LASTS, TOO_MANY
from obuilder.web.site import COOKIE, THEME, THEMES, site_of
from obuilder.web.views import JobRow

Form = dict[str, str]
_MOST = 1 << 14
"""Bytes of a form."""
_SOON = 2.0
_YEAR = 365 * 86400


async def _form(request: Request) -> Form:
    """The form of a request that a page of ours may have sent. HTTPException."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "This form was sent from another site.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST:
            raise HTTPException(413, "This form is too long.")
    return dict(parse_qsl(body.decode("latin-1"), encoding="utf-8", max_num_fields=20))


async def _admitted(request: Request) -> Form:
    """The same, of somebody who may change things. HTTPException."""
    form, site = await _form(request), site_of(request)
    session = site.session(request)
    if session is None:
        raise HTTPException(403, "To change things, log in with the token first.")
    site.reach()
    if not site.gate.proves(session, form.get("form", "")):
        raise HTTPException(403, "This form is of another session: load the page again.")
    return form


def _inside(address: str) -> str:
    """An address of our own, or the first page."""
    parts = urlsplit(address)
    ours = address.startswith("/") and not address.startswith("//") and "\\" not in address
    return address if ours and not parts.netloc and address.isprintable() else "/"


def _to(address: str) -> Response:
    return RedirectResponse(address, status_code=303)


async def theme(request: Request) -> Response:
    """Light, dark, or as the reader's system is."""
    form, site = await _form(request), site_of(request)
    answer = _to(_inside(form.get("back", "")))
    chosen = form.get("theme", "")
    answer.set_cookie(
        THEME, chosen if chosen in THEMES else "", max_age=_YEAR, samesite="lax", httponly=True,
        secure=site.access.public,
    )  # fmt: skip
    return answer


async def login_page(request: Request) -> Response:
    """Where the token is given."""
    back = _inside(request.query_params.get("back", "/"))
    return site_of(request).page(request, "login.html", back=back, wrong=False)


async def login(request: Request) -> Response:
    """Begin a session."""
    form, site = await _form(request), site_of(request)
    back = _inside(form.get("back", ""))
    if not site.gate.admits(form.get("token", "")):
        if await site.gate.refuse():
            return site.page(request, "login.html", 403, back=back, wrong=True)
        raise HTTPException(429, TOO_MANY)
    answer = _to(back)
    answer.set_cookie(
        COOKIE, site.gate.begin(site.clock()), max_age=int(LASTS), samesite="lax", httponly=True,
        secure=site.access.public,
    )  # fmt: skip
    return answer


async def logout(request: Request) -> Response:
    """End a session."""
    await _admitted(request)
    answer = _to("/")
    answer.delete_cookie(COOKIE)
    return answer


async def cancel(request: Request) -> Response:
    """A job is not wanted any more."""
    await _admitted(request)
    site, job = _job(request)
    await control.cancel(site.engine, site.credentials, job)
    with anyio.move_on_after(_SOON):  # most have ended before the page is there again
        while job in site.mirror.active[job.pool]:
            await anyio.sleep(0.02)
    return _to(JobRow(job, site.mirror.jobs[job]).path)


async def rerun(request: Request) -> Response:
    """The same again, as a new job."""
    await _admitted(request)
    site, job = _job(request)
    made = await control.rerun(site.engine, site.credentials, job)
    with anyio.move_on_after(_SOON):  # until the copy has it, there is no page of it
        while made not in site.mirror.jobs:
            await anyio.sleep(0.02)
    return _to(f"/job/{made.client}/{made.pool}/{made.id}")
