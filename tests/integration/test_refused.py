"""What a sandbox without images or isolation can't give a step is refused before the first one."""

import json
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from obuilder import Builder, parse
from obuilder.backends.registry import opened
from obuilder.backends.sandboxes.accounts import listed
from obuilder.backends.sandboxes.users_redirected import RedirectedUsers
from obuilder.errors import Unsupported
from obuilder.oci.platforms import host_platform
from obuilder.values import Policy
from people import gone_with
from places import scratch
from program import Program, shell
from setpriv_system import SetprivSystem

pytestmark = [pytest.mark.needs("root", "overlay"), pytest.mark.xdist_group("users")]

USERS = "all steps are of one user here"
NAMED = "this sandbox takes users by number, not by a name as 'them'"
BYTES = r"this sandbox takes UTF-8 only, which 'echo \xff' is not"
ODD = os.fsdecode(b"\xff")

ANYWHERE = [
    ('(run (network other) (shell "true"))', "this sandbox has no network called 'other'"),
    ('(run (network host other) (shell "true"))', "this sandbox has no network called 'other'"),
    (f'(run (shell "echo {ODD}"))', BYTES),
    ('(run (insecure) (shell "true"))', "which nobody has allowed"),
]
"""Ops that no step may have, and what is said of them."""

OF_USERS = [
    *ANYWHERE,
    ('(user (name them))\n(run (shell "true"))', NAMED),
    ('(user (uid 1000) (gid 1000))\n(run (shell "true"))', USERS),
    ("(user (uid 1000) (gid 1000))\n(copy (src x) (dst ./))", USERS),
    ("(user (name them))\n(copy (src x) (dst ./))", NAMED),
    ("(copy (src x) (dst /src/))", "this sandbox can't copy to /src"),
    ("(copy (src x) (dst /home/builder/../other))", "this sandbox can't copy to /home/other"),
    ('(workdir /src)\n(run (shell "true"))', "this sandbox can't start in /src"),
    ('(run (cache (c (target /var/cache))) (shell "true"))', "can't mount on /var/cache"),
    ('(run (secrets (s (target /etc/s))) (shell "true"))', "can't mount on /etc/s"),
    ('(run (secrets (s (target /run/s) (owner (uid 5) (gid 5)))) (shell "true"))', USERS),
    ('(run (tmpfs (/run/t)) (shell "true"))', "can't show builds, memory or agents"),
    ("(add (src x) (dst /src/))", "this sandbox can't copy to /src"),
    ("(add (src x) (dst /run/) (owner (uid 5) (gid 5)))", USERS),
    ("(mkdir /src)", "this sandbox can't make /src"),
]

OF_HOST = [
    *ANYWHERE,
    ('(user (uid 70000) (gid 1))\n(run (shell "true"))', "there is no id 70000"),
    ("(user (uid 1) (gid 70000))\n(copy (src x) (dst ./))", "there is no id 70000"),
]

OF_REDIRECTED = [
    ('(run (shell "true"))', "this sandbox can't keep a step off the network"),
    ('(run (network host) (secrets (s)) (shell "true"))', "can't mount on /run/secrets/s"),
    (
        '(run (network host) (secrets (s (target HOME/s))) (shell "true"))',
        "this sandbox can't show secrets to a step",
    ),
    (
        '(run (network host) (cache (c (target HOME/c) (mode read-only))) (shell "true"))',
        "this sandbox can't keep a step from writing to a cache it sees",
    ),
    *(
        (f'(run (network host) (limits ({name})) (shell "true"))', f"can't limit {name.split()[0]}")
        for name in ("memory 64M", "cpus 1", "pids 9")
    ),
    ('(user (uid 1000) (gid 1000))\n(run (network host) (shell "true"))', USERS),
    ('(user (name them))\n(run (network host) (shell "true"))', NAMED),
    ('(run (network host other) (shell "true"))', "this sandbox has no network called 'other'"),
]


class Witnessed(Program):
    """The program where each call of useradd is noted before it is carried out."""

    def __init__(self, place: str, sandbox: str) -> None:
        super().__init__(place)
        self._noted = os.path.join(place, "noted")
        tools = os.path.join(place, "tools")
        os.mkdir(tools)
        with open(f"{tools}/useradd", "w") as file:
            file.write(f'#!/bin/sh\necho "$@" >> {self._noted}\nexec /usr/sbin/useradd "$@"\n')
        os.chmod(f"{tools}/useradd", 0o755)
        self.variables |= {"OBUILDER_SANDBOX": sandbox, "PATH": f"{tools}:{os.environ['PATH']}"}
        for name in ("x", "secret"):
            self.file(name, b"s")

    @property
    def users(self) -> int:
        """How many users were made."""
        if not os.path.exists(self._noted):
            return 0
        with open(self._noted) as file:
            return len(file.readlines())


