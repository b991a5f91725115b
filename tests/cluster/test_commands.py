"""What people type: a cluster, a worker and clients as programs, on the real engine and sandbox."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import clusters

pytestmark = [
    pytest.mark.needs("root", "overlay", "crun"), pytest.mark.xdist_group("commands"),
]  # fmt: skip

SPEC = """((build tool ((from micro) (run (shell "echo tool > /tool"))))
 (from micro)
 (copy (from (build tool)) (src /tool) (dst /tool))
 (copy (src hello.txt) (dst /hello.txt))
 (run (shell "cat /hello.txt /tool; echo out > /result")))
"""
LONG = """((from micro)
 (run (secrets (token (target /token))) (shell "cat /token; wc -c < /token; sleep 60")))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cluster, a worker's process, and a context; who types what with which credentials."""
    place = tmp_path_factory.mktemp("commands")
    (place / "obuilder.spec").write_text(SPEC)
    (place / "long.spec").write_text(LONG)
    (place / "hello.txt").write_text("hello\n")
    (place / "token").write_text("hunter2-hunter2")
    store = f"overlayfs:{place}/store"
    yield_from = clusters.module_cluster()
    cluster = next(yield_from)
    kinds = ("admin", "client", "worker")
    files = {kind: os.path.join(cluster.directory, f"{kind}.json") for kind in kinds}

    def typed(*words, kind="client", before=(), **how):
        environment = {**os.environ, "OBUILDER_CLUSTER": files[kind], "OBUILDER_STORE": store}
        return subprocess.Popen(
            [*before, sys.executable, "-m", "obuilder", *words], cwd=place, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how,
        )  # fmt: skip

    tied = ("setpriv", "--pdeathsig", "KILL")
    words = ("worker", "--capacity", "4", "--state-dir", f"{place}/state")
    worker = typed(*words, kind="worker", before=tied)

    def run(*words, status=0, kind="client"):
        with typed(*words, kind=kind) as child:
            out, err = child.communicate(timeout=60)
        assert child.returncode == status, (words, child.returncode, out, err)
        return SimpleNamespace(out=out, err=err)

    try:
        pool = run("cluster", "show", kind="admin").out.split()
        pool.remove(clusters.POOL)
        yield SimpleNamespace(run=run, typed=typed, place=place, pool=pool[0])
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=60)
        yield_from.close()


def test_a_build_is_followed_and_ends_as_it_does(world):
    first = world.run("submit", "--on", world.pool, "--color", "never")
    assert "hello\ntool\n" in first.out
    key = re.search(r'Got: "([0-9a-f]{64})"', first.out)[1]
    again = world.run("build", "--on", world.pool, "-q")
    assert again.out == f"{key}\n"
    row, *_ = json.loads(world.run("job", "ls", "--json").out)
    assert (row["phase"], row["outcome"]["result"], row["outcome"]["ran"]) == ("done", key, 0)
    assert (
        first.out.partition("Got")[0]
        == world.run(
            "job",
            "log",
            row["rerun"]
            if "rerun" in row
            else json.loads(world.run("job", "ls", "--json").out)[1]["id"],
        ).out
    )
    rows = [
        json.loads(line)
        for line in world.run("build", "--on", world.pool, "--progress", "json").out.splitlines()
    ]
    assert rows[0]["event"] == "schema"
    assert rows[-1] == {**rows[-1], "event": "build-done", "result": key}


def test_a_failure_is_told_as_here(world):
    (world.place / "bad.spec").write_text('((from micro) (run (shell "echo bad; exit 3")))')
    failed = world.run("submit", "--on", world.pool, "-f", "bad.spec", status=1)
    assert "bad\n" in failed.out
    assert "status 3" in failed.err
    assert "Traceback" not in failed.err
    id_ = re.search(r"job (\w+) on", failed.err)[1]
    world.run("job", "wait", id_, status=1)
    again = world.run("job", "rerun", id_[-10:], status=1)
    assert "bad\n" in again.out


