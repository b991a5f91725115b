"""Takes the pictures of the web page that the documentation has: `scripts/web-pictures`."""

import sys
import time
from pathlib import Path

from anyio.from_thread import start_blocking_portal

import clusters
from browser import Browser
from obuilder import events
from pages import BEGUN, B, Pages, loopback, pages

PICTURES = (
    ("web-job-light", "/job/ann/linux/50", False, 1200, 800),
    ("web-job-dark-phone", "/job/ann/linux/50", True, 390, 780),
    ("web-pool-dark", "/pool/linux", True, 1200, 800),
    ("web-jobs-light-phone", "/jobs", False, 390, 780),
    ("web-history-dark", "/history?since=24h", True, 1200, 800),
)


def main(folder: Path) -> None:
    """Take them all."""
    folder.mkdir(exist_ok=True)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(clusters.running()) as cluster,
    ):
        for pool in ("linux", "windows"):
            portal.call(cluster.pool, pool)
        for client in ("ann", "bob"):
            portal.call(cluster.client, client)
        with pages(cluster.credentials, loopback()) as page, Browser() as browser:
            page.fill(hostile="", title="merlin#512 on alpine-3.20")
            a_failed_job(page)
            for name, path, dark, width, height in PICTURES:
                browser.look(dark=dark, width=width, height=height)
                browser.go(page.url + path)
                browser.picture(folder / f"{name}.png")


def a_failed_job(page: Pages) -> None:
    """One with colours."""
    page.state("50", title="irmin#2041 on debian-12", hint="irmin-debian-12", phase="running", attempt=1,
               started=time.time(), worker="build1")  # fmt: skip
    said = (
        b"".join(
            b"\x1b[32mCC\x1b[0m    src/part%d.c\n\x1b[2m      in %d ms\x1b[0m\n" % (n, 40 + 7 * n)
            for n in range(9)
        )
        + b"\x1b[1;31merror:\x1b[0m src/part9.c:12: \x1b[1m'tree'\x1b[0m undeclared\nmake: *** [all] Error 1\n"
    )
    page.said(
        "50",
        *BEGUN,
        events.Output(B, said),
        events.StepEnded(B, "step-failed", "It ended with status 2.", 31.4),
    )
    page.ends("50", "failed", title="irmin#2041 on debian-12", hint="irmin-debian-12")
    page.until("/job/ann/linux/50", "phase failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
