"""What Dockerfiles that judges build as well meet: a base, a context, files and a repository that are
served, a secret, an agent.
"""

import functools
import http.server
import os
import socket
import subprocess  # git is no part of the program
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dockerfile_cases import Case

_BUSYBOX = ("sh", "cat", "ls", "id", "stat", "mkdir", "chmod", "chown", "ln", "rm", "touch", "env",
            "grep", "sort", "pwd", "echo", "test", "true", "false", "sed", "tr", "find", "head")  # fmt: skip
DERIVED = {
    "told": 'FROM base\nUSER app\nWORKDIR /tmp/w\nENV FROM_BASE=told\nCMD ["x"]\n',
    "trigger": "FROM base\nONBUILD COPY a.txt /on\nONBUILD ENV SET=by\nONBUILD RUN echo $SET >> /on\n",
}
"""Images beside `base`."""


def make_root(place: str) -> None:
    """A root with a shell, users, directories and links to copy over."""
    for name in ("bin", "etc", "tmp", "there", "dev", "proc", "sys"):
        os.makedirs(f"{place}/{name}")
    os.chmod(f"{place}/tmp", 0o1777)
    os.chmod(f"{place}/there", 0o750)
    with open("/usr/bin/busybox", "rb") as file, open(f"{place}/bin/busybox", "wb") as made:
        made.write(file.read())
    os.chmod(f"{place}/bin/busybox", 0o755)
    for name in _BUSYBOX:
        os.symlink("busybox", f"{place}/bin/{name}")
    texts = {
        "passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\ntwelve:x:12:13::/:\n",
        "group": "root:x:0:\napp:x:1001:\nteam:x:77:app,twelve\nmore:x:78:app\n",
    }
    for name, text in texts.items():
        Path(place, "etc", name).write_text(text)
        os.chmod(f"{place}/etc/{name}", 0o644)
    Path(place, "file").write_text("file\n")
    os.symlink("there", f"{place}/to-there")
    os.symlink("/file", f"{place}/to-file")


def make_context(place: str) -> None:
    """Files of every kind that a COPY can meet."""
    for name in ("dir/sub/deep", "dir/other", "up/down", "empty", "kept/out", "weird [x]"):
        os.makedirs(f"{place}/{name}")
    files = {
        "a.txt": 0o644, "b.txt": 0o600, "run.sh": 0o755, "dir/one": 0o640, "dir/sub/two": 0o4755,
        "dir/sub/deep/three": 0o444, "dir/other/four": 0o666, "up/five": 0o644, "c.md": 0o644,
        "up/down/six": 0o644, "kept/in": 0o644, "kept/out/no": 0o644, "kept/out/yes": 0o644,
        "weird [x]/f": 0o644, "hidden.log": 0o644,
    }  # fmt: skip
    for name, mode in files.items():
        with open(f"{place}/{name}", "w") as file:
            file.write(f"this is {name}\n")
        os.chmod(f"{place}/{name}", mode)
        os.utime(f"{place}/{name}", (1e9, 1e9))
    os.chmod(f"{place}/dir/sub", 0o2770)
    os.chmod(f"{place}/up", 0o711)
    os.symlink("a.txt", f"{place}/link")
    os.symlink("dir", f"{place}/dirlink")
    os.symlink("nowhere", f"{place}/dir/dangling")
    os.symlink("../a.txt", f"{place}/dir/back")
    os.symlink("/up", f"{place}/absolute")
    os.link(f"{place}/dir/one", f"{place}/dir/same")
    with open(f"{place}/.dockerignore", "w") as file:
        file.write("*.log\nkept/out\n!kept/out/yes\nDockerfile*\n.dockerignore\n")
    for suffix, mode in (
        (".tar", "w"),
        (".tar.gz", "w:gz"),
        (".tar.bz2", "w:bz2"),
        (".txz", "w:xz"),
    ):
        with tarfile.open(f"{place}/archive{suffix}", mode) as tar:
            for name in ("dir/sub", "up/five", "a.txt"):
                tar.add(f"{place}/{name}", arcname=f"in/{os.path.basename(name)}", filter=_owned)


def _owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid, info.gid, info.uname, info.gname = 7, 8, "", ""
    return info


class World(NamedTuple):
    """Where all of it is."""

    place: str
    web: str
    repository: str

    @property
    def context(self) -> str:
        """The directory that files are copied from."""
        return f"{self.place}/context"

    @property
    def secret(self) -> str:
        """A file with a secret."""
        return f"{self.place}/token"

    @property
    def agent(self) -> str:
        """A socket, as that of an agent of keys."""
        return f"{self.place}/agent"

    def written(self, name: str, case: Case) -> str:
        """The path of a case's Dockerfile."""
        file = f"{self.place}/{name}.Dockerfile"
        text = case.text.replace("//WEB/", f"//{self.web}/").replace(
            "//GIT/", f"//{self.repository}/"
        )
        Path(file).write_bytes(text.encode())
        if case.ignore:
            Path(f"{file}.dockerignore").write_text(case.ignore)
        return file


@contextmanager
def world(place: str) -> Iterator[World]:
    """All of it in an empty directory, served until the context ends."""
    for name in ("context", "root", "web", "git"):
        os.mkdir(f"{place}/{name}")
    make_context(f"{place}/context")
    make_root(f"{place}/root")
    Path(place, "token").write_text("a secret\n")
    for name in ("one", "two"):
        Path(place, "web", name).write_text(f"{name}\n")
    with tarfile.open(f"{place}/web/a.tgz", "w:gz") as tar:
        tar.add(f"{place}/context/dir/sub", arcname="in", filter=_owned)
    handler = functools.partial(_Quiet, directory=f"{place}/web")
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        socket.socket(socket.AF_UNIX) as agent,
        _repository(f"{place}/git") as repository,
    ):
        agent.bind(f"{place}/agent")
        agent.listen()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield World(place, f"127.0.0.1:{server.server_port}", repository)
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def _repository(place: str) -> Iterator[str]:
    """A repository `repo` with a branch and a tag, and where it is served."""
    repo = Path(place, "repo")

    def git(*words: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", "-C", str(repo), *identity, *words], check=True, capture_output=True)

    (repo / "sub/deep").mkdir(parents=True)
    git("init", "-q", "-b", "main")
    for name, mode in (("sub/f", 0o644), ("sub/deep/run", 0o755), ("top", 0o600)):
        (repo / name).write_text(f"{name}\n")
        (repo / name).chmod(mode)
    (repo / "sub/link").symlink_to("f")
    git("add", ".")
    git("commit", "-qm", "one")
    git("tag", "v1")
    (repo / "sub/f").write_text("two\n")
    git("commit", "-qam", "two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "git", "daemon", "--listen=127.0.0.1", f"--port={port}",
         f"--base-path={place}", "--export-all", place],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(200):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
