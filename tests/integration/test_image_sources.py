"""Base images from every local source, through the program: imported, built on, shared, removed."""

import json
import os
import re
import select
import signal
import socket
import subprocess  # the program under test is a process
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import anyio
import msgspec
import pytest

import engines
import images
from obuilder.backends.fetchers import fetcher_for
from obuilder.backends.protocols import HostDir
from obuilder.engine.inputs import drive
from obuilder.errors import Denied, NotFound, Unreachable
from obuilder.oci.platforms import host_platform
from obuilder.values import IdMap

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.needs("root", "overlay", "umoci", "skopeo")


def resolve(name):
    return drive(fetcher_for(name).resolve(name, host_platform()))


def fetch(base, index, root):
    async def run():
        fetcher = fetcher_for(base.name)
        try:
            await fetcher.fetch(
                base, index, into=HostDir(str(root)), idmap=IdMap(1000, 65536), output=print
            )
        finally:
            await fetcher.close()

    anyio.run(run)


class Program:
    """The program on a store of its own."""

    def __init__(self, path):
        self.path, self.store = path, f"{path}/store"
        self.env = {
            **os.environ, "OBUILDER_STORE": f"overlayfs:{self.store}", "PYTHONPATH": f"{ROOT}/src",
        }  # fmt: skip

    def run(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "obuilder", *arguments], env=self.env, cwd=self.path,
            stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def ok(self, *arguments):
        status, out, err = self.run(*arguments)
        assert status == 0, out + err
        return out

    def build(self, base, command="cat /made; stat -c %u:%g /made; echo $A; ls /"):
        with open(f"{self.path}/obuilder.spec", "w") as file:
            file.write(f'((from {base}) (shell /bin/sh -c) (run (shell "{command}")))')
        return self.ok("build", self.path)

    def layers(self):
        """The keys of the layers in the store."""
        return {row["key"] for row in json.loads(self.ok("ls", "--json")) if row["kind"] == "layer"}


@pytest.fixture
def program():
    # Not pytest's own folder: steps run under ids that are nobody here, and nobody may enter it.
    with tempfile.TemporaryDirectory(prefix="obuilder-images-") as path:
        os.chmod(path, 0o755)
        yield Program(path)


@pytest.fixture
def engine(docker_engine, layout):
    for tag in ("one", "two"):
        images.skopeo(
            f"oci:{layout}:{tag}", f"docker-daemon:test-{tag}:1",
            "--dest-daemon-host", docker_engine.host,
        )  # fmt: skip
    return docker_engine


def import_and_build(program, source):
    said = program.ok("image", "import", "my:base", source)
    assert said.startswith("my:base: sha256:")
    assert f"from {source}" in program.ok("image", "ls")
    out = program.build("my:base")
    assert "made5:6\nb=c\nabsolute\nbin\n" in out
    assert "gone" not in out
    assert "saved as" not in program.build("my:base")
    program.ok("image", "rm", "my:base")
    assert program.ok("image", "ls") == ""
    assert program.run("image", "rm", "my:base")[0] == 2
    status, _, err = program.run("build", "--pull=never", program.path)
    assert status == 5
    assert "never asked what my:base stands for" in err


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive", "docker-archive of 25"])
def test_an_image_of_another_tool_can_be_imported_and_built_on(program, layout, kind):
    path, tag = f"{program.path}/image", ":app:one" if kind == "docker-archive" else ":one"
    if kind == "docker-archive of 25":
        kind = "docker-archive"
        images.save_as_docker_25(layout, ["two", "one"], path)
    else:
        images.skopeo(f"oci:{layout}:one", f"{kind}:{path}{tag}")
    import_and_build(program, f"{kind}:{path}{tag}")


@pytest.mark.parametrize("source", ["scratch", "micro", "rootfs:ROOT", "tar:ROOT.tar"])
def test_a_root_can_be_imported_and_built_on(program, source):
    root = f"{program.path}/root"
    os.makedirs(f"{root}/etc")
    images.run("tar", "cf", f"{root}.tar", "-C", root, ".")
    program.ok("image", "import", "mine", source.replace("ROOT", root))
    assert program.ok("image", "ls").startswith("mine  sha256:")
    with open(f"{program.path}/obuilder.spec", "w") as file:
        file.write("((from mine) (copy (src obuilder.spec) (dst /etc/)))")
    assert "saved as" in program.ok("build", program.path)
    program.ok("image", "rm", "mine")