def test_artifacts_come_back_and_several_pools_are_asked_for_by_name(world):
    world.run(
        "submit", "--on", world.pool, "--artifact", "/result", "--artifact", "/tool", "-o", "out"
    )
    assert (world.place / "out" / "result").read_text() == "out\n"
    assert (world.place / "out" / "tool").read_text() == "tool\n"
    wrong = world.run("submit", "--on", f"{world.pool},nowhere", status=6)
    assert "there is no pool 'nowhere'" in wrong.err
    many = world.run("submit", status=2)
    assert world.pool in many.err


def test_dockerfiles_and_ignored_files(world):
    (world.place / "Dockerfile").write_text("FROM micro\nCOPY . /all\nRUN ls /all\n")
    (world.place / ".dockerignore").write_text("store\nstate\nout\ntoken\n")
    found = world.run("submit", "--on", world.pool, "-f", "Dockerfile")
    assert "hello.txt\n" in found.out
    assert "token\n" not in found.out


def running(world, *words):
    """Start something that takes long; its process and the job's name, once its log says something."""
    child = world.typed(*words, start_new_session=True)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for row in json.loads(world.run("job", "ls", "--json", "--phase", "running").out):
            if "***" in world.run("job", "log", row["id"]).out:
                return child, row["id"]
    child.kill()
    raise AssertionError(child.communicate())


def phase(world, id_):
    return json.loads(world.run("job", "wait", id_, "--json", status=130).out)[0]["phase"]


def test_interrupted_a_submitted_job_goes_on_and_an_attached_one_does_not(world):
    secret = ("-f", "long.spec", "--secret", "token:token", "--on", world.pool)
    child, id_ = running(world, "submit", *secret)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert f"obuilder job log -f {id_}" in err
    assert "hunter2" not in out
    assert "***" in out
    assert json.loads(world.run("job", "show", id_, "--json").out)["phase"] == "running"
    shown = world.run("cluster", "show", world.pool, kind="admin").out
    assert "(1 running)" in shown
    world.run("job", "cancel", id_, "--reason", "enough")
    assert phase(world, id_) == "cancelled"
    child, id_ = running(world, "build", *secret)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode == 130
    assert phase(world, id_) == "cancelled"


def test_detached_jobs_wait_for_a_paused_worker(world):
    admin = lambda *words, **how: world.run("cluster", *words, kind="admin", **how)  # noqa: E731
    admin("pause", world.pool, "--all", "--wait")
    id_ = world.run("submit", "--detach", "--on", world.pool).out.strip()
    shown = admin("show", world.pool).out
    assert "inactive: admin" in shown
    assert "micro-" in shown.partition("queue:")[2].partition("\n")[0]
    world.run("job", "cancel", id_)
    again = world.run("submit", "--detach", "--urgent", "--on", world.pool).out.strip()
    name = json.loads(admin("show", world.pool, "--json").out)["workers"][0]["name"]
    assert admin("show", world.pool, name, "--terse").out == "Paused\n"
    admin("unpause", world.pool, name)
    world.run("job", "wait", again)
    said = admin("exec", world.pool, "--", "echo", "to", "{}").out
    assert said == f"{name}: to {name}\n"
    admin("forget", world.pool, name, status=2)
    assert "nothing is wrong" in admin("doctor").out


def test_clients_come_and_go(world):
    file = world.place / "bob.json"
    world.run("cluster", "add-client", "bob", "-o", str(file), kind="admin")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "bob" in world.run("cluster", "clients", kind="admin").out.split()
    world.run("cluster", "set-rate", world.pool, "bob", "3", kind="admin")
    world.run("job", "ls", "--cluster", str(file))
    assert "cut off" in world.run("cluster", "remove-client", "bob", kind="admin").out
    assert "Traceback" not in world.run("job", "ls", "--cluster", str(file), status=6).err
    world.run("cluster", "clients", status=2)  # with a client's credentials
