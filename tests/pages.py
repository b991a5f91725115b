"""The web page of a real cluster whose records and logs a test writes itself, as workers would."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from threading import Event
from typing import Any
from urllib.parse import urlencode, urlsplit

from anyio.from_thread import BlockingPortal, start_blocking_portal
from msgspec.structs import replace

from obuilder import events
from obuilder.cluster import names
from obuilder.cluster.credentials import Credentials
from obuilder.cluster.engine import Engine
from obuilder.cluster.logs import LogWriter
from obuilder.cluster.messages import (
    Known,
    Message,
    Outcome,
    Presence,
    Share,
    State,
    encode,
)
from obuilder.values import Key
from obuilder.web.serve import serve
from obuilder.web.site import Access

TOKEN = b"the token of the tests"
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> \u202e\x1b[31m"
A, B, C = Key("a" * 64), Key("b" * 64), Key("c" * 64)
PLAN = events.BuildStarted(
    (
        events.StepInfo(A, "", "(from debian:12)", cached=True),
        events.StepInfo(B, "dev", '(run (shell "make -j4 all"))', cached=False, needs=(A,)),
        events.StepInfo(
            C, "", "(copy (from (build dev)) (src /hello) (dst /hello))", cached=False, needs=(A, B)
        ),
    )
)
BEGUN = [
    PLAN,
    events.StepStarted(A, "", "(from debian:12)"), events.StepCached(A),
    events.StepStarted(B, "dev", '(run (shell "make -j4 all"))'),
]  # fmt: skip


class Pages:
    """The page and the cluster behind it."""

    def __init__(self, portal: BlockingPortal, engine: Engine, access: Access) -> None:
        self.portal, self.engine, self._access = portal, engine, access
        self._port = 0
        self._serving: Future[None] | None = None
        self._ended = Event()
        self._writers: dict[str, tuple[Any, LogWriter]] = {}

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve the page, as `obuilder web` does; at the same place, once it has been somewhere."""
        address: Future[str] = Future()
        self._ended.clear()

        async def run() -> None:
            place = "127.0.0.1", self._port
            try:
                await serve(self.engine.credentials, place, self._access, address.set_result)
            except Exception as error:
                address.set_exception(error)
                raise
            finally:
                self._ended.set()

        self._serving = self.portal.start_task_soon(run)
        self._port = int(urlsplit(address.result(60)).port or 0)

    def stop(self) -> None:
        """Serve it no more."""
        if self._serving is not None:
            self._serving.cancel()
            assert self._ended.wait(60)

    # --- as workers and clients do ------------------------------------------------------------------

    def put(self, subject: str, message: Message) -> None:
        """Write a record."""
        self.portal.call(self.engine.put, subject, encode(message))

    def state(self, job: str, client: str = "ann", pool: str = "linux", **parts: Any) -> str:
        """Write where a job is; the path of its page."""
        self.put(
            names.job(client, pool, job, "state"), State(**{"submitted": time.time() - 5, **parts})
        )
        return f"/job/{client}/{pool}/{job}"

    def said(self, job: str, *found: events.Event, client: str = "ann", attempt: int = 1) -> None:
        """Write to a job's log, which stays open."""
        place = f"{client} {job} {attempt}"
        if place not in self._writers:
            writer = LogWriter(self.engine, client, "linux", job, attempt)
            manager = self.portal.wrap_async_context_manager(writer)
            manager.__enter__()
            self._writers[place] = manager, writer

        def tell() -> None:
            for event in found:
                self._writers[place][1](event)

        self.portal.call(tell)

    def ends(
        self, job: str, phase: str, *, client: str = "ann", attempt: int = 1, **parts: Any
    ) -> None:
        """End a job's log, and the job."""
        manager, writer = self._writers.pop(f"{client} {job} {attempt}")
        manager.__exit__(None, None, None)
        now = time.time()
        ended = {
            "started": now - 3,
            "ended": now,
            "worker": "build1",
            "log_end": writer.count,
            **parts,
        }
        self.state(job, client, phase=phase, attempt=attempt, **ended)

    def close(self) -> None:
        """End the logs that are open."""
        for manager, _ in self._writers.values():
            manager.__exit__(None, None, None)

    def fill(self, hostile: str = HOSTILE, title: str = HOSTILE) -> None:
        """A pool with workers of every kind, clients, and jobs; titles that would do harm."""
        now = time.time()
        for client, rate in (("ann", 1.0), ("bob", 4.0)):
            self.put(names.fair("linux", client), Share(rate=rate))
        for number, reasons in enumerate(((), (), (("disk", f"3 % free {hostile}".strip()),)), 1):
            self.put(
                names.worker("linux", f"build{number}"),
                Presence(
                    pool="linux", name=f"build{number}", session="s", capacity=4, in_use=2 - (number == 2),
                    paused=reasons, free=(3 if reasons else 30 * number) << 30, total=100 << 30, since=now - 90000, at=now,
                    host=hostile, platform="linux/amd64", hits=30, misses=12, accepted=42, load=1.5,
                ),
            )  # fmt: skip
        self.put(names.known("linux", "build9"), Known(first=now - 1e6, last=now - 5000))
        for number in range(120):
            sub = now - 600 * (120 - number)
            self.state(
                f"0{number:03}", ("ann", "bob")[number % 2], title=f"irmin#{1900 + number} on debian-12",
                phase=("done", "done", "failed", "done", "cancelled")[number % 5], submitted=sub,
                started=sub + number % 7, ended=sub + 60 + number * 3, worker=f"build{1 + number % 2}",
                outcome=Outcome(cached=3, ran=2), attempt=1,
            )  # fmt: skip
        for number in range(6):
            self.state(
                f"2{number}",
                ("ann", "bob")[number % 2],
                title=f"waits {number}",
                urgent=number == 5,
            )
        self.state(
            "10",
            title=title,
            hint=hostile,
            phase="running",
            attempt=1,
            started=now - 9,
            worker="build1",
        )
        self.said("10", *BEGUN, events.Output(B, hostile.encode() + b"\n"))
        self.until("/jobs", "phase running")

    # --- as readers do -------------------------------------------------------------------------------

    def ask(
        self, path: str, *, form: dict[str, str] | None = None, **headers: str
    ) -> tuple[HTTPResponse, str]:
        """Ask for a page, or send a form; the answer and its text."""
        place = urlsplit(self.url)
        connection = HTTPConnection(str(place.hostname), place.port, timeout=20)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            if form is None:
                connection.request("GET", path, headers=headers)
            else:
                kind = {"Content-Type": "application/x-www-form-urlencoded"}
                connection.request("POST", path, urlencode(form), {**kind, **headers})
            answer = connection.getresponse()
            return answer, answer.read().decode()
        finally:
            connection.close()

    def until(self, path: str, word: str) -> str:
        """Ask for a page until it says something."""
        deadline = time.monotonic() + 15
        while word not in (text := self.ask(path)[1]):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        return text

    def login(self) -> tuple[str, str]:
        """A session: its cookie, and what goes into its forms."""
        answer, _ = self.ask("/login", form={"token": TOKEN.decode(), "back": "/"})
        cookie = str(answer.getheader("Set-Cookie")).partition(";")[0]
        form = re.search(r'name="form" value="([^"]+)"', self.ask("/", Cookie=cookie)[1])
        assert form
        return cookie, form[1]


@contextmanager
def pages(credentials: Credentials, access: Access) -> Iterator[Pages]:
    """The page of a cluster, served as `obuilder web` does."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Engine.connect(credentials, name="test")) as engine,
    ):
        found = Pages(portal, engine, access)
        found.start()
        try:
            yield found
        finally:
            found.close()
            found.stop()


def loopback(**parts: Any) -> Access:
    """Access as `obuilder web --token-file` gives it."""
    return replace(Access(token=TOKEN, hosts=("127.0.0.1", "localhost")), **parts)
