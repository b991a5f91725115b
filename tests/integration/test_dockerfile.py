"""A Dockerfile made from a spec, built by Docker, comes to what the spec comes to."""

import http.client
import os
import socket
import tarfile

import pytest

from program import Program, shell

pytestmark = [pytest.mark.needs("overlay", "crun", "docker"), pytest.mark.xdist_group("docker")]

HARD = (
    '(env A "a \\"b\\" $HOME \\\\c`")',
    shell("mkdir -m 777 /out; printf '%s\\n' \"$A\" > /out/env"),
    '(workdir "/a b/$x\\"")',
    shell("pwd > /out/pwd"),
    shell("[ -d /out ] && echo yes > /out/test"),
    shell("# nothing\necho of two lines > /out/lines\n\n# and a comment\necho two >> /out/lines"),
    shell("echo one \\\n  line \\\n  of three > /out/joined"),
    shell("echo 'a \\\n  b' > /out/quoted"),
    shell("cat > /out/here <<END\n$A ${A#a}\nEND"),
    shell("printf 'tab\there \\\\ $A\\n' > /out/tab; echo \\"),
    '(copy (src "a[1]*" "$b" "x y") (dst "/out/to here/"))',
    '(copy (src "<<END") (dst /out/--chown=7))',
    "(copy (from (build base)) (src /made) (dst /out/from))",
    '(shell /bin/sh "-ec" "umask 0; echo \\"$0\\" >> /out/shell; eval \\"$0\\"")',
    shell("true '\\n' \"$HOME\""),
    "(user (uid 7) (gid 8))",
    shell("id -u > /out/user; id -g >> /out/user"),
)
FILES = ("a[1]*", "a1x", "$b", "x y", "<<END")


def contents(folder: str) -> dict[str, bytes]:
    found = {}
    for place, _, names in os.walk(f"{folder}/out"):
        for name in names:
            with open(f"{place}/{name}", "rb") as file:
                found[os.path.relpath(f"{place}/{name}", folder)] = file.read()
    return found


class Engine(http.client.HTTPConnection):
    """A connection to an engine, for what its program would do."""

    def __init__(self, path: str) -> None:
        super().__init__("engine")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)

    def send_tar(self, request: str, tar: bytes) -> None:
        self.request("POST", request, tar, {"Content-Type": "application/x-tar"})
        said = self.getresponse().read()
        self.close()
        assert b'"error"' not in said, said.decode()


def test_docker_comes_to_the_same(program: Program, docker_engine, tmp_path) -> None:
    program.variables["DOCKER_HOST"] = docker_engine.host
    engine = Engine(docker_engine.socket)
    program.spec()
    program.ok("build", "-o", f"tar:{tmp_path}/base.tar")
    engine.send_tar(
        "/images/create?fromSrc=-&repo=base&tag=1", (tmp_path / "base.tar").read_bytes()
    )
    program.ok("image", "import", "base:1", "docker-daemon:base:1")
    for name in FILES:
        program.file(name, name.encode())
    # A stage of the image's name.
    made = "((from base:1) (shell /bin/sh -c) (run (shell 'echo one > /made')))".replace("'", '"')
    program.spec(*HARD, before=f"(build base {made})", base="base:1")
    program.ok("build", "-o", str(tmp_path / "ours"))

    program.file("Dockerfile", program.ok("dockerfile").encode())
    with tarfile.open(tmp_path / "context.tar", "w") as tar:
        tar.add(program.context, ".")
    engine.send_tar("/build?t=theirs", (tmp_path / "context.tar").read_bytes())
    program.spec(base="docker-daemon:theirs")
    program.ok("build", "-o", str(tmp_path / "theirs"))

    ours = contents(f"{tmp_path}/ours")
    assert ours == contents(f"{tmp_path}/theirs")
    assert ours["out/here"] == b'a "b" $HOME \\c`  "b" $HOME \\c`\n'
    assert len(ours) == 15
