"""What works on this machine: every back end tried for real, and nothing of it left."""

import json
import os
import signal
import subprocess  # mounts that hide programs are no part of the program
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines import Engine
from obuilder.backends import registry
from obuilder.backends.sandboxes.accounts import listed
from obuilder.engine.survey import VERSION
from obuilder.engine.trial import Outcome, decoded
from places import Opened, each
from program import REPO, Done, Process, Program, finish, start, until

pytestmark = [
    pytest.mark.needs("root", "overlay", "crun", "useradd"),
    pytest.mark.xdist_group("users"),  # of the machine, which all processes share
]

KINDS = {"usable", "missing", "failed", "elsewhere"}


def left(folder: str) -> list[str]:
    """What trials have left in a directory."""
    return [name for name in os.listdir(folder) if "healthcheck" in name]


def tried(trial: dict[str, object], *, before: tuple[str, ...] = (), **variables: str) -> Outcome:
    """What comes of a trial; `before` is what its process is started with."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OBUILDER_")}
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "obuilder.engine.trial", json.dumps({"policy": {}, **trial})],
        env={**clean, "PYTHONPATH": str(REPO / "src"), **variables},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    try:
        out = b"".join(process.stdout)
        assert process.wait() == 0, process.stderr.read().decode()
        return decoded(out.splitlines()[-1], Outcome)
    finally:
        process.kill()
        process.communicate()


# --- the whole of it -----------------------------------------------------------------------------


@pytest.fixture
def survey(program: Program) -> Iterator[dict]:
    users = {account.note for account in listed()}
    yield json.loads(program.ok("healthcheck", "--all", "--json"))
    above = os.path.dirname(program.store)
    assert left(above) == []
    assert not os.path.exists(program.store), "the store itself is nobody's business here"
    mark = os.stat(above).st_dev  # which is in the notes of the users of its stores
    assert not [n for n in {a.note for a in listed()} - users if f"-{mark:x}-" in n]


def test_all_that_the_registry_has_is_tried(program: Program, survey: dict) -> None:
    assert (survey["version"], survey["usable"]) == (VERSION, True)
    assert survey["chosen"] == {"store": program.settings.store, "sandbox": "oci", "usable": True}
    stores = {row["kind"]: row for row in survey["stores"]}
    sandboxes = {row["kind"]: row for row in survey["sandboxes"]}
    assert list(stores) == list(registry.STORES)
    assert list(sandboxes) == list(registry.SANDBOXES)
    for row in (*stores.values(), *sandboxes.values()):
        assert row["status"] in KINDS
        assert row["summary"]
        if row["status"] == "usable":
            assert row["findings"], row
        else:
            assert row["message"], row
            assert row["hint"], row
            assert "healthcheck" not in row["message"] + row["hint"], "of a place that is gone"
    above = os.path.dirname(program.store)
    for kind in ("overlayfs", "rsync+copy", "rsync+hardlink", "rsync+hardlink_unsafe", "copy"):
        assert (stores[kind]["status"], stores[kind]["ground"]) == ("usable", above)
    found = {row["check"]: row for row in sandboxes["oci"]["findings"]}
    for word in ("crun", "init: ", "limits: ", "control group"):
        assert word in found["sandbox"]["detail"]
    assert "65536 ids" in found["identity"]["detail"]
    assert found["isolation"]["status"] == "ok"
    assert sandboxes["host"]["status"] == "usable"
    assert "darwin" in sandboxes["users"]["systems"]
    # Pairs are those of the registry that can be tried.
    usable = {row["kind"] for row in survey["stores"] if row["status"] == "usable"}
    found = [(row["store"], row["sandbox"]) for row in survey["pairs"]]
    assert found == [pair for pair in registry.pairs() if pair[0] in usable]
    works = {(row["store"], row["sandbox"]) for row in survey["pairs"] if row["status"] == "usable"}
    assert {("overlayfs", "oci"), ("copy", "host"), ("rsync+copy", "oci")} <= works


def test_nothing_can_build_where_there_is_no_program(program: Program) -> None:
    done = _bare(program, ["crun", "runc", "busybox", "useradd"], "healthcheck", "--all")
    lines = {tuple(line.split()[:3]): line for line in done.out.splitlines()}
    assert ("store", "overlayfs", "usable") in lines, done
    assert "crun: not installed; runc: not installed" in lines["sandbox", "oci", "missing"]
    assert "install crun, or runc" in done.out
    assert "useradd is not there" in lines["sandbox", "users", "missing"]
    assert "busybox" in lines["sandbox", "host", "missing"]
    assert done.out.splitlines()[-1] == "Nothing can build here"
    assert done.status == 3
    assert left(os.path.dirname(program.store)) == []


@pytest.mark.parametrize(
    ("before", "hint"),
    [
        (("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"), "root needs CAP_SYS_ADMIN"),
        (("unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_mnt_namespaces; exec "$@"', "sh"), "user.max_mnt_namespaces"),
    ],
)  # fmt: skip
def test_where_nobody_may_have_namespaces(
    program: Program, before: tuple[str, ...], hint: str
) -> None:
    above = os.path.dirname(program.store)
    for kind in ("overlayfs", "btrfs", "copy"):
        outcome = tried({"kind": kind, "near": program.store, "grounds": [above]}, before=before)
        assert outcome.status == "missing", outcome
        assert "may not have namespaces of its own" in outcome.message
        assert hint in (outcome.hint or "")
        assert left(above) == []


def test_what_all_does_not_take(program: Program) -> None:
    done = program.run("healthcheck", "--all", "--sandbox=oci")
    assert (done.status, done.out) == (2, "")
    assert "--all tries every sandbox" in done.err
    done = program.run("healthcheck", "--all", "--store=nonsense:/x")
    assert done.status == 2
    assert "there is no store called 'nonsense'" in done.err


# --- what is missing -----------------------------------------------------------------------------

_HIDE = """
empty=$(mktemp); chmod 644 "$empty"
for name in $HIDDEN; do
  for folder in /bin /sbin /usr/bin /usr/sbin /usr/local/bin /usr/local/sbin; do
    [ ! -e "$folder/$name" ] || mount --bind "$empty" "$(readlink -f "$folder/$name")"
  done
