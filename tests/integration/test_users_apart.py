"""Four users at once who do all they can to each other, and nothing comes of it (`hostile`)."""

import json
import os
import pwd
import shutil
import subprocess  # the attacks are a program, and nsenter is one
from collections.abc import Iterator
from typing import Any

import pytest

import hostile
from hostile import ATTACKS
from leftovers import leftovers
from obuilder.backends.sandboxes.accounts import listed, processes_of
from people import gone_with
from places import scratch
from program import Process, Program, finish, running, until

pytestmark = [
    pytest.mark.needs("root", "useradd", "overlay", "system-python"),
    pytest.mark.xdist_group("users"),
]

NAMES = ("0", "1", "2", "3")
PLACES = ("/home/builder", "/usr/local", "/run", "/tmp", "/var/tmp", "/dev/shm")
KEPT = ("/home/builder", "/usr/local", "/run")
MEET = "/home/builder/meet"
SPOOLS = (
    "cron",
    "cron/crontabs",
    "cron/atjobs",
    "cron/atspool",
    "at",
    "at/spool",
    "atjobs",
    "mail",
)


@pytest.fixture
def place() -> Iterator[str]:
    """A directory that a step would see if it were not kept from what is in it."""
    with scratch("/var/lib") as path:
        shutil.copy(hostile.__file__, path)
        shutil.copy("/usr/bin/id", f"{path}/root.id")
        os.chmod(f"{path}/root.id", 0o4755)
        yield path


def test_each_attack_works_where_nothing_is_kept_apart(place: str) -> None:
    """Same user, same namespaces: who is attacked by all below loses everything."""
    folder = os.path.join(place, "open")
    os.mkdir(folder)
    os.chmod(folder, 0o777)
    shutil.copy2(f"{place}/root.id", folder)
    os.chmod(f"{folder}/root.id", 0o4755)
    script = """
    mount -t tmpfs -o mode=755 spools /var/spool; mkdir -m 1777 /var/spool/cron
    exec setpriv --reuid=61000 --regid=61000 --clear-groups /usr/bin/python3 "$0"/../hostile.py alone "$0"
    """
    namespaces = ["--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        ["unshare", *namespaces, "sh", "-ec", script, folder],
        stdout=subprocess.PIPE, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout) == dict.fromkeys(ATTACKS, True)


class Victim:
    """The process in a step that the other steps attack, as root of the machine sees it."""

    def __init__(self, mark: str, name: str) -> None:
        (self.pid,) = running("victim", name, mark)
        self.meet = f"/proc/{self.pid}/root{MEET}"
        self.told: dict[str, Any] = json.loads(self.said(f"{name}.json"))
        self.uid: int = self.told["uid"]
        self.began = self._began()

    def _began(self) -> bytes:
        with open(f"/proc/{self.pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19]

    def said(self, name: str) -> str:
        """A file of where the victims meet."""
        with open(os.path.join(self.meet, name)) as file:
            return file.read()

    def say(self, name: str, text: str) -> None:
        """Leave a file there, as the step's own user: ids of others can't be written there."""
        write = 'cat > "$0.new" && mv "$0.new" "$0"'
        subprocess.run(
            ["nsenter", f"--target={self.pid}", "--mount", f"--setuid={self.uid}",
             f"--setgid={self.told['gid']}", "sh", "-c", write, f"{MEET}/{name}"],
            input=text, text=True, check=True,
        )  # fmt: skip

    def target(self, place: str, store: str) -> dict[str, Any]:
        """All that helps an attacker: numbers and paths as in the outermost namespaces."""
        others = [pid for pid in processes_of(self.uid) if pid != self.pid]
        outside = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(store)
            for name in names
            if name == f"of-{self.told['name']}"
        ]
        assert outside, "the files are somewhere"
        spools = [f"/var/spool/{name}" for name in ("", *SPOOLS)]
        return self.told | {
            "pids": [self.pid, *others],
            "files": self.told["files"] + outside,
            "user": pwd.getpwuid(self.uid).pw_name,
            "root_suid": f"{place}/root.id",
            "spools": [spool for spool in spools if os.path.isdir(spool)],
        }

    def assert_whole(self) -> None:
        """It lives as it did, and has what it had."""
        assert self._began() == self.began
        assert self.pid in processes_of(self.uid), "and is no zombie"
        for path in self.told["files"]:
            with open(f"/proc/{self.pid}/root{path}") as file:
                assert file.read() == self.told["token"], path
        assert os.getpriority(os.PRIO_PROCESS, self.pid) == 0