def test_paths_of_any_bytes(program, layout):
    path = f"{program.path}/" + os.fsdecode(b"odd:\xff\n\xc3\xa9.tar")
    images.save_as_docker_25(layout, ["one", "two"], path)
    program.ok("image", "import", "odd", f"docker-archive:{path}:one")
    assert "made" in program.build("odd")
    program.ok("clean")
    assert "made" in program.build("odd")
    program.ok("image", "rm", "odd")


def test_images_share_layers_whatever_they_come_from(program, layout):
    images.save_as_docker_25(layout, ["one", "two"], f"{program.path}/both.tar")
    images.skopeo(f"oci:{layout}:two", f"oci-archive:{program.path}/two.tar:two")
    program.ok("image", "import", "first", f"docker-archive:{program.path}/both.tar:one")
    assert len(program.layers()) == 2
    program.ok("image", "import", "second", f"oci-archive:{program.path}/two.tar")
    assert len(program.layers()) == 3
    for number, source in enumerate(
        [f"oci:{layout}:one", f"oci:{layout}:two", f"docker-archive:{program.path}/both.tar:two"]
    ):
        program.ok("image", "import", f"more{number}", source)
    assert len(program.layers()) == 3
    assert len(os.listdir(f"{program.store}/layers")) == 3
    program.ok("image", "rm", "first")
    program.ok("clean")
    assert len(program.layers()) == 3
    program.ok("image", "rm", "more0")
    program.ok("clean")
    assert len(program.layers()) == 2