done
exec "$@"
"""


def _bare(program: Program, hidden: list[str], *arguments: str) -> Done:
    """Run the program where these programs are not installed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OBUILDER_")}
    process: Process = subprocess.Popen(
        [*_hiding(program.temporary), sys.executable, "-m", "obuilder", *arguments],
        cwd=program.context,
        env={**clean, "PYTHONPATH": str(REPO / "src"), **program.variables, "HIDDEN": " ".join(hidden)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    return finish(process)


def _hiding(temporary: str) -> tuple[str, ...]:
    return ("env", f"TMPDIR={temporary}", "unshare", "--mount", "sh", "-euc", _HIDE, "sh")


@pytest.mark.parametrize(
    ("sandbox", "hidden", "message", "hint"),
    [
        ("oci", "crun runc", "crun: not installed; runc: not installed", "install crun, or runc"),
        ("oci", "tini tini-static docker-init", "no static init", "package tini of Debian"),
        ("oci", "busybox", "statically linked busybox", "busybox-static"),
        ("users", "userdel", "userdel is not there", "package passwd"),
        ("host", "crun runc tini tini-static useradd", "", None),
    ],
)
def test_what_a_sandbox_lacks_is_told(
    program: Program, sandbox: str, hidden: str, message: str, hint: str | None
) -> None:
    trial = {"kind": "overlayfs", "sandbox": sandbox, "near": program.store}
    outcome = tried(trial, before=_hiding(program.temporary), HIDDEN=hidden)
    assert outcome.status == ("missing" if message else "usable"), outcome
    assert message in outcome.message
    assert hint is None or hint in (outcome.hint or "")


def test_without_zfs_programs(program: Program) -> None:
    trial = {"kind": "zfs", "near": program.store}
    outcome = tried(trial, before=_hiding(program.temporary), HIDDEN="zfs zpool")
    assert (outcome.status, outcome.message) == ("missing", "zpool is not installed")
    assert "zfsutils-linux" in (outcome.hint or "")


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_a_file_system_of_another_kind(program: Program, kind: str) -> None:
    outcome = tried(
        {"kind": kind, "near": program.store, "grounds": [os.path.dirname(program.store)]}
    )
    assert outcome.status == "missing"
    assert outcome.file_system not in ("", kind)
    assert f"mkfs.{kind}" in (outcome.hint or "")


# --- places --------------------------------------------------------------------------------------


@each("btrfs", "xfs", "zfs")
@pytest.mark.parametrize("sandbox", [None, "oci"])
def test_the_file_system_that_a_store_needs(place: Opened, sandbox: str | None) -> None:
    near = registry.parse_store(place.store)[1]
    trial = {"kind": place.kind, "near": near, "sandbox": sandbox, "grounds": []}
    outcome = tried(trial)
    assert outcome.status == "usable", outcome
    assert place.kind in outcome.file_system
    assert os.listdir(place.directory) == []
    if place.kind == "zfs":
        listed = subprocess.run(["zfs", "list", "-H"], capture_output=True, text=True, check=True)
        assert "healthcheck" not in listed.stdout


@each("btrfs")
@pytest.mark.parametrize("allowed", [True, False])
def test_btrfs_for_who_is_not_the_machines_root(place: Opened, allowed: bool) -> None:
    """Root of a user namespace may no more than its user: snapshots that can't be written to stay."""
    option = "user_subvol_rm_allowed" if allowed else "rw"
    subprocess.run(["mount", "-o", f"remount,{option}", place.directory], check=True)
    near = registry.parse_store(place.store)[1]
    before = ("unshare", "--user", "--map-root-user", "--mount")
    outcome = tried({"kind": "btrfs", "near": near, "sandbox": "oci", "grounds": []}, before=before)
    assert outcome.status == "usable", outcome
    assert os.listdir(place.directory) == []


def test_hints_for_who_has_no_such_file_system_are_true(program: Program) -> None:
    """The commands make a place where the store works."""
    trial = {"kind": "xfs", "near": program.store, "grounds": [os.path.dirname(program.store)]}
    hint = tried(trial).hint or ""
    commands = hint[hint.index("truncate") : hint.index(" (mkfs.xfs")]
    commands = commands.replace("/var/lib/", f"{program.temporary}/").replace(
        "/srv/obuilder", f"{program.temporary}/srv"
    )
    before = ("unshare", "--mount", "sh", "-euc", f'{commands} && exec "$@"', "sh")
    outcome = tried({**trial, "grounds": [f"{program.temporary}/srv"]}, before=before)
    assert (outcome.status, outcome.file_system) == ("usable", "xfs"), outcome


# --- what hangs, breaks or is killed -------------------------------------------------------------


def test_a_runtime_that_hangs_is_given_up(program: Program) -> None:
    path = program.file("crun-that-hangs", b"#!/bin/sh\nexec sleep 7411\n")
    os.chmod(path, 0o755)
    trial = {
        "kind": "overlayfs",
        "sandbox": "oci",
        "near": program.store,
        "seconds": 1,
        "policy": {"runtime": path},
    }
    outcome = tried(trial)
    assert (outcome.status, outcome.message) == ("failed", "it came to no end in 1 s")
    assert left(os.path.dirname(program.store)) == []
    assert subprocess.run(["pgrep", "-f", "sleep 7411"], check=False).returncode == 1


def _session(folder: str) -> str | None:
    """The session of a trial that has made a user already."""
    for path in Path(folder).glob("obuilder-healthcheck.*.users.*/sessions/*"):
        if any(path.name in account.name for account in listed()):
            return path.name
    return None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_who_is_stopped_leaves_nothing(program: Program, number: signal.Signals) -> None:
    above = os.path.dirname(program.store)
    process = program.start("healthcheck", "--all")
    session = None
    while session is None and process.poll() is None:
        session = _session(above)
    assert session is not None, finish(process)
    process.send_signal(number)
    status = process.wait(60)
    assert status == (-9 if number == signal.SIGKILL else 130)
    process.communicate()
    # Nobody has to wait for who was killed outright.
    until(lambda: left(above) == [], "places are gone", seconds=60)
    assert not [account for account in listed() if session in account.name]


def test_what_a_killed_trial_leaves_goes_with_the_next(program: Program) -> None:
    above = os.path.dirname(program.store)
    trial = {"kind": "overlayfs", "sandbox": "users", "near": program.store}
    process = subprocess.Popen(
        [sys.executable, "-m", "obuilder.engine.trial", json.dumps({"policy": {}, **trial})],
        env={**os.environ, "PYTHONPATH": str(REPO / "src")}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    session = None
    while session is None and process.poll() is None:
        session = _session(above)
    process.kill()
    process.communicate()
    assert session is not None
    assert len(left(above)) == 1
    assert [account for account in listed() if session in account.name]
    assert tried(trial).status == "usable"
    assert left(above) == []
    assert not [account for account in listed() if session in account.name]


# --- rows ----------------------------------------------------------------------------------------

_ROWS = """
from obuilder.backends.registry import SANDBOXES, STORES, SandboxKind, StoreKind

STORES.clear()
SANDBOXES.clear()
STORES["fake"] = StoreKind("obuilder.testing.fakes:FakeStore", "copies")
STORES["faulty"] = StoreKind("faulty:FaultyStore", "breaks")
STORES["windows"] = StoreKind("obuilder.testing.fakes:FakeStore", "layers", systems=("win32",))
SANDBOXES["fake"] = SandboxKind("taught:TaughtSandbox", "no isolation")
"""
_FAULTY = """
from obuilder.testing.fakes import FakeStore

class FaultyStore(FakeStore):
    @classmethod
    async def open(cls, directory, idmap, *, session):
        raise ZeroDivisionError("of its own")
"""
_TAUGHT = """
from obuilder.testing.fakes import FakeSandbox

class TaughtSandbox(FakeSandbox):
    def __init__(self, *arguments, **words):
        super().__init__(*arguments, **words)
        self.programs["ls"] = self.nothing

    async def nothing(self, call):
        return 0
"""


def test_a_back_end_is_a_row_and_its_class(program: Program, tmp_path: Path) -> None:
    """Nothing knows of it but the registry; what breaks in one is no other's."""
    (tmp_path / "sitecustomize.py").write_text(_ROWS)
    (tmp_path / "faulty.py").write_text(_FAULTY)
    (tmp_path / "taught.py").write_text(_TAUGHT)
    process = start(
        "healthcheck", "--all", "--json", cwd=program.context, OBUILDER_STORE=f"fake:{program.store}",
        TMPDIR=program.temporary, PYTHONPATH=f"{REPO / 'src'}:{tmp_path}",
    )  # fmt: skip
    done = finish(process)
    assert done.status == 0, done
    survey = json.loads(done.out)
    stores = {row["kind"]: row for row in survey["stores"]}
    assert stores["fake"]["status"] == "usable", stores
    assert stores["faulty"]["status"] == "failed"
    assert "it has a fault: ZeroDivisionError('of its own')" in stores["faulty"]["message"]
    assert (stores["windows"]["status"], stores["windows"]["message"]) == (
        "elsewhere",
        "it is for Windows",
    )
    assert [(row["store"], row["sandbox"], row["status"]) for row in survey["pairs"]] == [
        ("fake", "fake", "usable")
    ]
    assert left(os.path.dirname(program.store)) == []


# --- one pair ------------------------------------------------------------------------------------


def test_one_pair_for_programs(program: Program) -> None:
    said = json.loads(program.ok("healthcheck", "--json"))
    assert (said["version"], said["usable"], said["error"]) == (1, True, None)
    assert said["store"] == program.settings.store
    assert all(row["status"] == "ok" for row in said["findings"]), said
    done = program.run("healthcheck", "--json", "--runtime=/nowhere/crun")
    said = json.loads(done.out)
    assert (done.status, said["usable"], said["findings"]) == (3, False, [])
    assert said["error"]["code"] == "backend-unavailable"
    assert "not installed" in said["error"]["message"] in done.err


@pytest.mark.needs("docker")
def test_an_engine_has_nothing_of_it_left(program: Program, docker_engine: Engine) -> None:
    def held() -> list[object]:
        images, volumes = (
            json.loads(docker_engine.get(f"/{what}")) for what in ("images/json", "volumes")
        )
        return [
            {tag for image in images for tag in image["RepoTags"] or ["<none>"]},
            {volume["Name"] for volume in volumes["Volumes"] or ()},
            json.loads(docker_engine.get("/containers/json")),
        ]

    program.variables["DOCKER_HOST"] = docker_engine.host
    before = held()
    survey = json.loads(program.ok("healthcheck", "--all", "--json"))
    assert held() == before
    for rows in (survey["stores"], survey["sandboxes"]):
        (row,) = [row for row in rows if row["kind"] == "docker"]
        assert row["status"] == "usable", row
    assert [row["status"] for row in survey["pairs"] if row["store"] == "docker"] == ["usable"]
