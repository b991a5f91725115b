"""Repositories of git of the tests' own, served by git's own daemon on the loopback."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Served:
    """Repositories below a directory, served by git's own daemon."""

    def __init__(self, directory: str, port: int) -> None:
        self.directory, self._port = directory, port

    def url(self, name: str) -> str:
        return f"git://127.0.0.1:{self._port}/{name}"

    def git(self, name: str, *words: str) -> str:
        place = os.path.join(self.directory, name)
        os.makedirs(place, exist_ok=True)
        env = {
            **os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
        }  # fmt: skip
        options = ("-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main")
        done = subprocess.run(
            ["git", "-C", place, *options, *words], env=env, capture_output=True, check=True
        )
        return done.stdout.decode().strip()

    def commit(self, name: str, **files: str) -> str:
        """Commit files; the commit's id."""
        if not os.path.isdir(os.path.join(self.directory, name, ".git")):
            self.git(name, "init", "-q")
        for path, text in files.items():
            with open(os.path.join(self.directory, name, path), "w") as file:
                file.write(text)
        self.git(name, "add", "-A")
        self.git(name, "commit", "-q", "-m", "a commit")
        return self.git(name, "rev-parse", "HEAD")


@contextmanager
def serving(directory: str) -> Iterator[Served]:
    """Serve what is below a directory."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    core = subprocess.run(["git", "--exec-path"], capture_output=True, check=True).stdout.decode()
    daemon = subprocess.Popen(
        [f"{core.strip()}/git-daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}",
         "--export-all", f"--base-path={directory}", directory],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < until
            time.sleep(0.02)
        yield Served(directory, port)
    finally:
        daemon.terminate()
        daemon.wait()
