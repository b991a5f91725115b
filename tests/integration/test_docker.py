"""Builds in a real Docker engine, by the program: what they come to, and what they leave alone."""

import json
import os
import pty
import re
import select
import shutil
import signal
import sys
import tarfile
import time
from contextlib import suppress
from typing import Any

import pytest

from leftovers import containers, engine_volumes, leftovers
from obuilder import Builder, parse
from obuilder.backends.docker.api import DockerEngine, Refused
from obuilder.backends.stores.docker import DockerStore
from places import scratch
from program import REPO, Program, cached, heard, shell, until

pytestmark = [
    pytest.mark.needs("root", "overlay", "crun", "docker"),
    pytest.mark.xdist_group("docker"),
    pytest.mark.parametrize("place", ["docker"], indirect=True),
]


def ask(method: str, path: str, body: Any = None, **query: str) -> Any:
    """What the engine answers, asked without any of the program's own back end."""
    said = DockerEngine.found().call(method, path, query, body)
    return json.loads(said) if said.strip() else None


def image_of(program: Program, key: str) -> dict[str, Any]:
    """What the engine says of a result's image."""
    with open(os.path.join(program.store, "results", key, "root")) as file:
        return ask("GET", f"/images/{json.load(file)['name']}/json")


def tree(program: Program, key: str, archive: str) -> dict[str, object]:
    """Every path of a result, with its kind, mode, owner and content."""
    program.ok("export", key, f"tar:{archive}")
    with tarfile.open(archive) as tar:
        return {
            member.name: (
                member.type, member.mode, member.uid, member.gid, member.linkname,
                tar.extractfile(member).read() if member.isreg() else b"",
            )
            for member in tar
        }  # fmt: skip


def both(program: Program, place: str, *arguments: str) -> dict[str, object]:
    """The tree of a build, which must be the same with the same key on overlayfs and crun."""
    plain = Program(place, kind="overlayfs")
    plain.context = program.context
    keys, trees = [], []
    for one in (program, plain):
        keys.append(one.ok("build", "--progress=quiet", *arguments).strip())
        trees.append(tree(one, keys[-1], os.path.join(place, "result.tar")))
    assert keys[0] == keys[1]
    assert trees[0] == trees[1]
    return trees[0]


@pytest.fixture
def beside():
    """A directory for another store."""
    with scratch() as path:
        yield path


@pytest.mark.parametrize("example", ["hello", "website"])
def test_examples_come_to_the_same(program: Program, beside: str, example: str) -> None:
    # The archive that the site's last step makes tells when it was made: without that step.
    shutil.copytree(REPO / "examples" / example, program.context, dirs_exist_ok=True)
    spec = os.path.join(program.context, "obuilder.spec")
    with open(spec) as file:
        text = file.read()
    with open(spec, "w") as file:
        file.write(re.sub(r'\(run \(shell "tar [^"]*"\)\)', "", text))
    assert len(both(program, beside)) > 250


def test_files_come_into_an_empty_root_and_from_stages(program: Program, beside: str) -> None:
    program.file("a file", b"content")
    os.mkdir(os.path.join(program.context, "tree"))
    for name in ("tree/\udcff\n", "tree/tool"):
        program.file(name, b"x")
    os.chmod(os.path.join(program.context, "tree/tool"), 0o755)
    os.link(*(os.path.join(program.context, f"tree/{name}") for name in ("tool", "linked")))
    os.symlink("/gone", os.path.join(program.context, "tree/link"))
    program.spec(
        "(user (uid 7) (gid 8))",
        '(copy (src "a file" tree) (dst /in/to/))',
        "(copy (from (build made)) (src /out/a /out/link) (dst /from/))",
        "(copy (from (build made)) (src /etc/set) (dst /etc/))",
        "(copy (from (build made)) (src /bin/busybox) (dst /bin/sh))",
        "(user (uid 0) (gid 0))",
        shell("echo run > /ran"),
        before=f"""(build made ((from micro) (shell /bin/sh -c)
            {shell("mkdir -p /out/a/b; echo 1 > /out/a/b/c; ln -s a /out/link; echo 2 > /etc/set")}))""",
        base="scratch",
    )
    found = both(program, beside)
    assert {"in/to/tree/\udcff\n", "from/a/b/c", "from/link", "etc/set", "ran"} <= set(found)
    assert "etc/hosts" not in found, "an engine's own file"


