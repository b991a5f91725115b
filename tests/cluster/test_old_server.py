"""An old nats-server is refused with a clear message, wherever it is met: Debian's own is 2.9."""

import os
import re
import signal
import subprocess

import anyio
import pytest

from obuilder.cluster import server
from obuilder.cluster.engine import Engine
from obuilder.errors import Incompatible

pytestmark = [
    pytest.mark.anyio, pytest.mark.xdist_group("nats"), pytest.mark.needs("old-nats"),
]  # fmt: skip
OLD = os.environ.get("OBUILDER_OLD_NATS", "")
SAID = r"the nats-server there is 2\.\d+\.\d+, and it takes 2\.12 or a later one"


@pytest.fixture(autouse=True)
def old(monkeypatch) -> None:
    """The only nats-server there is."""
    said = subprocess.run([OLD, "-v"], capture_output=True, check=True).stdout
    version = re.search(rb"v2\.(\d+)", said)
    if version is None or int(version[1]) >= 12:
        pytest.skip("the distribution has a newer one")
    monkeypatch.setattr(server, "find_server", lambda: OLD)


async def test_it_is_not_started(tmp_path) -> None:
    with pytest.raises(Incompatible, match=SAID) as refused:
        async with server.running(str(tmp_path / "cluster")):
            pass
    assert "local-cluster" in refused.value.hint


async def test_who_meets_one_is_told(tmp_path) -> None:
    local = server.Local(str(tmp_path))
    authority = local.prepare()
    config = tmp_path / "nats.conf"
    config.write_text(config.read_text().replace("  sync_interval: always\n", ""))
    process = subprocess.Popen([OLD, "-c", config, "-l", tmp_path / "log"])  # noqa: ASYNC220
    try:
        with anyio.fail_after(30):
            while not await server._listens(int(authority.urls[0].rpartition(":")[2])):
                await anyio.sleep(0.02)
        with pytest.raises(Incompatible, match=SAID):
            async with Engine.connect(authority.admin()):
                pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
