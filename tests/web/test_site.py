"""The page over a real engine: what it answers, to whom, and what it lets nobody do."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from obuilder import events
from obuilder.cluster import members, names
from obuilder.cluster.credentials import Credentials, authority_of
from obuilder.cluster.engine import Engine
from obuilder.cluster.messages import Answer, Build, Cancel, Client, Job, Signed, decode, encode
from obuilder.cluster.sealing import opened, sign
from pages import BEGUN, HOSTILE, B, Pages, loopback, pages
from program import REPO

pytestmark = pytest.mark.xdist_group("web")


@pytest.fixture(scope="module")
def page(admin: Credentials) -> Iterator[Pages]:
    with pages(admin, loopback()) as found:
        found.fill()
        yield found


PATHS = ["/", "/pool/linux", "/pool/windows", "/pool/linux/worker/build3", "/pool/linux/worker/build9", "/jobs",
         "/jobs?phase=failed&text=irmin&since=7d", "/job/ann/linux/10", "/clients", "/history", "/login", "/nowhere"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_page_is_whole_and_what_jobs_say_is_text(page: Pages, path: str) -> None:
    answer, text = page.ask(path)
    assert answer.status == (404 if path == "/nowhere" else 200)
    assert text.rstrip().endswith("</html>")
    assert "<script>" not in text
    assert "<img" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "style=" not in text
    policy = str(answer.getheader("Content-Security-Policy"))
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.getheader("X-Content-Type-Options") == "nosniff"


def test_what_is_asked_wrongly_is_told(page: Pages) -> None:
    assert page.ask("/jobs?phase=odd")[0].status == 400
    assert page.ask("/job/ann/linux/none")[0].status == 404
    assert page.ask("/job/ann/linux/none/live")[0].status == 404
    assert page.ask("/static/../app.py")[0].status == 404
    assert page.ask("/static/%2e%2e%2fapp.py")[0].status == 404
    assert page.ask("/", Host="evil.example")[0].status == 421


def test_what_has_not_changed_is_not_made_again(page: Pages) -> None:
    answer, _ = page.ask("/jobs?client=bob")
    tag = str(answer.getheader("ETag"))
    same, text = page.ask("/jobs?client=bob", If_None_Match=tag)
    assert (same.status, text, same.getheader("ETag")) == (304, "", tag)
    page.state("33", "bob", title="something new")
    page.until("/jobs", "something new")
    again, text = page.ask("/jobs?client=bob", If_None_Match=tag)
    assert (again.status, again.getheader("ETag") != tag) == (200, True)
    assert "something new" in text


def test_colours_are_of_three_kinds(page: Pages) -> None:
    for asked, said in (("dark", "dark"), ("x; Path=/", '""')):
        answer, _ = page.ask("/theme", form={"theme": asked, "back": "/jobs"})
        cookie = str(answer.getheader("Set-Cookie"))
        assert cookie.startswith(f"obuilder-theme={said}; ")
        assert answer.getheader("Location") == "/jobs"
    assert 'data-theme="dark"' in page.ask("/", Cookie="obuilder-theme=dark")[1]
    assert "data-theme" not in page.ask("/", Cookie="obuilder-theme=x")[1]


def test_wrong_tokens_are_so_many_in_a_second(page: Pages) -> None:
    with ThreadPoolExecutor(12) as many:
        found = list(
            many.map(lambda _: page.ask("/login", form={"token": "wrong"})[0].status, range(12))
        )
    assert set(found) == {403, 429}
    assert found.count(403) <= 8
    page.login()  # who knows it comes in all the same


def test_jobs_come_in_pages_and_by_filter(page: Pages) -> None:
    first = page.ask("/jobs?client=ann&phase=done")[1]
    assert first.count("<tr>") <= 51
    assert "phase=queued" not in first
    assert page.ask("/jobs?text=waits")[1].count('class="phase queued"') == 6


def test_a_log_is_read_whole_raw_and_live(page: Pages) -> None:
    path = page.state("30", phase="running", attempt=1, started=time.time(), worker="build1")
    page.said("30", *BEGUN, events.Output(B, b"\x1b[32mone\x1b[0m\ntwo\n"))
    text = page.until(path, "two")
    assert '<span class="f2">one</span>' in text
    assert 'id="L2"' in text
    after = text.partition('data-after="')[2].partition('"')[0]
    page.said("30", events.Output(B, b"three\n"), events.StepDone(B, 1.5))
    page.ends("30", "done")
    answer, live = page.ask(f"{path}/live?after={after}")
    assert answer.getheader("Content-Type") == "text/event-stream; charset=utf-8"
    patches = [
        patch
        for line in live.splitlines()
        if line.startswith("data: [")
        for patch in json.loads(line[6:])
    ]
    lines = "".join(patch[2] for patch in patches if patch[0] == "lines")
    assert 'id="L3"' in lines
    assert "two" not in lines
    assert any(patch[0] == "head" and "phase done" in patch[2] for patch in patches)
    assert live.endswith("event: end\ndata: -\n\n")
    raw = page.ask(f"{path}/log")
    assert raw[0].getheader("Content-Type") == "text/plain; charset=utf-8"
    assert "[dev] \x1b[32mone\x1b[0m\n[dev] two\n[dev] three\n" in raw[1]


def test_a_long_log_shows_its_end_or_the_lines_around_one(page: Pages) -> None:
    path = page.state("31", phase="running", attempt=1, started=time.time(), worker="build1")
    page.said("31", *BEGUN, events.Output(B, b"".join(b"line %d\n" % n for n in range(1, 20001))))
    page.ends("31", "done")
    text = page.until(path, "line 20000<")
    assert text.count('class="l"') == 5000
    assert 'id="L15000"' not in text
    around = page.ask(f"{path}?line=7000")[1]
    assert 'id="L7000"' in around
    assert "data-live-log" not in around


def test_only_who_knows_the_token_changes_things_and_only_from_a_page_of_ours(
    page: Pages, admin: Credentials
) -> None:
    path = page.state("32", title="to be cancelled")
    page.until("/jobs", "to be cancelled")
    cookie, form = page.login()
    other = page.login()[1]

    def refused(**headers: str) -> int:
        return page.ask(f"{path}/cancel", form={"form": headers.pop("form", form)}, **headers)[
            0
        ].status

    assert refused() == 403
    assert refused(Cookie="obuilder-session=x.99999999999.y") == 403
    assert refused(Cookie=cookie, form="") == 403
    assert refused(Cookie=cookie, form=other) == 403
    assert refused(Cookie=cookie, Origin="https://evil.example") == 403
    assert page.ask(f"{path}/cancel", Cookie=cookie)[0].status == 405
    began = time.monotonic()
    assert page.ask("/login", form={"token": "wrong", "back": "/"})[0].status == 403
    assert time.monotonic() - began > 0.9
    answer, _ = page.ask(f"{path}/cancel", form={"form": form}, Cookie=cookie, Origin=page.url)
    assert (answer.status, answer.getheader("Location")) == (303, path)
    page.until(path, "phase cancelled")
    subject = names.job("ann", "linux", "32", "cancel")
    found = page.portal.call(page.engine.last, names.jobs_of("ann"), subject)
    assert decode(found.data, Cancel).reason == "on the web page"
    work = Build(text="((from scratch))")
    before = Job(id="32", client="ann", pool="linux", work=work, title="to be cancelled")
    page.put(
        names.job("ann", "linux", "32", "spec"),
        sign(encode(before), replace(admin, seed=authority_of(admin).signer.seed)),
    )
    answer, _ = page.ask(f"{path}/rerun", form={"form": form}, Cookie=cookie)
    again = str(answer.getheader("Location"))
    assert answer.status == 303
    assert again != path
    assert f'href="{path}"' in page.until(again, "to be cancelled")
    spec = page.portal.call(
        page.engine.last, names.jobs_of("ann"), names.job(*again.split("/")[2:], "spec")
    )
    client = page.portal.call(page.engine.last, names.CLUSTER, names.client("ann"))
    made = opened(decode(spec.data, Signed), decode(client.data, Client), admin.cluster)
    assert (made.rerun, made.work) == ("32", work)
    gone = page.ask("/logout", form={"form": form}, Cookie=cookie)[0]
    assert 'obuilder-session=""' in str(gone.getheader("Set-Cookie"))


@pytest.mark.parametrize(
    "back", ["//evil.example/", "https://evil.example/", "/\\evil.example", "evil", "/\r\nX: y"]
)
def test_a_login_leads_to_pages_of_ours_alone(page: Pages, back: str) -> None:
    answer, _ = page.ask("/login", form={"token": "the token of the tests", "back": back})
    assert answer.getheader("Location") == "/"
    cookie = str(answer.getheader("Set-Cookie"))
    assert {"HttpOnly", "Path=/", "SameSite=lax"} <= set(cookie.split("; "))
    assert "Secure" not in cookie  # on this machine there is no https


def test_metrics_of_the_cluster_and_of_a_worker(page: Pages) -> None:
    text = page.until("/metrics", "obuilder_server_memory_bytes{")
    assert 'obuilder_pool_workers_paused{pool="linux"} 1.0' in text.splitlines()
    assert (
        'obuilder_queue_length{client="bob",pool="linux",priority="high"} 1.0' in text.splitlines()
    )
    assert 'obuilder_stream_messages{stream="STATE_linux"}' in text
    assert page.ask("/healthz")[1] == "ok\n"
    families = {family.name: family for family in text_string_to_metric_families(text)}
    kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    names_there = {
        f"{name}{end}" for name, one in families.items() for end in kinds.get(one.type, ("",))
    }
    for name, family in families.items():
        assert name.startswith("obuilder_"), name
        assert family.documentation, name
        assert not re.search(r"(_ms|_millis|_kb|_mb|_total|_count)$", name), name
        if family.type == "histogram":
            assert name.endswith("_seconds"), name
    # The dashboard and the page of the documentation name nothing else.
    shipped = (REPO / "docs/cluster/grafana.json").read_text()
    asked = set(re.findall(r"\bobuilder_\w+", shipped))
    assert len(asked) > 10
    assert asked <= names_there
    written = re.findall(r"`(obuilder_\w+)`", (REPO / "docs/cluster/web.md").read_text())
    assert len(written) > 10
    assert set(written) <= names_there | set(families)

    async def answer(_: str, __: bytes) -> bytes:
        return encode(Answer(data=b"obuilder_worker_jobs_total 3\n"))

    with page.portal.wrap_async_context_manager(
        page.engine.serve(names.question("linux", "build1", "metrics"), answer)
    ):
        page.until("/pool/linux/worker/build1/metrics", "obuilder_worker_jobs_total 3\n")
    assert page.ask("/pool/linux/worker/build1/metrics")[0].status == 502
    assert page.ask("/pool/linux/worker/build9/metrics")[0].status == 404


def test_a_private_page_is_read_with_the_token_alone(admin: Credentials) -> None:
    with pages(admin, loopback(private=True)) as page:
        assert page.ask("/metrics")[0].status == 401
        assert page.ask("/jobs", Accept="text/html")[0].getheader("Location") == "/login?back=/jobs"
        assert page.ask("/metrics", Authorization="Bearer the token of the tests")[0].status == 200
        assert page.ask("/metrics", Authorization="Bearer wrong")[0].status == 401
        assert page.ask("/static/style.css")[0].status == 200
        cookie, _ = page.login()
        assert page.ask("/jobs", Cookie=cookie)[0].status == 200


def test_a_viewer_serves_the_page_and_changes_nothing(page: Pages, admin: Credentials) -> None:
    path = page.state("40", title="of a viewer")
    viewer = page.portal.call(members.add_viewer, page.engine, admin, "page")
    worker = page.portal.call(members.add_worker, page.engine, admin, "linux", "build1")
    with pages(viewer, loopback()) as own:
        own.until("/jobs", "of a viewer")
        own.until("/metrics", "obuilder_server_memory_bytes{")
        assert own.ask("/healthz")[1] == "ok\n"

        async def answer(_: str, __: bytes) -> bytes:
            return encode(Answer(text="obuilder_worker_jobs_total 4\n"))

        with (
            own.portal.wrap_async_context_manager(Engine.connect(worker)) as engine,
            own.portal.wrap_async_context_manager(
                engine.serve(names.question("linux", "build1"), answer)
            ),
        ):
            own.until("/pool/linux/worker/build1/metrics", "obuilder_worker_jobs_total 4")
        cookie, form = own.login()
        assert "/cancel" not in own.ask(path, Cookie=cookie)[1]
        refused, said = own.ask(f"{path}/cancel", form={"form": form}, Cookie=cookie)
        assert refused.status == 400
        assert "the credentials of a viewer" in said
    cookie, _ = page.login()
    assert "/cancel" in page.ask(path, Cookie=cookie)[1]  # as an administrator's page has it
    assert "phase queued" in page.ask(path)[1]


def test_a_job_says_what_was_hostile_about_it(page: Pages) -> None:
    text = page.ask("/job/ann/linux/10")[1]
    assert r"\u202e^[[31m" in text  # in the title, named
    assert HOSTILE.encode() in page.ask("/job/ann/linux/10/log")[1].encode()