def test_a_dockerfile_comes_to_the_same(program: Program, beside: str) -> None:
    program.file("f", b"from the context")
    program.file("Dockerfile", DOCKERFILE.encode())
    token = "token:" + program.file("token", b"secret")
    found = both(program, beside, "--secret", token)
    assert found["home/ann/said"][2:] == (1000, 77, "", b"1000 77 78 400 600 kept\n")
    assert found["srv/f"][1:4] == (0o640, 1000, 77)
    assert found["srv/made/here"][2:4] == (1000, 77)
    for mount, told in (
        ("type=tmpfs,target=/m", "can't show builds, memory or agents of keys"),
        ("type=bind,target=/m", "can't show builds, memory or agents of keys"),
        ("type=secret,id=token,env=T", "can't show a secret to a step as a variable"),
    ):
        program.file(
            "Dockerfile", f"FROM micro\nRUN touch /ran\nRUN --mount={mount} true\n".encode()
        )
        done = program.run("build", "--secret", token)
        assert done.status == 2
        assert f"Dockerfile:3:1: this sandbox {told}" in done.err
        assert "saved as" not in done.out


DOCKERFILE = """FROM micro
RUN echo ann:x:1000:77::/home/ann: >> /etc/passwd; mkdir -p /home/ann && chown 1000:77 /home/ann
RUN printf 'team:x:77:\\nmore:x:78:ann\\n' >> /etc/group
WORKDIR /srv/made
COPY --chown=ann:team --chmod=640 f /srv/
ADD --chown=1000:77 <<HERE /srv/made/here
text
HERE
USER ann
RUN --mount=type=secret,id=token,target=/run/own,uid=1000 \\
    --mount=type=secret,id=token,target=/run/shared,mode=600 \\
    --mount=type=cache,id=c,target=/c,uid=1000,mode=700 \\
    echo kept > /c/f && cat /run/own > /dev/null && ! cat /run/shared 2> /dev/null && \\
    echo $(id -u) $(id -G) $(stat -c %a /run/own) $(stat -c %a /run/shared) $(cat /c/f) > ~/said
"""


def members(layout: str) -> list[dict[str, tarfile.TarInfo]]:
    """What each layer of the image in a layout has, by name."""

    def blob(digest: str) -> str:
        return os.path.join(layout, "blobs", *digest.split(":"))

    with open(os.path.join(layout, "index.json")) as file:
        (entry,) = json.load(file)["manifests"]
    with open(blob(entry["digest"])) as file:
        found = []
        for layer in json.load(file)["layers"]:
            with tarfile.open(blob(layer["digest"])) as tar:
                found.append({member.name: member for member in tar})
    return found


def test_results_of_an_engine_go_out_as_any_others(program: Program) -> None:
    program.spec(
        shell("mkdir -p /d/e; echo 1 > /d/f; ln /d/f /d/g; ln -s f /d/l; chown -R 5:6 /d"),
        shell("rm /d/g; echo 2 > /d/h; touch -d @5 /d/f; mkfifo /d/e/p; chmod 4711 /bin/busybox"),
        "(env A b)",
    )
    layout = os.path.join(program.temporary, "layout")
    digests = set()
    for squash in ((), ("--squash",), ()):
        shutil.rmtree(layout, ignore_errors=True)
        program.ok("build", "--reproducible", *squash, "-o", f"oci:{layout}")
        with open(os.path.join(layout, "index.json")) as file:
            digests.add(json.load(file)["manifests"][0]["digest"])
    assert len(digests) == 2, "the same, however often"
    changed = members(layout)
    assert [len(layer) > 100 for layer in changed] == [True, False, False]
    assert set(changed[1]) - {"."} == {"d", "d/e", "d/f", "d/g", "d/l"}
    assert (changed[1]["d/g"].linkname, changed[1]["d/l"].linkname) == ("d/f", "f")
    assert {(member.uid, member.gid) for name, member in changed[1].items() if name != "."} == {
        (5, 6)
    }
    assert set(changed[2]) - {"."} == {
        "bin", "bin/busybox", "d", "d/.wh.g", "d/e", "d/e/p", "d/f", "d/h"
    }  # fmt: skip
    key = program.ok("ls", "-q").split()[0]
    program.ok("export", key, "docker-daemon:obuilder-test/out:1")
    assert ask("GET", "/images/obuilder-test/out:1/json")["Config"]["Env"][-1] == "A=b"
    ask("DELETE", "/images/obuilder-test/out:1")


