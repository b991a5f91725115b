"""What all pages share: the copy of the cluster, the engine behind it, the templates, who is there."""

import secrets
import time
from collections.abc import Callable
from importlib.resources import files

import anyio
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from obuilder import __version__
from obuilder.cluster.credentials import Credentials
from obuilder.cluster.engine import Engine
from obuilder.errors import ClusterError
from obuilder.ui.terminal import visible
from obuilder.web import charts, views
from obuilder.web.metrics import Metrics
from obuilder.web.mirror import Mirror
from obuilder.web.session import Gate, Session

_READERS = 200
"""Live logs that are looked at at one time."""
COOKIE = "obuilder-session"
THEME = "obuilder-theme"
THEMES = ("light", "dark")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What a browser lets our pages do: nothing that is not ours, and nothing in line."""


class Access(Struct, frozen=True):
    """Who may do what."""

    token: bytes | None = None
    """Who knows it may change things."""
    private: bool = False
    """Reading needs the token too."""
    public: bool = False
    """Others than this machine's users come, by https."""
    hosts: tuple[str, ...] = ()
    """Names that the page is asked for by; a request for another is refused."""


class Site:
    """What the handlers stand on."""

    def __init__(
        self, engine: Engine, credentials: Credentials, mirror: Mirror, access: Access
    ) -> None:
        self.engine, self.credentials = engine, credentials
        self.mirror, self.access, self.metrics = mirror, access, Metrics(mirror)
        self.changes = credentials.kind == "admin"
        """Whether anything can be changed here at all."""
        self.clock: Callable[[], float] = time.time
        self.readers = anyio.CapacityLimiter(_READERS)
        self._begun = secrets.token_hex(4)
        self.gate = Gate(access.token)
        self.templates = _templates()

    def session(self, request: Request) -> Session | None:
        """Who asks."""
        return self.gate.session(request.cookies.get(COOKIE, ""), self.clock())

    @property
    def tag(self) -> str:
        """Another whenever pages may show something else than before."""
        return f'"{self._begun}-{self.mirror.version}-{int(self.engine.connected)}"'

    def reach(self) -> None:
        """ClusterError, at once, where the cluster can't be reached: engines try for long."""
        if not self.engine.connected:
            raise ClusterError(
                "the cluster can't be reached just now", hint="Load this again in a while."
            )

    def page(self, request: Request, name: str, status: int = 200, **values: object) -> Response:
        """A page from its template."""
        theme = request.cookies.get(THEME, "")
        shown = self.templates.get_template(name).render(
            site=self,
            now=self.clock(),
            session=self.session(request),
            theme=theme if theme in THEMES else "",
            path=request.url.path,
            address=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            version=__version__,
            **values,
        )
        return HTMLResponse(shown, status_code=status, headers={"Cache-Control": "no-store"})


def site_of(request: Request) -> Site:
    """What the application was made with."""
    site: Site = request.app.state.site
    return site


def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("obuilder.web"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_finalized, auto_reload=False,
    )  # fmt: skip
    made.filters.update(
        duration=views.duration,
        size=views.size,
        moment=moment,
        when=when,
        percent=lambda part: "" if part is None else f"{100 * part:.0f} %",
        markup=Markup,
    )
    made.globals.update(bar=_bar, views=views)
    return made


def _bar(part: float, *, scarce: bool = False) -> Markup:
    return Markup(charts.bar(part, scarce=scarce))  # noqa: S704 # a number becomes a picture


def _finalized(value: object) -> object:
    """Text from outside is text: whatever can't be seen in it is named."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return "" if value is None else value


def moment(at: float | None) -> Markup:
    """A time, for people and for programs; scripts show it in the reader's own zone."""
    if not at:
        return Markup("")
    machine = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    people = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    return Markup('<time datetime="{}" data-at>{}</time>').format(machine, people)


def when(since: float | None, now: float) -> Markup:
    """How long something has been going on; scripts keep counting."""
    if not since:
        return Markup("")
    machine = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
    return Markup('<time datetime="{}" data-since="{:.1f}">{}</time>').format(
        machine, since, views.duration(now - since)
    )


def static(name: str) -> bytes:
    """A file that goes with the pages."""
    return files("obuilder.web").joinpath("static", name).read_bytes()
