"""A cluster of three servers with TLS, started from what `cluster config` writes."""

import json
import os
import re
import signal
import socket
import subprocess
import time

import anyio
import pytest

from obuilder.cluster import layout, members, names, server
from obuilder.cluster.accounts import VARZ
from obuilder.cluster.credentials import authority_of, load_credentials
from obuilder.cluster.engine import Engine
from obuilder.cluster.production import write_configuration
from obuilder.errors import Refused, UsageError
from places import memory

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("nats")]


def _ports(count):
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in found]
    for each in found:
        each.close()
    return ports


class Three:
    """Three servers, each killed and started at will."""

    def __init__(self, directory):
        self.directory, self.running = directory, {}
        ports = _ports(6)
        hosts = [f"127.0.0.1:{ports[i]}:{ports[i + 3]}" for i in range(3)]
        write_configuration(directory, hosts, port=1, cluster_port=1, state=".")
        self.admin = load_credentials(f"{directory}/admin.json")

    def start(self, *names_):
        for name in names_:
            own = os.path.join(self.directory, name)
            argv = ["setpriv", "--pdeathsig", "KILL", server.find_server()]
            self.running[name] = subprocess.Popen(
                [*argv, "-c", "nats.conf", "-l", "log"], cwd=own, start_new_session=True
            )

    def kill(self, name):
        self.running[name].send_signal(signal.SIGKILL)
        self.running.pop(name).wait()


@pytest.fixture(scope="module")
def three():
    with memory() as directory:
        found = Three(os.path.join(directory, "made"))
        try:
            found.start("node1", "node2", "node3")
            yield found
        finally:
            for name in list(found.running):
                found.kill(name)


async def test_all_that_was_acknowledged_survives_the_leader(three):
    admin = three.admin
    async with Engine.connect(admin) as engine:
        engine.patience = 60
        await layout.ensure_pool(engine, authority_of(admin), "p")
        made = await members.add_client(engine, admin, "alice")
        info = (await engine.streams())[names.queue_of("p")]
        assert info["config"]["num_replicas"] == 3
        leader = info["cluster"]["leader"]
        viewer = await members.add_viewer(engine, admin, "eye")
        async with Engine.connect(viewer) as eye:
            assert set(await eye.streams()) == set(await engine.streams())
            assert len(await eye.gather(VARZ, seconds=2)) == 3
        kept, longest, stop = [], 0.0, False

        async with Engine.connect(made) as alice:

            async def submit():
                nonlocal longest
                alice.patience = 60
                while not stop:
                    began = time.monotonic()
                    ticket = names.ticket("alice", "p", urgent=False)
                    kept.append(await alice.put(ticket, b"%d" % len(kept), once=f"j{len(kept)}"))
                    longest = max(longest, time.monotonic() - began)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(submit)
                await anyio.sleep(0.5)
                before = len(kept)
                three.kill(leader)
                with anyio.fail_after(40):
                    while len(kept) < before + 50:
                        await anyio.sleep(0.1)
                stop = True
        stored = [message async for message in engine.read(names.queue_of("p"), ">")]
        assert [int(message.data) for message in stored] == list(range(len(kept)))
        assert [message.seq for message in stored] == kept
        print(f"{len(kept)} acknowledged, {len(stored)} there; the longest wait {longest:.1f} s")


async def test_another_authority_is_not_believed(three):
    import msgspec

    from obuilder.cluster.certificates import make_authority

    other = msgspec.structs.replace(three.admin, ca=make_authority().certificate.decode())
    with pytest.raises(Refused, match="not of this cluster"):
        async with Engine.connect(other):
            pass


def test_what_is_there_is_not_overwritten(tmp_path):
    kept = tmp_path / "c"
    write_configuration(str(kept), ["a", "b", "c"], port=4222, cluster_port=6222, state="/s")
    before = json.loads((kept / "admin.json").read_text())
    assert before["urls"] == ["tls://a:4222", "tls://b:4222", "tls://c:4222"]
    with pytest.raises(UsageError, match="there already"):
        write_configuration(str(kept), ["a"], port=1, cluster_port=1, state="/s")
    assert json.loads((kept / "admin.json").read_text()) == before
    assert all(f.stat().st_mode & 0o77 == 0 for f in kept.rglob("*"))


@pytest.mark.needs("systemd-analyze")
def test_systemd_takes_the_units(tmp_path):
    made, units = tmp_path / "made", tmp_path / "units"
    write_configuration(str(made), ["a"], port=4222, cluster_port=6222, state="/var/lib/nats")
    units.mkdir()
    for unit in made.rglob("*.service"):
        # The programs need not be installed here.
        text = re.sub(
            r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE
        )
        (units / unit.name.replace("@.", "@one.")).write_text(text)
    assert {unit.name for unit in units.iterdir()} == {
        "obuilder-nats.service", "obuilder-worker@one.service", "obuilder-web.service",
    }  # fmt: skip
    for unit in units.iterdir():  # it warns of what it does not know, and goes on
        said = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, check=False
        )
        assert (said.returncode, said.stdout + said.stderr) == (0, b"")
