"""The program with Dockerfiles: what judges can't be asked."""

import functools
import http.server
import os
import subprocess  # git and ssh-agent are no part of the program
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from places import scratch
from program import Program, compile_c

pytestmark = pytest.mark.needs("root", "overlay")


@pytest.fixture
def program() -> Iterator[Program]:
    with scratch() as place:
        yield Program(place)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and where it is served."""
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def dockerfile(program: Program, text: str, name: str = "Dockerfile") -> None:
    program.file(name, text.encode())


def members(program: Program, *options: str) -> dict[str, tarfile.TarInfo]:
    path = f"{program.temporary}/out.tar"
    program.ok("build", *options, "-o", f"tar:{path}")
    with tarfile.open(path) as tar:
        return {member.name.removeprefix("./"): member for member in tar}


def test_it_is_found_built_and_cached(program: Program) -> None:
    dockerfile(program, "FROM micro\nARG A=1\nRUN echo is $A\n")
    first = program.ok("build")
    assert "\nis 1\n" in first
    again = program.ok("build")
    assert "saved as" not in again
    assert again.splitlines()[-1] == first.splitlines()[-1]
    assert "\nis 2\n" in program.ok("build", "--build-arg", "A=2")
    program.spec("(run (shell true))")
    assert "is 1" not in program.ok("build"), "a spec goes before a Dockerfile"
    assert "\nis 1\n" in program.ok("build", "-f", "Dockerfile")


def test_a_fault_is_told_with_its_line_and_a_caret(program: Program) -> None:
    dockerfile(program, "FROM micro\n\nRUN x\nCOPY --chwon=1 a b\n")
    for verb in ("build", "plan", "check", "spec"):
        done = program.run(verb, *(["Dockerfile"] if verb in ("check", "spec") else []))
        assert done.status == 2
        assert "Dockerfile:4:6" in done.err
        assert "COPY --chwon=1 a b\n" in done.err
        assert "     ^" in done.err
    dockerfile(program, "FROM micro AS a\nCOPY none /x\nFROM a\nADD [x /y\n")
    assert "Dockerfile:2:1: 'none' not found" in program.run("build").err
    program.file("none", b"")
    assert "Dockerfile:4:1: '[x' is no pattern" in program.run("plan").err
    dockerfile(program, "FROM micro\nCOPY --from=No:where /x /y\n")
    assert "Dockerfile:2:1: there is no image called 'No:where'" in program.run("build").err
    assert "is a Dockerfile" in program.run("fmt", "Dockerfile").err
    assert program.ok("check") == "./Dockerfile: ok\n"
    dockerfile(program, "FROM micro\nFROM No:where\n")
    done = program.run("build")
    assert done.status == 5
    assert "Dockerfile:2:6: there is no image called 'No:where'" in done.err


def test_a_url_is_added_if_it_is_what_it_should_be(program: Program, web: tuple[Path, str]) -> None:
    folder, url = web
    (folder / "f").write_bytes(b"one")
    (folder / "in").write_bytes(b"archived")
    with tarfile.open(folder / "a.tgz", "w:gz") as tar:
        tar.add(folder / "in", arcname="d/in")
    sha = subprocess.run(["sha256sum", folder / "f"], capture_output=True, check=True, text=True)
    digest = "sha256:" + sha.stdout.split()[0]
    text = f"FROM scratch\nADD --checksum={digest} --chmod=640 {url}/f /x/\n"
    dockerfile(program, text + f"ADD --unpack=true {url}/a.tgz /y/\nADD {url}/a.tgz /z\n")
    found = members(program)
    assert oct(found["x/f"].mode) == "0o640"
    assert found["y/d/in"].size == len(b"archived")
    assert oct(found["z"].mode) == "0o600"
    (folder / "f").write_bytes(b"two")
    assert "saved as" not in program.ok("build"), "it need not be asked for again"
    program.use("another")
    done = program.run("build")
    assert done.status == 5
    assert "is not what it was said to be" in done.err
    dockerfile(program, f"FROM scratch\nADD {url}/none /x\n")
    assert "404" in program.run("build").err
    dockerfile(program, f"FROM scratch\nADD {url}/f /x\n")
    first = program.ok("build")
    (folder / "f").write_bytes(b"three")
    assert program.ok("build").splitlines()[-1] != first.splitlines()[-1], "it has changed"


def test_a_repository_is_added_at_a_commit(program: Program, web: tuple[Path, str]) -> None:
    folder, url = web

    def git(*words: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(
            ["git", "-C", str(folder / "r.git"), *identity, *words],
            capture_output=True, check=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    (folder / "r.git").mkdir()
    git("init", "-q", "-b", "main")
    (folder / "r.git/sub").mkdir()
    (folder / "r.git/sub/f").write_text("1")
    (folder / "r.git/run").write_text("x")
    (folder / "r.git/run").chmod(0o755)
    (folder / "r.git/.gitattributes").write_text("run filter=evil\n")
    git("add", ".")
    git("commit", "-qm", "one")
    git("tag", "v1")
    one = git("rev-parse", "HEAD")
    (folder / "r.git/sub/f").write_text("two")
    git("commit", "-qam", "two")
    git("update-server-info")
    where = f"{url}/r.git/.git"
    text = f"FROM scratch\nADD git+x /a\nADD {where}#v1 /v1\nADD {where}#main:sub /sub\nADD --checksum={one} {where}#v1:sub /one/\n"
    dockerfile(program, text.replace("ADD git+x /a\n", ""))
    found = members(program)
    assert oct(found["v1/run"].mode) == "0o755"
    assert (found["v1/sub/f"].size, found["sub/f"].size, found["one/f"].size) == (1, 3, 1)
    assert not [name for name in found if ".git/" in name]
    dockerfile(program, f"FROM scratch\nADD --checksum={'0' * 40} {where}#v1 /x\n")
    assert program.run("build").status == 5
    dockerfile(program, f"FROM scratch\nADD {where}#nope /x\n")
    assert "has no branch or tag 'nope'" in program.run("build").err


def test_secrets_are_shown_as_they_are_asked_for(program: Program) -> None:
    dockerfile(
        program,
        "FROM micro\nRUN --mount=type=secret,id=a,mode=0444,uid=3 stat -c '%a %u' /run/secrets/a\n"
        "RUN --mount=type=secret,id=a,env=A test ${#A} = 12 && ls /run\n"
        "RUN --mount=type=secret,id=gone test ! -e /run/secrets/gone && echo none\n",
    )
    value = program.file("value", b"secret-value")
    said = program.ok("build", "--secret", f"a:{value}")
    assert "\n444 3\n" in said
    assert "\nnone\n" in said
    kept = subprocess.run(
        ["grep", "-rl", "secret-value", program.store], capture_output=True, check=False
    )
    assert kept.stdout == b""
    dockerfile(program, "FROM micro\nRUN --mount=type=secret,id=b,required x\n")
    assert "couldn't find a value for the requested secret 'b'" in program.run("build").err


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """The socket of an agent with a key."""
    socket = str(tmp_path / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tested", "-f", tmp_path / "key"],
            check=True,
        )
        for _ in range(100):
            time.sleep(0.02)
            done = subprocess.run(
                ["ssh-add", "-q", tmp_path / "key"], env={**os.environ, "SSH_AUTH_SOCK": socket}, check=False
            )  # fmt: skip
            if done.returncode == 0:
                break
        yield socket
    finally:
        process.kill()
        process.wait()


@pytest.mark.needs("ssh-agent", "gcc")
def test_a_step_asks_an_agent_for_its_keys(program: Program, agent: str) -> None:
    compile_c(Path(__file__).with_name("ask_agent.c"), f"{program.context}/ask")
    dockerfile(
        program,
        "FROM micro\nUSER 5\n"
        "RUN --mount=type=ssh,uid=5 echo $SSH_AUTH_SOCK; stat -c '%a %u %F' $SSH_AUTH_SOCK\n"
        "COPY ask /ask\nRUN --mount=type=ssh,uid=5 /ask | grep -c tested\n"
        "RUN --mount=type=ssh,id=other test -z $SSH_AUTH_SOCK && echo without\n",
    )
    said = program.ok("build", "--ssh", f"default={agent}")
    assert "/run/buildkit/ssh_agent.0\n600 5 socket\n" in said
    assert "\n1\n" in said
    assert "\nwithout\n" in said
    dockerfile(program, "FROM micro\nRUN --mount=type=ssh,id=k,required x\n")
    assert "there is no agent of SSH keys for the requested 'k'" in program.run("build").err


def test_what_is_insecure_must_be_allowed(program: Program) -> None:
    dockerfile(program, "FROM micro\nRUN --security=insecure mount -t tmpfs none /mnt2 2>&1 || "
               "{ mkdir /mnt2; mount -t tmpfs none /mnt2; } && echo mounted\n")  # fmt: skip
    done = program.run("build")
    assert done.status == 2
    assert "--allow security.insecure" in done.err
    assert "\nmounted\n" in program.ok("build", "--allow", "security.insecure")
    dockerfile(program, "FROM micro\nRUN mkdir /mnt2; mount -t tmpfs none /mnt2 || echo refused\n")
    assert "refused" in program.ok("build", "--allow", "security.insecure")


def test_the_network_is_the_machines_or_none(program: Program) -> None:
    count = "ls /sys/class/net | wc -l"
    dockerfile(program, f"FROM micro\nRUN {count}\nRUN --network=none {count}\n")
    steps = program.ok("plan").splitlines()
    assert sum("(network host)" in step for step in steps) == 1
    steps = program.ok("plan", "--network", "none").splitlines()
    assert sum("(network host)" in step for step in steps) == 0


def test_contexts_by_name_and_their_ignore_files(program: Program) -> None:
    for name in ("keep", "drop", "own"):
        program.file(name, name.encode())
    program.file(".dockerignore", b"drop\n")
    other = os.path.join(program.temporary, "other")
    os.mkdir(other)
    for name in ("x", "y"):
        Path(other, name).write_text(name)
    Path(other, ".dockerignore").write_text("y\n.dockerignore\n")
    dockerfile(program, "FROM scratch\nCOPY . /a\nCOPY --from=more / /b\n")
    found = members(program, "--build-context", f"more={other}")
    assert {"a/keep", "a/own", "b/x"} <= set(found)
    assert not {"a/drop", "b/y", "b/.dockerignore"} & set(found)
    program.file("Dockerfile.dockerignore", b"own\n")
    found = members(program, "--build-context", f"more={other}")
    assert {"a/keep", "a/drop"} <= set(found)
    assert "a/own" not in found
    assert "no build context called 'lacking'" in _refused(
        program, "((from scratch) (add (from (context lacking)) (src x) (dst /x)))"
    )


def _refused(program: Program, spec: str) -> str:
    program.file("other.spec", spec.encode())
    done = program.run("build", "-f", "other.spec")
    assert done.status == 2
    return done.err


def test_a_dockerfile_and_its_spec_are_one_build(program: Program) -> None:
    program.file("f", b"x")
    dockerfile(
        program, "FROM micro AS a\nWORKDIR /w\nCOPY f .\nFROM a\nRUN --network=none ls\nCMD x\n"
    )
    first = program.ok("build").splitlines()[-1]
    program.file("same.spec", program.ok("spec").encode())
    program.file(".obuilderignore", b"")
    again = program.ok("build", "-f", "same.spec")
    assert again.splitlines()[-1] == first
    assert "saved as" not in again


def test_newer_syntax_makes_what_its_pages_say(program: Program) -> None:
    for name in ("dir/sub/two", "dir/one.o", "dir/sub/x.o", "dir/sub/keep.o"):
        os.makedirs(os.path.dirname(f"{program.context}/{name}"), exist_ok=True)
        program.file(name, b"x")
    program.file("over", b"x")
    dockerfile(
        program,
        "FROM micro\nRUN mkdir /real && ln -s real /link && ln -s /real/f /flink\n"
        "COPY --exclude=**/*.o --exclude=!**/keep.o dir /e\nCOPY --parents dir/sub/t* dir/./*.o /p/\n"
        "COPY --link over /link/over\nCOPY --link over /flink\n"
        "COPY <<'a' <<b /h/\n$PATH\na\n$A\\$x\nb\n"
        "COPY --chmod=u=rwX,go=rX dir /m\nCOPY --chmod=4711 over /s\n",
    )
    found = members(program)
    assert {name for name in found if name.startswith("e/")} == {
        "e/sub",
        "e/sub/two",
        "e/sub/keep.o",
    }
    assert {name for name in found if name.startswith("p/")} == {
        "p/dir", "p/dir/sub", "p/dir/sub/two", "p/one.o",
    }  # fmt: skip
    assert found["link"].isdir()
    assert found["flink"].isreg()
    assert "real/over" not in found
    assert (found["h/a"].size, found["h/b"].size) == (len("$PATH\n"), len("$x\n"))
    assert oct(found["m/sub"].mode) == "0o755"
    assert oct(found["m/sub/two"].mode) == "0o644"
    assert oct(found["s"].mode) == "0o4711"
