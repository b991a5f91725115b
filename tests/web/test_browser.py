"""The page in a browser: what lives, what keys do, and that everybody can use it."""

import time
from collections.abc import Iterator

import pytest

from browser import Browser
from obuilder import events
from obuilder.cluster.credentials import Credentials
from pages import BEGUN, TOKEN, B, Pages, loopback, pages

pytestmark = [pytest.mark.xdist_group("web"), pytest.mark.needs("chromium")]


@pytest.fixture(scope="module")
def page(admin: Credentials) -> Iterator[Pages]:
    with pages(admin, loopback()) as found:
        found.fill()
        yield found


@pytest.fixture(scope="module")
def failed(page: Pages) -> str:
    """The path of a job that failed."""
    path = page.state("40", title="failed", phase="running", attempt=1, started=time.time())
    page.said("40", *BEGUN, events.Output(B, b"line\n" * 20))
    page.said("40", events.StepEnded(B, "step-failed", "it ended with 2", 3.5))
    page.ends("40", "failed")
    page.until(path, "it ended with 2")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(autouse=True)
def no_faults(browser: Browser) -> Iterator[None]:
    browser.look()
    browser.faults.clear()
    yield
    assert browser.faults == []
    assert browser.js("window.hacked") is None


def test_a_live_log_follows_to_its_end(page: Pages, browser: Browser) -> None:
    path = page.state(
        "42", title="live", phase="running", attempt=1, started=time.time(), worker="build1"
    )
    page.said("42", *BEGUN, events.Output(B, b"first\n" * 60 + b"no end"))
    page.until(path, "no end")
    browser.go(page.url + path)
    assert browser.js("document.querySelector('#s1-o').textContent") == "no end"
    page.said("42", events.Output(B, b" yet\n\x1b[31mred\x1b[0m\n"))
    browser.until("document.querySelector('#L62 .f1')?.textContent === 'red'")
    assert browser.js("document.querySelector('#L61 > span').textContent") == "no end yet"
    assert browser.js("follow.getAttribute('aria-pressed')") == "true"
    browser.until("innerHeight + scrollY >= document.documentElement.scrollHeight - 3")
    browser.key("f")
    assert browser.js("follow.getAttribute('aria-pressed')") == "false"
    page.said("42", events.StepEnded(B, "step-failed", "it ended with 2", 3.5))
    page.ends("42", "failed")
    browser.until("document.querySelector('#job-head .phase').textContent === 'failed'")
    assert browser.js("document.querySelector('#s1-m').textContent") == "it ended with 2"
    assert browser.js("document.querySelector('#g-s1').getAttribute('class')") == "failed"
    assert "failed" in browser.js("document.querySelector('#s1').className")
    assert browser.js("document.querySelectorAll('.lines .l').length") == 62


def test_a_line_has_an_address(page: Pages, failed: str, browser: Browser) -> None:
    browser.go(f"{page.url}{failed}#L7")
    browser.until("document.querySelector('.l.target')?.id === 'L7'")
    browser.js("location.hash = '#L9'")
    browser.until("document.querySelector('.l.target').id === 'L9'")
    browser.key("o")
    assert browser.js("document.querySelectorAll('details.step[open]').length") == 0


def test_a_job_is_cancelled_by_who_logged_in(page: Pages, browser: Browser) -> None:
    path = page.state("41", title="not wanted")
    page.until(path, "not wanted")
    browser.go(page.url + path)
    assert browser.js("document.querySelector('.danger')") is None
    browser.go(page.url + f"/login?back={path}")
    browser.fill("#token", TOKEN.decode())
    browser.click("main button")
    browser.until("location.pathname.startsWith('/job/') && !!document.querySelector('.danger')")
    browser.click(".danger")
    browser.until("document.querySelector('#job-head .phase')?.textContent === 'cancelled'")


def test_jobs_are_filtered_by_keys_alone_and_lists_live(page: Pages, browser: Browser) -> None:
    browser.go(page.url + "/")
    browser.key("g", "j")
    browser.until("location.pathname === '/jobs' && document.readyState === 'complete'")
    browser.key("/")
    assert browser.js("document.activeElement.id") == "text"
    browser.fill("#text", "waits 3")
    browser.js("document.querySelector('.filter').requestSubmit()")
    browser.until(
        "location.search.includes('waits') && document.querySelectorAll('tbody tr').length === 1"
    )
    page.state("23", "bob", title="waits 3", phase="running", attempt=1, started=time.time())
    browser.until("document.querySelector('tbody .phase').textContent === 'running'")


def test_without_scripts_pages_can_be_read(page: Pages, failed: str, browser: Browser) -> None:
    browser.scripts(allowed=False)
    try:
        browser.go(page.url + failed)
        assert "it ended with 2" in browser.text()
    finally:
        browser.scripts(allowed=True)
        browser.go(page.url)  # a line's address alone would not load the page again


ALL = ["/", "/pool/linux", "/pool/linux/worker/build3", "/jobs?text=waits", "/clients", "/history",
       "/login", "/jobs?phase=odd"]  # fmt: skip
MAIN = ["/pool/linux", "/jobs?text=waits"]


@pytest.mark.parametrize(
    ("paths", "dark", "width"), [(ALL, False, 1280), (MAIN, True, 390)], ids=["light", "dark"]
)
def test_everybody_can_use_every_page(
    page: Pages, failed: str, browser: Browser, paths: list[str], dark: bool, width: int
) -> None:
    browser.look(dark=dark, width=width)
    found = {}
    for path in (*paths, failed):
        browser.go(page.url + path)
        browser.js("document.querySelectorAll('details').forEach(one => one.open = true)")
        if faults := browser.accessibility():
            found[path] = faults
        assert browser.js("document.documentElement.scrollWidth <= innerWidth"), path
    browser.faults.clear()  # a page that is asked for wrongly is a fault to the browser
    assert found == {}
