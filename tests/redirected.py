"""A running redirect, and programs run by users who see their own files through it."""

import os
import subprocess  # the redirect is a program, and so are its users' tools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from program import REPO


class Redirected:
    """A mount at `path`; each user's own directory is `own(user)`.

    With `path` that is a directory of the machine: in a mount namespace where its users are too.
    """

    def __init__(self, place: str, path: str = "") -> None:
        self._place = place
        self._apart = bool(path)
        self.path = path or os.path.join(place, "local")
        self.links = os.path.join(place, "links")
        for folder in (self.links,) if path else (self.path, self.links):
            os.mkdir(folder)
            os.chmod(folder, 0o755)
        if not path:
            with open(os.path.join(self.path, "machine"), "w", encoding="ascii") as file:
                file.write("the machine's\n")
        self._server: subprocess.Popen[bytes] | None = None

    def own(self, user: int) -> str:
        """A user's directory, made and linked if it is not there."""
        path = os.path.join(self._place, f"of-{user}")
        if not os.path.exists(path):
            os.mkdir(path)
            os.chown(path, user, user)
            os.symlink(path, os.path.join(self.links, str(user)))
        return path

    def start(self) -> subprocess.Popen[bytes]:
        """Mount it."""
        search = os.pathsep.join([str(REPO / "src"), *filter(None, sys.path)])
        apart = ["unshare", "--mount", "--"] if self._apart else []
        self._server = subprocess.Popen(
            [*apart, sys.executable, "-m", "obuilder.redirect", self.links, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": search},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"mounted\n"
        return self._server

    def stop(self) -> None:
        """Unmount it, as the end of whoever started it does."""
        if self._server is not None:
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            self._server.stdin.close()
            self._server.stdout.close()
            try:
                assert self._server.wait(10) == 0
            finally:
                self._server.kill()  # else whoever waits for it does so for ever
                self._server.wait()
                self._server = None

    def open_files(self) -> int:
        """How many files the server has open."""
        assert self._server is not None
        return len(os.listdir(f"/proc/{self._server.pid}/fd"))

    def start_as(
        self, user: int, script: str, *, cwd: str | None = None, groups: str = ""
    ) -> subprocess.Popen[str]:
        """Start a shell's script as a user, with the mount as $PREFIX, and in more groups."""
        rights = [f"--reuid={user}", f"--regid={user}"]
        rights.append(f"--groups={groups}" if groups else "--clear-groups")
        words = ["setpriv", *rights, "bash", "-c", script]
        if self._apart:
            assert self._server is not None
            words = ["nsenter", f"--target={self._server.pid}", "--mount", "--", *words]
        return subprocess.Popen(
            words,
            cwd=cwd or ("/" if self._apart else self.path),
            env={
                "PATH": f"{self.path}/bin:/usr/bin:/bin",
                "PREFIX": self.path,
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run_as(self, user: int, script: str, *, cwd: str | None = None, groups: str = "") -> str:
        """What a script said; it must succeed."""
        process = self.start_as(user, script, cwd=cwd, groups=groups)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return said


@contextmanager
def redirected(place: str, path: str = "") -> Iterator[Redirected]:
    """A redirect, mounted for as long as the context lasts; see `Redirected`."""
    found = Redirected(place, path)
    found.start()
    try:
        yield found
    finally:
        found.stop()
