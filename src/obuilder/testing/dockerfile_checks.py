"""The checks of the sandbox suite for what Dockerfiles ask of steps."""

import os
import tarfile

from obuilder.backends.protocols import HostDir, Placing
from obuilder.errors import BadImage, CopyError, Unsupported
from obuilder.spec.model import Tmpfs
from obuilder.system.picking import NOTHING, pick
from obuilder.testing.bench import Bench
from obuilder.values import NamedUser, UnixUser, User


async def _add(
    bench: Bench, source: str, *src: str, to: str, owner: User | None = None, **how: bool | str
) -> None:
    selection = pick(source, src, exclude=(), ignored=None, parents=False, stats=None)
    placing = Placing(into=to.endswith("/"), **how)  # type: ignore[arg-type] # the test's own words
    await bench.sandbox.add(
        bench.root, selection, HostDir(source), placing, to=to.rstrip("/") or "/", owner=owner
    )


async def additions(bench: Bench) -> None:
    """What is added is placed as a Dockerfile's COPY does; nothing on the way leads out."""
    source, outside = bench.folder("source"), bench.folder("outside")
    os.makedirs(f"{source}/dir/sub")
    for name, mode in (("dir/file", 0o640), ("dir/sub/file", 0o4755), ("one", 0o600)):
        with open(f"{source}/{name}", "w", encoding="ascii") as file:
            file.write(name)
        os.chmod(f"{source}/{name}", mode)
    os.chmod(f"{source}/dir/sub", 0o2711)
    os.symlink("/../../gone", f"{source}/dir/link")
    async with bench.files(write=True) as inside:
        for name in ("there", "there/sub"):
            os.mkdir(inside(f"/{name}"), 0o700)
        os.symlink("../../.." + outside, inside("/out"))
        os.symlink("/there", inside("/way"))
        os.symlink("/nowhere/yet", inside("/dangling"))
        os.symlink("/one-more", inside("/there/file"))
    await _add(bench, source, "dir", to="/way", owner=UnixUser(7, 8))
    await _add(bench, source, "one", to="/way")
    await _add(bench, source, "one", to="/dangling", permissions="755")
    await _add(bench, source, "one", to="/new/place/", permissions="u=rwX,go=rX")
    await _add(bench, source, "one", "dir", to="/out/")
    await _add(bench, source, "one", to="/way/sub/file", link=True)
    assert os.listdir(outside) == [], "nothing leads out of the root"
    async with bench.files() as inside:
        modes = {
            name: oct(os.lstat(inside(name)).st_mode)
            for name in (
                "/there", "/there/sub", "/there/file", "/there/one", "/there/sub/file",
                "/nowhere/yet", "/new/place/one", "/there/link", "/way",
            )
        }  # fmt: skip
        assert modes == {
            "/there": "0o40700", "/there/sub": "0o42711", "/there/file": "0o100640",
            "/there/one": "0o100600", "/there/sub/file": "0o104755", "/nowhere/yet": "0o100755",
            "/new/place/one": "0o100644", "/there/link": "0o120777", "/way": "0o40755",
        }, modes  # fmt: skip
        assert not os.path.lexists(inside("/one-more")), "a symlink in a file's place is replaced"
        assert os.lstat(inside("/there/file")).st_uid == bench.idmap.to_disk(7)
    for src, to in (("dir", "/new/place/one"), ("one", "/")):
        try:
            await _add(bench, source, src, to=to.rstrip("/") or "/")
        except CopyError:
            continue
        assert to == "/", "a directory can't go over a file"
    how = Placing(into=True)
    await bench.sandbox.add(
        bench.root, NOTHING, HostDir(source), how, to="/made/deep", owner=UnixUser(7, 8)
    )
    async with bench.files() as inside:
        assert os.stat(inside("/made/deep")).st_uid == bench.idmap.to_disk(7)


async def archives(bench: Bench) -> None:
    """An archive is taken apart where that is asked for; what is none is copied; none leads out."""
    source, outside = bench.folder("source"), bench.folder("outside")
    with open(f"{source}/text", "w", encoding="ascii") as file:
        file.write("text")
    with tarfile.open(f"{source}/good.tgz", "w:gz") as tar:
        tar.add(f"{source}/text", arcname="in/text")
    for name, member in (("dots.tar", "../../escaped"), ("way.tar", "way/escaped")):
        with tarfile.open(f"{source}/{name}", "w") as tar:
            if name == "way.tar":
                link = tarfile.TarInfo("way")
                link.type, link.linkname = tarfile.SYMTYPE, "../../../../.." + outside
                tar.addfile(link)
            tar.add(f"{source}/text", arcname=member)
    await _add(bench, source, "good.tgz", "text", to="/a/", unpack=True)
    async with bench.files() as inside:
        assert sorted(os.listdir(inside("/a"))) == ["in", "text"]
    for name in ("dots.tar", "way.tar"):
        try:
            await _add(bench, source, name, to="/b/", unpack=True)
        except (BadImage, CopyError):
            continue
    assert os.listdir(outside) == []
    assert not os.path.exists(bench.path("escaped"))


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