@pytest.fixture
def witnessed(request: pytest.FixtureRequest) -> Iterator[Witnessed]:
    """The program with the sandbox that the test names."""
    with scratch() as place, gone_with(place):
        yield Witnessed(place, request.param)


@pytest.mark.needs("useradd")
@pytest.mark.parametrize(
    ("witnessed", "base", "op", "what"),
    [
        *(("users", "scratch", *case) for case in OF_USERS),
        *(("host", "micro", *case) for case in OF_HOST),
    ],
    indirect=["witnessed"],
)
def test_it_is_refused_before_the_first_step(
    witnessed: Witnessed, base: str, op: str, what: str
) -> None:
    witnessed.spec(shell("echo ran"), op, base=base)
    done = witnessed.run("build", "--secret=s:secret")
    assert done.status == 2
    assert what in done.err
    assert "hint: " in done.err
    assert "ran" not in done.out
    assert witnessed.users == 0
    assert os.listdir(f"{witnessed.store}/results") == [], "not even the base"


@pytest.mark.needs("useradd")
@pytest.mark.parametrize("witnessed", ["users"], indirect=True)
def test_who_makes_users_is_seen(witnessed: Witnessed) -> None:
    """As the test before relies on."""
    witnessed.spec(shell("echo ran"), base="scratch")
    assert "ran" in witnessed.ok("build").splitlines()
    assert witnessed.users == 1


@pytest.mark.needs("useradd")
@pytest.mark.parametrize("witnessed", ["users", "host"], indirect=True)
def test_an_image_for_other_machines_is_refused_before_the_first_step(witnessed: Witnessed) -> None:
    image = os.path.join(witnessed.context, "image")
    os.mkdir(image)
    others = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2,
            "digest": f"sha256:{number:064x}", "platform": {"os": "linux", "architecture": name},
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }
        for number, name in enumerate(("s390x", "ppc64le"))
    ]  # fmt: skip
    files = {"index.json": {"schemaVersion": 2, "manifests": others},
             "oci-layout": {"imageLayoutVersion": "1.0.0"}}  # fmt: skip
    for name, content in files.items():
        with open(os.path.join(image, name), "w") as file:
            json.dump(content, file)
    first = '(build first ((from scratch) (run (shell "echo ran"))))'
    witnessed.spec(
        "(copy (from (build first)) (src /run) (dst /run/))", before=first, base=f"oci:{image}"
    )
    done = witnessed.run("build")
    assert done.status == 5
    assert f"has no image for {host_platform()}" in done.err
    assert "ran" not in done.out
    assert witnessed.users == 0


@pytest.fixture
async def redirected() -> AsyncIterator[tuple[Builder, str]]:
    """A builder whose steps are users as on macOS, and a directory that has their places."""
    with scratch() as place:
        for name in ("home", "prefix", "context"):
            os.mkdir(f"{place}/{name}")
        async with opened(f"overlayfs:{place}/store", None, Policy()) as (store, _):
            system = SetprivSystem(place)
            sandbox = await RedirectedUsers.open(
                system, store.directory, store.idmap, session=store.session
            )
            try:
                async with Builder.over(store, sandbox) as builder:
                    yield builder, place
            finally:
                await sandbox.close()


@pytest.mark.anyio
@pytest.mark.needs("useradd", "crun")
@pytest.mark.parametrize(("op", "what"), OF_REDIRECTED)
async def test_on_macos_more_is_refused_before_the_first_step(
    redirected: tuple[Builder, str], op: str, what: str
) -> None:
    builder, place = redirected
    first = f'(workdir {place}/home) (run (network host) (shell "echo ran"))'
    text = f"((from scratch) {first} {op.replace('HOME', f'{place}/home')})"
    heard = []
    with pytest.raises(Unsupported) as refused:
        await builder.build(
            parse(text.encode(), file="a test").spec, f"{place}/context",
            secrets={"s": b"s"}, sink=heard.append,
        )  # fmt: skip
    assert what in refused.value.message
    assert refused.value.hint
    assert len(heard) == 1, "the end, and nothing before"
    assert builder.records() == []
    assert not [account for account in listed() if builder.store.session in account.note]
    assert not os.path.ismount(f"{place}/home"), "no step has been prepared for"
