"""Images whose links lead out of them: what an engine does as root of the machine follows none there."""

import os
import re
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest

import images
from leftovers import leftovers
from places import Opened, each
from program import Program, cached, shell
from registries import Registry

pytestmark = pytest.mark.needs("root", "overlay")

SECRET = "machine's"


def hostile(program: Program, **links: str) -> str:
    """Make an image with these links, in which HERE is a directory of the machine: its path."""
    outside = os.path.join(program.context, "outside")
    os.mkdir(outside)
    os.chmod(outside, 0o777)
    with open(os.path.join(outside, "kept"), "w") as file:
        file.write(SECRET)
    with tarfile.open(os.path.join(program.context, "hostile.tar"), "w") as tar:
        for name, link in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, link.replace("HERE", outside)
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/sh")
    return outside


def untouched(outside: str) -> bool:
    with open(os.path.join(outside, "kept")) as file:
        return os.listdir(outside) == ["kept"] and file.read() == SECRET


STEPS = {
    "a copy to a link": "(copy (src f) (dst /out/f))",
    "a copy over a link": "(copy (src f) (dst /dangling))",
    "a copy upwards": "(copy (src f) (dst /up/f))",
    "a copy from": "(copy (from (build b)) (src /up/kept) (dst /got/))",
    "a copy from a link": "(copy (from (build b)) (src /out/kept /out) (dst /got/))",
    "a secret": '(run (secrets (s (target /up/s))) (shell "echo > /up/new; echo > /out/kept"))',
    "a volume": cached("echo 1 > /up/v/1", v="private").replace("/v/v", "/up/v"),
    "a directory": "(workdir /out/w) " + shell("echo > w; echo > /run/new"),
}


@each("overlayfs", "docker", "podman")
@pytest.mark.needs("crun")
def test_links_lead_nowhere_outside(program: Program) -> None:
    outside = hostile(
        program, out="HERE", up="../../../../../..HERE", dangling="HERE/new", run="HERE"
    )
    program.file("f", b"copied")
    program.file("value", b"hunter2")
    base, archive = "tar:hostile.tar", os.path.join(program.temporary, "tar")
    for name, step in STEPS.items():
        program.spec(step, before=f"(build b ((from {base})))", base=base)
        done = program.run("build", "--secret=s:value")
        assert done.status in (0, 1, 4), (name, done)
        assert SECRET not in done.out + done.err
        for key in re.findall(r'Got: "([0-9a-f]+)"', done.out):
            program.ok("export", key, f"tar:{archive}")
            with open(archive, "rb") as file:
                assert SECRET.encode() not in file.read(), name
            os.unlink(archive)
        assert untouched(outside), name
    assert leftovers(program.store, program.temporary) == []


def bomb(path: str, size: int) -> None:
    """A layer with one file of so many gigabytes, which is some megabytes long."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    entry = tarfile.TarInfo("large")
    entry.size = size << 30
    with open(path, "wb") as file:
        file.write(packer.compress(entry.tobuf()) + packer.flush(zlib.Z_FULL_FLUSH))
        piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
        file.writelines(piece for _ in range(size << 10))


@each("overlayfs-on-tmpfs")
@pytest.mark.needs("registry", "skopeo")
def test_a_few_megabytes_that_come_to_ten_gigabytes(
    place: Opened, program: Program, registry: Registry, tmp_path: Path
) -> None:
    layer = str(tmp_path / "layer")
    bomb(layer, 10)
    assert os.path.getsize(layer) < 12 << 20
    images.layout_of(str(tmp_path / "layout"), layer)
    base = registry.push(f"oci:{tmp_path}/layout:it", "bomb:1")
    program.spec()
    program.ok("build")
    before, room = sorted(program.ok("ls").splitlines()), shutil.disk_usage(place.directory).free
    program.spec(base=base)
    done = program.run("build")
    assert done.status == 5, done
    assert done.err.count("error: ") == 1
    assert "the layer is a bomb" in done.err
    assert sorted(program.ok("ls").splitlines()) == before
    assert leftovers(program.store, program.temporary) == []
    assert shutil.disk_usage(place.directory).free > room - (1 << 20)


@each("docker", "podman")
@pytest.mark.parametrize("name", ["dev", "etc", "proc", "sys"])
def test_what_engines_mount_on_may_be_a_link(place: Opened, program: Program, name: str) -> None:
    outside = hostile(program, **{name: "HERE"})
    program.spec(shell("echo ran"), base="tar:hostile.tar")
    done = program.run("build")
    if place.name == "podman":
        assert done.status == 4, done
        assert "a link that leads nowhere" in done.err
    assert untouched(outside)
    assert leftovers(program.store, program.temporary) == []
