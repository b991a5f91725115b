"""Ordinary users of this machine, as whom the program is run.

They and what is theirs are gone when the process that asked for them ends, however it ends.
"""

import os
import pwd
import shutil
import subprocess  # useradd, setpriv and git are no part of the program
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from program import REPO, Done, Process, finish

# Whoever probes this machine enters namespaces with this process; ordinary users start outside.
_MOUNTS = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

_OWN = ("OBUILDER_", "PYTHON", "XDG_", "VIRTUAL_ENV", "PYTEST", "COV")


class Person(NamedTuple):
    """Who runs the program of `clone`, and where."""

    uid: int
    gid: int
    home: Path
    clone: Path
    one_id: bool = False

    def start(self, *argv: str | Path, cwd: Path | None = None, **variables: str) -> Process:
        """Start any program as this user, with nothing of root's but the machine's settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
        return subprocess.Popen(
            [
                "nsenter", f"--mount=/proc/self/fd/{_MOUNTS}", f"--wdns={cwd or self.home}", "--",
                "setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--",
                *argv,
            ],
            env={**kept, "HOME": str(self.home), "TMPDIR": str(self.home), **variables},
            pass_fds=[_MOUNTS],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )  # fmt: skip

    def run(self, *argv: str | Path, cwd: Path | None = None, **variables: str) -> Done:
        """Run any program as this user, to its end."""
        return finish(self.start(*argv, cwd=cwd, **variables))

    def start_obuilder(self, *arguments: str, cwd: Path | None = None) -> Process:
        """Start the program as this user, with the store that it chooses itself."""
        python = self.clone / ".venv/bin/python"
        source = str(self.clone / "src")
        return self.start(python, "-m", "obuilder", *arguments, cwd=cwd, PYTHONPATH=source)

    def obuilder(self, *arguments: str, cwd: Path | None = None) -> Done:
        """Run the program as this user, to its end."""
        return finish(self.start_obuilder(*arguments, cwd=cwd))

    def ok(self, *arguments: str, cwd: Path | None = None) -> str:
        """What the program printed; it must succeed."""
        done = self.obuilder(*arguments, cwd=cwd)
        assert done.status == 0, done
        return done.out


@contextmanager
def _until_gone(clean_up: str, *arguments: str) -> Iterator[None]:
    """Runs a line of shell at the end, be it that of the context or of this process.

    It is tried again until it works: what was started last may need a moment to be gone.
    """
    tries = f"for _ in 1 2 3 4 5 6 7 8 9 10; do {clean_up} && break; sleep 0.5; done"
    line = f"trap '' INT TERM HUP; read -r _; {{ {tries}; }} 2>/dev/null"
    with subprocess.Popen(
        ["sh", "-c", line, "sh", *arguments], stdin=subprocess.PIPE, start_new_session=True
    ):
        yield


@contextmanager
def place() -> Iterator[Path]:
    """A directory that everybody may pass, and that is removed with all that is in it."""
    path = tempfile.mkdtemp(prefix="obuilder-test-people.", dir="/var/tmp")
    with _until_gone('rm -rf "$1"', path):
        os.chmod(path, 0o755)
        yield Path(path)


@contextmanager
def with_subordinate_ids(place: Path) -> Iterator[Person]:
    """A user as `adduser` makes them: with subordinate ids, and a home that is closed to others."""
    name = f"obuilder-test-{os.getpid()}"
    home = place / name
    with _until_gone('{ pkill -KILL -U "$1"; userdel "$1"; }', name):
        subprocess.run(["useradd", "--create-home", "--home-dir", home, name], check=True)
        home.chmod(0o700)
        entry = pwd.getpwnam(name)
        yield Person(entry.pw_uid, entry.pw_gid, home, place / "clone")


@contextmanager
def gone_with(place: str) -> Iterator[None]:
    """For tests that kill builders: users of steps of the stores in `place` are gone at the end."""
    find = 'sed "s/.*/:obuilder-&-/" "$1"/*/sandbox-id | grep -F -f - /etc/passwd | cut -d: -f1'
    remove = f'for user in $({find}); do pkill -KILL -U "$user"; userdel "$user"; done'
    with _until_gone(f'{{ {remove}; [ -z "$({find})" ]; }}', place):
        yield


@contextmanager
def without_subordinate_ids(place: Path) -> Iterator[Person]:
    """A user whom no file of this machine knows."""
    known = {entry.pw_uid for entry in pwd.getpwall()}
    known.update(int(path.name) for path in place.iterdir() if path.name.isdigit())
    # Each process of tests has a range of its own: the end of one user is that of all their programs.
    first = 61184 + os.getpid() % 400 * 10
    uid = next(uid for uid in range(first, first + 10) if uid not in known)
    home = place / str(uid)
    home.mkdir(mode=0o700)
    os.chown(home, uid, uid)
    with _until_gone('! pkill -KILL -U "$1"', str(uid)):
        yield Person(uid, uid, home, place / "clone", one_id=True)
    shutil.rmtree(home)


def clone_for(person: Person) -> None:
    """A fresh clone of this repository, with what was changed in it but not committed yet."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", REPO, person.clone], check=True)
    changes = subprocess.run(
        ["git", "-C", REPO, "diff", "--binary", "HEAD"], capture_output=True, check=True
    ).stdout
    if changes:
        subprocess.run(["git", "-C", person.clone, "apply"], input=changes, check=True)
    for folder, _, names in os.walk(person.clone):
        for name in (".", *names):
            path = os.path.join(folder, name)
            os.chown(path, person.uid, person.gid, follow_symlinks=False)


def lend(source: str, target: Path) -> None:
    """Let a large file be read at another place."""
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