@pytest.fixture
def crowd(place: str) -> Iterator[tuple[Program, str, Process]]:
    """A build with four victims who attack each other, once they are told whom; and their mark."""
    builder, mark = Program(place), str(os.getpid())
    builder.variables["OBUILDER_SANDBOX"] = "users"
    shutil.copy(hostile.__file__, builder.context)
    cache = f"(cache (meet (target {MEET}) (mode shared)))"
    script = f"/usr/bin/python3 /home/builder/hostile.py step {{}} {mark} {MEET} {' '.join(PLACES)}"
    stages = "".join(
        f"""(build s{name} ((from scratch)
          (copy (src hostile.py) (dst /home/builder/hostile.py))
          (run {cache} (shell "{script.format(name)}"))
          (run (shell "cat {" ".join(f"{place}/of-{name}" for place in KEPT)}; ls /tmp"))))
        """
        for name in NAMES
    )
    copies = [
        f"(copy (from (build s{name})) (src /usr/local/of-{name}) (dst /usr/local/of-{name}))"
        for name in NAMES
    ]
    builder.spec(*copies, '(run (shell "cat /usr/local/of-*"))', before=stages, base="scratch")
    os.makedirs(builder.store)
    os.chmod(builder.store, 0o755)  # as other sandboxes need it
    with gone_with(place):
        process = builder.start("build", "--parallel=4", "--timeout=90")
        try:
            yield builder, mark, process
        finally:
            process.terminate()
            process.communicate()


def met(mark: str) -> bool:
    """Whether all four are there, and have told of themselves."""
    pids = [pid for name in NAMES for pid in running("victim", name, mark)]
    return len(pids) == len(NAMES) and all(
        os.path.exists(f"/proc/{pids[0]}/root{MEET}/{name}.json") for name in NAMES
    )


def test_four_at_once_can_do_nothing_to_each_other(
    place: str, crowd: tuple[Program, str, Process]
) -> None:
    builder, mark, process = crowd
    until(lambda: met(mark) or process.poll() is not None, "all are there", seconds=30)
    victims = [Victim(mark, name) for name in NAMES]
    first, *others = victims
    names = {pwd.getpwuid(victim.uid).pw_name for victim in victims}
    assert len(names) == len(NAMES)
    assert names <= {account.name for account in listed()}

    targets = [victim.target(place, builder.store) for victim in victims]
    first.say("targets", json.dumps(targets))
    done = [f"{first.meet}/{name}.attacked" for name in NAMES]
    until(lambda: all(map(os.path.exists, done)), "all have attacked", seconds=60)
    for name in NAMES:
        reached = json.loads(first.said(f"{name}.attacked"))
        nothing = dict.fromkeys(ATTACKS, False)
        assert reached == {other: nothing for other in NAMES if other != name}, name
    for victim in victims:
        victim.assert_whole()

    first.say("rage", "")  # it ends everything it can, its own victim too
    until(lambda: os.path.exists(f"{others[0].meet}/0.raged"), "one has ended all it can")
    assert not running("victim", "0", mark)
    for victim in others:
        victim.assert_whole()

    others[0].say("leave", "")
    ended = finish(process)
    assert ended.status == 0, ended
    lines = ended.out.splitlines()
    for victim in victims:
        name = victim.told["name"]
        assert f"{name}: survives" in lines, ended
        assert f"of-{name}" not in lines, "what was in /tmp went with the step"
        # What it keeps: in its home, prefix and /run; and in the stage that copies from it.
        assert ended.out.count(victim.told["token"]) == len(KEPT) + 1, ended
    assert not any(
        os.path.exists(f"{spool}/{target['user']}")
        for target in targets
        for spool in target["spools"]
    )
    assert leftovers(builder.store, builder.temporary) == []
