"""All of the main job as a user without any privilege, in a fresh clone, in a home of their own."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import people
from people import Person
from program import finish, heard, running, shell, until
from registries import Registry

pytestmark = [
    pytest.mark.needs("root", "overlay", "newuidmap", "mmdebstrap", "skopeo", "system-python"),
    pytest.mark.xdist_group("debian"),
]


@pytest.fixture(scope="module", params=["subordinate-ids", "one-id", "root"])
def anybody(request: pytest.FixtureRequest, owner: Person, clone: Path) -> Iterator[Person]:
    """Whoever can run the program of the clone."""
    if request.param == "subordinate-ids":
        yield owner
    elif request.param == "one-id":
        with people.without_subordinate_ids(clone.parent) as person:
            yield person
    else:
        with people.place() as home:
            yield Person(0, 0, home, clone)


@pytest.fixture(scope="module", params=["subordinate-ids", "one-id"])
def person(request: pytest.FixtureRequest, owner: Person, clone: Path) -> Iterator[Person]:
    """Both kinds of ordinary users."""
    if request.param == "subordinate-ids":
        yield owner
        return
    with people.without_subordinate_ids(clone.parent) as person:
        yield person


@pytest.fixture
def context(person: Person) -> Iterator[Path]:
    """An empty context; what the test has built is gone after it."""
    path = person.home / "context"
    path.mkdir()
    os.chown(path, person.uid, person.gid)
    yield path
    shutil.rmtree(path)
    person.ok("clean", "--everything")


def spec(context: Path, *ops: str, base: str = "micro") -> None:
    text = f"((from {base}) (shell /bin/sh -c)\n " + "\n ".join(ops) + ")\n"
    (context / "obuilder.spec").write_text(text)


def test_the_demo(anybody: Person) -> None:
    done = anybody.run(anybody.clone / "scripts/demo")
    assert done.status == 0, done
    assert done.out.count("Again, with nothing changed") == 2
    assert "history.html: index.html is there" in done.out
    assert "all checks passed" in done.out
    assert "    13  what\n" in done.out
    assert done.out.count("from cache") > 18
    assert not list(anybody.home.glob("obuilder-demo.*")), "the demo has left its store"


def test_what_is_cached_needs_no_event_loop(person: Person, context: Path) -> None:
    spec(context, shell("echo once > /made; cat /made"))
    first = person.ok("build", cwd=context)
    assert "once\n---> saved as" in first
    program = (
        "import sys; from obuilder.cli.main import run; status = run(['build']);"
        "sys.exit('an event loop' if 'anyio' in sys.modules else status)"
    )
    done = person.run(
        person.clone / ".venv/bin/python", "-c", program,
        cwd=context, PYTHONPATH=str(person.clone / "src"),
    )  # fmt: skip
    assert done.status == 0, done
    assert "once\n---> using" in done.out
    assert done.out.splitlines()[-1] == first.splitlines()[-1]


def test_a_failed_step_can_be_entered(person: Person, context: Path) -> None:
    spec(context, shell("echo partial > /made; echo oops; exit 3"))
    failed = person.obuilder("build", cwd=context)
    assert failed.status == 1
    assert "exited with status 3" in failed.err
    hint = re.search(r"obuilder shell ([0-9a-f]+)", failed.err)
    assert hint is not None
    assert person.ok("shell", hint[1], "cat", "/made") == "partial\n"
    assert person.ok("log", hint[1]) == "oops\n"


def test_volumes_secrets_and_users(person: Person, context: Path) -> None:
    (context / "token").write_text("correct-horse")
    (context / "input").write_text("copied")
    volumes = " ".join(
        f"({mode} (target /{mode}) (mode {mode}))"
        for mode in ("private", "locked", "append", "shared")
    )
    write = "for v in private locked append shared; do date >> /$v/stamp; done; stat -c '%a %u' /run/secrets/t"
    read = "cat /run/secrets/t; wc -l /*/stamp; test ! -e /read-only/x; touch /read-only/x || id -u"
    readonly = "(private (target /read-only) (mode read-only))"
    spec(
        context,
        "(user (uid 1000) (gid 1000))",
        f"(run (cache {volumes}) (secrets (t)) {shell(write)[5:]}",
        f"(run (cache {volumes} {readonly}) (secrets (t)) {shell(read)[5:]}",
        "(copy (src input) (dst /in/))",
        shell("stat -c '%u %n' /in/input"),
    )
    out = person.ok("build", "--secret", f"t:{context}/token", cwd=context)
    assert "400 1000\n" in out
    assert "***" in out
    assert "correct-horse" not in out
    for mode in ("private", "locked", "append", "shared"):
        assert f"1 /{mode}/stamp\n" in out
    assert "Read-only file system\n1000\n" in out
    assert "1000 /in/input\n" in out


def test_results_are_shown_exported_and_deleted(person: Person, context: Path) -> None:
    spec(
        context,
        shell("echo first; mkdir -m 700 /closed; echo hi > /closed/file"),
        "(user (uid 1000) (gid 1000))",
        shell("touch /tmp/mine"),
        shell("true"),
    )
    key = person.ok("build", "--progress=quiet", cwd=context).strip()
    listed = json.loads(person.ok("ls", "--json"))
    assert [record["kind"] for record in listed] == ["run", "run", "run", "layer"]
    assert person.ok("log", listed[2]["key"]) == "first\n"
    assert json.loads(person.ok("show", "--json", key[:12]))["key"] == key
    assert " in 4 results;" in person.ok("du")

    person.ok("export", key[:12], "directory:out", cwd=context)
    person.ok("export", key[:12], "tar:out.tar", cwd=context)
    exported = context / "out"
    assert (exported / "closed/file").read_text() == "hi\n"
    assert {path.lstat().st_uid for path in exported.rglob("*")} == {person.uid}
    owners = person.run("tar", "--numeric-owner", "-tvf", "out.tar", cwd=context).out
    theirs = "0/0" if person.one_id else "1000/1000"
    assert re.search(rf"{theirs} +0 .* tmp/mine", owners)
    person.ok("export", key[:12], "oci:image", cwd=context)
    person.ok("cp", f"{key[:12]}:/closed", "taken", cwd=context)
    assert (context / "taken/file").stat().st_uid == person.uid
    image = json.loads(
        person.run("skopeo", "inspect", "--raw", "oci:image:latest", cwd=context).out
    )
    blobs = [layer["digest"].replace(":", "/") for layer in image["layers"]]
    owners = person.run(
        "tar", "--numeric-owner", "-tvf", f"image/blobs/{blobs[2]}", cwd=context
    ).out
    assert re.search(rf"{theirs} +0 .* tmp/mine", owners)
    assert person.run("rm", "-r", "out", "out.tar", "image", "taken", cwd=context).status == 0

    assert person.ok("delete", key[:12]) == "deleted 1\n"
    assert "deleted 1\n" in person.ok("prune", "--limit", "1")
    assert "deleted 2\n" in person.ok("clean")


def test_a_store_can_be_removed_by_its_owner(person: Person, context: Path) -> None:
    spec(
        context,
        "(run (cache (v (target /v)) (s (target /s) (mode shared)))"
        ' (shell "mkdir -m 700 /v/x /s/x /x; chmod 000 /x; touch /v/x/f"))',
        shell("exit 9"),
    )
    assert person.obuilder("build", cwd=context).status == 1
    person.ok("image", "import", "a-name", "micro")
    store = person.home / ".local/share/obuilder"
    person.ok("clean", "--everything")
    assert person.ok("ls", "--all") == person.ok("image", "ls") == person.ok("cache", "ls") == ""
    done = person.run("rm", "-r", store)
    assert done.status == 0, done.err
    assert not store.exists()


def test_what_cant_be_limited_is_said_and_refused(person: Person, context: Path) -> None:
    said = person.ok("healthcheck")
    assert "Healthcheck passed" in said
    assert ("one id" if person.one_id else "65536 ids") in said
    limits = re.search(r"limits: ([a-z, ]*)", said)
    assert limits is not None
    works = {word.strip() for word in limits[1].split(",")}
    assert works >= {"pids", "seconds"}
    spec(
        context,
        f"(run (limits (pids 20)) {shell('for i in $(seq 30); do sleep 2 & done; wait')[5:]}",
    )
    done = person.obuilder("build", cwd=context)
    assert (done.status, "can't fork" in done.out) == (1, True), done
    spec(context, f"(run (limits (memory 64m)) {shell('true')[5:]}")
    done = person.obuilder("build", cwd=context)
    if "memory" in works:
        assert done.status == 0, done
    else:
        assert "can't limit memory" in done.err


def test_all_that_works_for_them_is_told(person: Person) -> None:
    before = sorted(os.listdir(person.home))
    survey = json.loads(person.ok("healthcheck", "--all", "--json"))
    rows = {row["kind"]: row for row in (*survey["stores"], *survey["sandboxes"])}
    for kind in ("overlayfs", "rsync+hardlink", "copy", "oci", "host"):
        assert rows[kind]["status"] == "usable", rows[kind]
    for kind in ("zfs", "users"):
        assert rows[kind]["status"] == "missing"
        assert "run as root" in rows[kind]["hint"]
    (ids,) = (row for row in rows["oci"]["findings"] if row["check"] == "identity")
    if person.one_id:
        assert (ids["status"], ids["detail"]) == (
            "warning", "one id: /etc/subuid and /etc/subgid give this user none",
        )  # fmt: skip
        assert ids["hint"]
    else:
        assert (ids["status"], "65536 subordinate ids" in ids["detail"]) == ("ok", True)
    assert survey["chosen"]["usable"]
    assert {row["status"] for row in survey["pairs"] if row["sandbox"] == "oci"} == {"usable"}
    assert sorted(os.listdir(person.home)) == before


def test_a_killed_builder_leaves_nothing_behind(person: Person, context: Path) -> None:
    spec(context, shell("echo > /half; echo begun; sleep 7311; echo > /whole"))
    process = person.start_obuilder("build", cwd=context)
    heard(process, b"begun")
    process.kill()
    process.communicate()
    until(lambda: not running("sleep", "7311"), "the step is gone")
    spec(context, shell("echo > /half; echo begun; ls /whole || echo not there"))
    assert "not there" in person.ok("build", cwd=context)
    store = person.home / ".local/share/obuilder"
    assert person.run("ls", store / "drafts", store / "run").out.split() == [
        f"{store}/drafts:", f"{store}/run:",
    ]  # fmt: skip


def test_a_build_is_cancelled_with_its_step(person: Person, context: Path) -> None:
    spec(context, shell("echo begun; sleep 7312"))
    process = person.start_obuilder("build", cwd=context)
    heard(process, b"begun")
    process.terminate()
    assert finish(process, timeout=20).status == 130
    assert not running("sleep", "7312")


def test_somebody_elses_store_is_refused(owner: Person, clone: Path) -> None:
    shared = clone.parent / "shared"
    shared.mkdir()
    os.chown(shared, owner.uid, owner.gid)
    option = f"--store=overlayfs:{shared}/store"
    owner.ok("build", option, "examples/hello", cwd=clone)
    with people.without_subordinate_ids(clone.parent) as stranger:
        for arguments in (["build", option, "examples/website"], ["clean", option]):
            done = stranger.obuilder(*arguments, cwd=clone)
            assert done.status == 4, done
            assert "a store is for the user who made it" in done.err
    assert "from cache" in owner.ok("build", option, "examples/hello", cwd=clone)
    owner.ok("clean", "--everything", option)


@pytest.mark.needs("registry", "umoci", "skopeo")
def test_images_of_registries(person: Person, context: Path, registry: Registry) -> None:
    spec(context, shell("cat /made; ls /"), base=f"{registry.host}/app:one")
    assert "made" in person.ok("build", "context")
    assert "using" in person.ok("build", "context")