class Relay(threading.Thread):
    """Stands between the program and an engine: what was asked for, and answers that break off."""

    def __init__(self, path, engine):
        super().__init__(daemon=True)
        self.host, self.asked = f"unix://{path}", []
        self.most, self.stall = 1 << 40, False
        self._engine = engine
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self._listener.shutdown(socket.SHUT_RDWR)
        self.join(10)
        self._listener.close()

    def run(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as server, suppress(ConnectionError):
                server.connect(self._engine)
                request = client.recv(1 << 16)
                self.asked.append(request.split()[1].decode())
                server.sendall(request)
                self._answer(client, server)

    def _answer(self, client, server):
        """Pass on what comes, at most `most` bytes of it; then end, or wait for the client to."""
        left = self.most
        while left or self.stall:
            ready, _, _ = select.select([client] if left == 0 else [client, server], [], [], 30)
            if client in ready or not ready:
                return
            data = server.recv(min(left, 1 << 16))
            client.sendall(data)
            left -= len(data)
            if not data:
                return


@pytest.fixture
def relay(engine, program):
    with Relay(f"{program.path}/relay.sock", engine.socket) as relay:
        program.env["DOCKER_HOST"] = relay.host
        yield relay


@pytest.mark.needs("docker")
@pytest.mark.xdist_group("docker")
class TestDocker:
    """Images of a real engine."""

    def test_an_image_can_be_imported_and_built_on(self, program, engine):
        program.env["DOCKER_HOST"] = engine.host
        import_and_build(program, "docker-daemon:test-one:1")

    def test_its_layers_are_those_of_the_archive_it_saves(self, program, engine, layout):
        program.env["DOCKER_HOST"] = engine.host
        with open(f"{program.path}/saved.tar", "wb") as file:
            file.write(engine.get("/images/test-one:1/get"))
        program.ok(
            "image", "import", "saved", f"docker-archive:{program.path}/saved.tar:test-one:1"
        )
        program.ok("image", "import", "asked", "docker-daemon:test-one:1")
        program.ok("image", "import", "layout", f"oci:{layout}:one")
        assert len(program.layers()) == 2
        found = json.loads(engine.get("/images/test-one:1/json"))["Id"]
        assert f"asked  {found}  " in program.ok("image", "ls")

    def test_it_takes_what_tests_call_an_archive_of_25(self, program, engine, layout):
        images.save_as_docker_25(layout, ["two"], f"{program.path}/new.tar")
        images.skopeo(
            f"docker-archive:{program.path}/new.tar:two:latest", "docker-daemon:from-25:1",
            "--dest-daemon-host", engine.host,
        )  # fmt: skip
        assert engine.get("/images/from-25:1/json")

    def test_one_export_for_all_layers_and_none_when_cached(self, program, relay):
        program.build("docker-daemon:test-one:1")
        (asked, got) = relay.asked
        assert asked == "/images/test-one:1/json"
        assert re.fullmatch("/images/sha256:[0-9a-f]{64}/get", got)
        assert "saved as" not in program.build("docker-daemon:test-one:1")
        assert relay.asked == [asked, got, asked]
        assert os.listdir(f"{program.store}/drafts") == []

    def test_a_name_given_to_another_image_is_another_base(self, program, engine, layout):
        program.env["DOCKER_HOST"] = engine.host
        for tag, what in (("one", "made"), ("two", "other")):
            images.skopeo(
                f"oci:{layout}:{tag}", "docker-daemon:moving:1",
                "--dest-daemon-host", engine.host,
            )  # fmt: skip
            assert f"{what}\n" in program.build("docker-daemon:moving:1", f"cat /{what}; echo")

    @pytest.mark.parametrize("most", [0, 50, 2_000, 300_000])
    def test_an_answer_that_breaks_off(self, program, relay, most):
        program.build("docker-daemon:test-two:1", "true")
        relay.most = most
        status, _, err = program.run("image", "import", "x", "docker-daemon:test-one:1")
        assert status == 5
        assert "broke off" in err
        assert os.listdir(f"{program.store}/drafts") == []
        relay.most = 1 << 40
        program.ok("image", "import", "x", "docker-daemon:test-one:1")

    def test_nowhere_to_keep_the_export(self, program, engine):
        program.env |= {"DOCKER_HOST": engine.host, "TMPDIR": "/nonexistent"}
        status, _, err = program.run("image", "import", "x", "docker-daemon:test-one:1")
        assert status == 4
        assert "/nonexistent" in err
        assert "TMPDIR" in err

    def test_an_engine_that_stalls_can_be_left(self, program, relay):
        program.build("micro", "true")
        relay.most, relay.stall = 200_000, True
        process = subprocess.Popen(
            [sys.executable, "-m", "obuilder", "image", "import", "x", "docker-daemon:test-one:1"],
            env=program.env, cwd=program.path, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while len(relay.asked) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130, errors
        assert b"Traceback" not in errors
        assert time.monotonic() - sent < 2

    def test_an_image_the_engine_lacks(self, program, engine):
        program.env["DOCKER_HOST"] = engine.host
        status, _, err = program.run("image", "import", "x", "docker-daemon:no/such:1")
        assert status == 5
        assert "no such image" in err.lower()
        assert "docker pull no/such:1" in err

    def test_an_image_that_went_meanwhile(self, engine, monkeypatch, tmp_path):
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        base = resolve("docker-daemon:test-one:1")
        gone = msgspec.structs.replace(base, digest="sha256:" + "0" * 64)
        with pytest.raises(NotFound):
            fetch(gone, 0, tmp_path)
        wrong = msgspec.structs.replace(base.layers[0], digest="sha256:" + "0" * 64)
        with pytest.raises(NotFound, match="lacks the image"):
            fetch(msgspec.structs.replace(base, layers=(wrong,)), 0, tmp_path)

    def test_who_may_not_use_it(self, engine, monkeypatch):
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        pid = os.fork()
        if pid == 0:
            status = 1
            with suppress(BaseException):
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                try:
                    resolve("docker-daemon:test-one:1")
                except Denied as error:
                    status = 0 if "group" in error.hint else 2
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize(
    ("host", "error"),
    [
        ("unix:///nonexistent/x.sock", "no Docker engine at /nonexistent/x.sock"),
        ("tcp://127.0.0.1:1", "only an engine at a Unix socket"),
    ],
)
def test_no_engine(host, error, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(Unreachable, match=error) as caught:
        resolve("docker-daemon:debian")
    assert "unix:///PATH" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["", "../containers/json", "a/../b", "a?b", "a b", "/a", "a//b", "\n"]
)
def test_names_no_image_has(name):
    with pytest.raises(NotFound, match="no name of an image"):
        resolve(f"docker-daemon:{name}")


_VICTIM = """
import sys, time
import engines
with engines.started(sys.argv[1]) as engine:
    print(engine.directory, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.needs(kind)) for kind in ("docker", "podman")]
)
def test_an_engine_ends_with_the_tests_however_they_end(kind):
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}/tests"}
    argv = [sys.executable, "-c", _VICTIM, kind]
    victim = subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE)
    directory = victim.stdout.readline().decode().strip()
    engine = engines.Engine(directory)
    assert engine.get("/_ping") == b"OK"
    engines.sweep()
    assert engine.get("/_ping") == b"OK"
    victim.kill()
    victim.communicate()
    deadline = time.monotonic() + 10
    while True:
        try:
            engine.get("/_ping")
        except Unreachable:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    engines.sweep()
    assert not os.path.exists(directory)