@pytest.mark.parametrize("step", ["(copy (src tree) (dst /f))", "(copy (src f) (dst /tree))"])
def test_a_file_and_a_directory_are_not_mixed_up(program: Program, step: str) -> None:
    program.file("f", b"")
    os.mkdir(os.path.join(program.context, "tree"))
    program.spec("(copy (src f) (dst /f))", "(copy (src tree) (dst /tree))", step)
    done = program.run("build")
    assert done.status == 4
    assert "can't copy to /" in done.err


def test_what_steps_mount_leaves_nothing_where_it_was(program: Program, beside: str) -> None:
    program.file("value", b"hunter2")
    secret = "(secrets (s (target /run/secrets/s) ))"
    program.spec(
        "(user (uid 7) (gid 8))",
        cached("echo 1 > /v/c/1; stat -c %u:%g /v/c", c="private").replace(
            "(run ", f"(run {secret} "
        ),
        "(workdir /v/c)",
        cached("cat 1; pwd", c="append"),
    )
    found = both(program, beside, "--secret=s:value")
    assert "v/c" in found, "where a step started is made for good"
    assert "v/c/1" not in found
    assert "run/secrets" not in found
    assert leftovers(program.store, program.temporary) == []


@pytest.mark.anyio
async def test_steps_on_layers_that_became_one_leave_nothing(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DockerStore, "deepest", 2)
    step = cached("echo 1 >> /v/c/1; echo > /file", c="private")
    text = f"((from micro) (shell /bin/sh -c) {step} (env N 1) {step} (copy (src f) (dst /f)))"
    program.file("f", b"")
    async with Builder.open(program.settings) as builder:
        key = (await builder.build(parse(text.encode(), file="").spec, program.context)).key
    layers = image_of(program, key)["RootFS"]["Layers"]
    assert len(layers) <= 4
    assert leftovers(program.store, program.temporary) == []


