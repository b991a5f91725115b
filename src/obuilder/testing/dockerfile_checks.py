"""The checks of the sandbox suite for what Dockerfiles ask of steps."""

import os

from obuilder.backends.protocols import SecretFile
from obuilder.errors import Unsupported
from obuilder.spec.model import Tmpfs
from obuilder.testing.bench import Bench
from obuilder.values import NamedUser


async def names(bench: Bench) -> None:
    """Users by name are who the root's own files say, with all their groups."""
    async with bench.files(write=True) as inside:
        os.makedirs(inside("/etc"), exist_ok=True)
        for name, text in (
            ("passwd", "root:x:0:0::/:\nann:x:1000:1001::/home/ann:\n"),
            ("group", "root:x:0:\nteam:x:77:ann\nmore:x:78:bob,ann\n"),
        ):
            with open(inside(f"/etc/{name}"), "w", encoding="ascii") as file:
                file.write(text)
    script = "grep -E '^(Uid|Gid|Groups)' /proc/self/status | tr -s '\\t ' ' '"
    for user, uid, gid, groups in (
        ("ann", 1000, 1001, "77 78"), ("ann:team", 1000, 77, ""), ("1000", 1000, 1001, "77 78"),
        ("55", 55, 0, ""), ("55:more", 55, 78, ""), ("0:9", 0, 9, ""),
    ):  # fmt: skip
        assert (await bench.run(script, user=NamedUser(user))).status == 0, bench.said
        said = bench.said.decode().splitlines()
        assert said[0].startswith(f"Uid: {uid} "), (user, said)
        assert said[1].startswith(f"Gid: {gid} "), (user, said)
        found = set(said[2].split()[1:]) - {str(gid)}
        assert found == set(groups.split()), (user, said)
    for nobody in ("bob", "ann:nobodies", "99999999999"):
        try:
            await bench.run("true", user=NamedUser(nobody))
        except Unsupported:
            continue
        raise AssertionError(nobody)


async def memory_places(bench: Bench) -> None:
    """A directory on memory is empty, has its size, and leaves nothing behind."""
    before = await bench.names()
    script = "ls -A /mem; echo x > /mem/f && dd if=/dev/zero of=/mem/big bs=1M count=4 || echo full"
    ended = await bench.run(script, tmpfs=(Tmpfs("/mem", 1 << 20),))
    assert ended.status == 0, bench.said
    assert bench.said.endswith(b"full\n"), bench.said
    assert await bench.names() == before


async def powers(bench: Bench) -> None:
    """A step that is run insecurely can mount; any other can not."""
    script = "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m && echo mounted; rmdir /tmp/m"
    assert (await bench.run(script)).status in (0, 1)
    assert b"mounted\n" not in bench.said
    await bench.run(script + "; true", insecure=True)
    assert b"mounted\n" in bench.said, bench.said


async def variables(bench: Bench) -> None:
    """A secret can be a variable's value, and then there is no file of it."""
    value = b"a value that is told to nobody"
    before = await bench.names()
    ended = await bench.run(
        'echo "$S"; ls -A /run/secrets 2>&1', secrets=(SecretFile("", value, env="S"),)
    )
    assert bench.said.startswith(value + b"\n"), (ended, bench.said)
    assert await bench.names() == before