def test_a_base_of_the_engine_keeps_what_it_says_of_itself(program: Program) -> None:
    program.spec(shell("mkdir /data; echo > /data/old"))
    first = image_of(program, program.ok("build", "--progress=quiet").strip())
    config = {
        "Image": first["Id"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo hello"],
        "Env": ["A=b=c"], "WorkingDir": "/data", "Volumes": {"/data": {}}, "Labels": {"x": "y"},
    }  # fmt: skip
    try:
        ask("POST", "/containers/create", config, name="obuilder-test-base")
        ask("POST", "/commit", {}, container="obuilder-test-base", repo="obuilder-test", tag="base")
        ask("DELETE", "/containers/obuilder-test-base", v="1")
        volumes = {found["Name"] for found in ask("GET", "/volumes")["Volumes"] or ()}
        program.use("other")
        program.spec(
            shell("echo $A; pwd; echo > /data/new"), shell("ls /data"),
            "(copy (src obuilder.spec) (dst /data/))",
            base="docker-daemon:obuilder-test:base",
        )  # fmt: skip
        out = program.ok("build")
        assert "b=c\n/\n" in out
        assert "new\nold\n" in out, "nothing of a result is in a volume that goes"
        made = image_of(program, out.split('"')[-2])
        for name in ("Entrypoint", "Cmd"):
            assert made["Config"][name] == config[name]
        assert made["Config"]["Labels"]["x"] == "y"
        assert not made["Config"]["Volumes"]
        assert (
            made["RootFS"]["Layers"][: len(first["RootFS"]["Layers"])] == first["RootFS"]["Layers"]
        )
        new = {found["Name"] for found in ask("GET", "/volumes")["Volumes"] or ()} - volumes
        assert all(name.startswith("obuilder-") for name in new)
    finally:
        with suppress(Refused):
            ask("DELETE", "/images/obuilder-test:base", force="1")


def test_images_that_somebody_pruned_are_made_anew(program: Program) -> None:
    program.spec(shell("echo 1 > /one"), shell("cat /one"))
    key = program.ok("build", "--progress=quiet").strip()
    for image in ask("GET", "/images/json"):
        for tag in image["RepoTags"]:
            ask("DELETE", f"/images/{tag}", force="1")
    done = program.run("shell", key, "cat", "/one")
    assert done.status == 4
    assert "build again" in done.err
    assert program.ok("build").count("saved as") == 3
    assert program.ok("shell", key, "cat", "/one") == "1\n"


def test_what_is_not_a_dead_sessions_is_left_alone(program: Program) -> None:
    program.spec(cached("echo 1 > /v/c/1; echo 2 > /v/s/2", c="private", s="shared"))
    program.ok("build")
    image = ask("GET", "/images/json")[0]["Id"]
    labels = {"obuilder.store": "another", "obuilder.session": "0" * 16}
    config = {"Image": image, "Entrypoint": ["/bin/sh"], "Labels": labels}
    try:
        ask("POST", "/containers/create", config, name="obuilder-test-foreign")
        ask("POST", "/volumes/create", {"Name": "obuilder-test-foreign", "Labels": labels})
        ask("POST", f"/images/{image}/tag", repo="localhost/obuilder-another", tag=f"{'0' * 16}.1")
        program.ok("clean")
        assert [found["Names"] for found in ask("GET", "/containers/json", all="1")] == [
            ["/obuilder-test-foreign"]
        ]
        assert ask("GET", "/volumes/obuilder-test-foreign")
        assert len(engine_volumes(program.store)) == 2, "volumes outlive results"
        assert ask("GET", f"/images/localhost/obuilder-another:{'0' * 16}.1/json")
    finally:
        for path in ("/containers/obuilder-test-foreign", "/volumes/obuilder-test-foreign",
                     f"/images/localhost/obuilder-another:{'0' * 16}.1"):  # fmt: skip
            with suppress(Refused):
                ask("DELETE", path, force="1")
    program.ok("cache", "rm", "c", "s")
    assert leftovers(program.store, program.temporary) == []


def test_an_interrupted_step_is_gone_within_a_second(program: Program) -> None:
    program.spec(shell("trap '' INT TERM; echo star''ted; sleep 97533 & sleep 97533"))
    process = program.start("build")
    heard(process, b"started")  # not in its heading, which is there before it runs
    (running,) = containers(program.store).values()
    assert running
    process.send_signal(signal.SIGINT)
    took = until(lambda: not containers(program.store), "the container is gone")
    assert process.wait(10) == 130
    process.communicate()
    assert took < 1
    assert leftovers(program.store, program.temporary) == []


def test_a_person_enters_with_streams_or_a_terminal(program: Program) -> None:
    program.spec(shell("echo 1 > /one; exit 3"))
    failed = program.run("build")
    key = failed.err.partition("obuilder shell ")[2].split()[0]
    done = program.run("shell", key, "--", "sh", "-c", "cat /one; echo x >&2; cat; exit 4")
    assert (done.status, done.out, done.err) == (4, "1\n", "x\n")
    status, said = _at_a_terminal(program, key, b"stty size; tty; rm /one; exit 5\n")
    assert status == 5
    assert b"33 77" in said
    assert b"/dev/pts/0" in said
    assert program.ok("shell", key, "cat", "/one") == "1\n", "what is changed is dropped"
    assert leftovers(program.store, program.temporary) == []


def _at_a_terminal(program: Program, key: str, typed: bytes) -> tuple[int, bytes]:
    environ = {**os.environ, **program.variables, "PYTHONPATH": str(REPO / "src")}
    environ.update(LINES="33", COLUMNS="77")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "obuilder", "shell", key], environ)
    said, deadline = b"", time.monotonic() + 20
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    said += os.read(terminal, 4096)
                except OSError:
                    break  # the other side is gone
            if typed and b"# " in said:
                os.write(terminal, typed)
                typed = b""
    finally:
        os.close(terminal)
        with suppress(ProcessLookupError):
            if time.monotonic() >= deadline:
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), said


def test_what_can_not_be_is_told(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program.spec('(run (network nowhere) (shell "true"))')
    done = program.run("build")
    assert done.status == 2
    assert "no network called 'nowhere'" in done.err
    assert "host" in done.err
    program.spec(shell("true"))
    done = program.run("build", "--sandbox=oci")
    assert done.status == 2
    assert "docker with docker" in done.err
    done = program.run("build", "--runtime=nonesuch")
    assert done.status == 3
    assert "no runtime called 'nonesuch'" in done.err
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    done = program.run("build")
    assert done.status == 3
    assert "there is no Docker engine at /nonexistent/docker.sock" in done.err
