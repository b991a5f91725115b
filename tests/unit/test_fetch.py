"""Fetchers of local kinds: what they resolve to, and what they put into a root."""

import io
import os
import subprocess  # the made root is tried with the kernel's own chroot
import tarfile

import anyio
import pytest

from obuilder.backends.fetchers import Sources, fetcher_for
from obuilder.backends.protocols import HostDir
from obuilder.engine.inputs import MustWait, drive
from obuilder.errors import DigestMismatch, NotFound
from obuilder.oci.archive import write_tar
from obuilder.oci.members import Manner
from obuilder.oci.platforms import host_platform
from obuilder.spec.image import DEFAULT_PATH
from obuilder.values import IdMap

SAME = IdMap(first=0, count=1 << 31)
SHIFTED = IdMap(first=100000, count=65536)


def fetch(name, root, idmap=SAME):
    notes = []
    base = drive(fetcher_for(name).resolve(name, host_platform()))

    async def run():
        for index in range(len(base.layers)):
            await fetcher_for(name).fetch(
                base, index, into=HostDir(str(root)), idmap=idmap, output=notes.append
            )

    root.mkdir(exist_ok=True)
    anyio.run(run)
    return base, b"".join(notes).decode()


class Stats(dict):
    def get(self, path, signature):
        return super().get((path, signature))

    def put(self, path, signature, digest):
        self[path, signature] = digest


def test_unknown_names_say_what_there_is():
    with pytest.raises(NotFound) as caught:
        fetcher_for("No such name")
    assert "rootfs:DIR" in caught.value.hint
    assert "image import" in caught.value.hint


def test_a_name_that_was_never_asked_for_needs_an_event_loop():
    with pytest.raises(MustWait):
        drive(fetcher_for("debian:12").resolve("debian:12", host_platform()))
    with pytest.raises(NotFound, match="never asked"):
        drive(fetcher_for("debian:12", Sources(pull="never")).resolve("debian:12", host_platform()))


def test_scratch_is_empty(tmp_path):
    base, _ = fetch("scratch", tmp_path / "r")
    assert len(base.layers) == 1
    assert os.listdir(tmp_path / "r") == []


@pytest.mark.needs("root")
def test_micro_runs_the_default_shell(tmp_path):
    fetch("micro", tmp_path / "r")
    done = subprocess.run(
        ["/usr/sbin/chroot", str(tmp_path / "r"), "/usr/bin/env", "bash", "-c", "echo $((6*7)); id -un; ls /tmp"],
        capture_output=True, check=False, env={"PATH": DEFAULT_PATH},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"42\nroot\n", b"")
    assert os.stat(tmp_path / "r/tmp").st_mode & 0o7777 == 0o1777


def make_rootfs(path):
    (path / "bin").mkdir(parents=True)
    (path / "bin/sh").write_bytes(b"x")
    (path / "bin/sh").chmod(0o4755)
    os.link(path / "bin/sh", path / "bin/bash")
    os.symlink("/nowhere", path / "link")
    os.chown(path / "bin", 7, 8)
    return path


@pytest.mark.needs("root")
def test_rootfs_keeps_modes_links_and_shifts_owners(tmp_path):
    source = make_rootfs(tmp_path / "src")
    fetch(f"rootfs:{source}", tmp_path / "r", SHIFTED)
    made = tmp_path / "r"
    assert os.stat(made / "bin/sh").st_mode & 0o7777 == 0o4755
    assert os.path.samefile(made / "bin/sh", made / "bin/bash")
    assert os.readlink(made / "link") == "/nowhere"
    assert (os.stat(made / "bin").st_uid, os.stat(made / "bin").st_gid) == (100007, 100008)
    assert os.lstat(made / "link").st_uid == 100000


@pytest.mark.needs("root")
def test_rootfs_digest_follows_content_and_mode(tmp_path):
    source = make_rootfs(tmp_path / "src")
    stats = Stats()
    name = f"rootfs:{source}"

    def digest():
        return drive(fetcher_for(name, Sources(stats=stats)).resolve(name, host_platform())).digest

    first = digest()
    assert digest() == first
    os.utime(source / "bin/sh", (5, 5))
    assert digest() == first
    (source / "bin/sh").write_bytes(b"y")
    second = digest()
    assert second != first
    (source / "bin/sh").chmod(0o700)
    assert digest() != second


def test_rootfs_missing():
    with pytest.raises(NotFound):
        drive(
            fetcher_for("rootfs:/nonexistent/x").resolve("rootfs:/nonexistent/x", host_platform())
        )


@pytest.mark.needs("root")
def test_rootfs_that_changes_meanwhile(tmp_path):
    source = make_rootfs(tmp_path / "src")
    name = f"rootfs:{source}"
    base = drive(fetcher_for(name).resolve(name, host_platform()))
    (source / "new").write_text("new")
    (tmp_path / "r").mkdir()

    async def run():
        await fetcher_for(name).fetch(
            base, 0, into=HostDir(str(tmp_path / "r")), idmap=SAME, output=lambda _: None
        )

    with pytest.raises(DigestMismatch):
        anyio.run(run)


@pytest.mark.needs("root")
def test_written_archives_are_the_same_bytes_with_owners_inside(tmp_path):
    source = make_rootfs(tmp_path / "src")
    (source / os.fsdecode(b"odd\xff")).write_text("odd")
    fetch(f"rootfs:{source}", tmp_path / "a", SHIFTED)
    fetch(f"rootfs:{source}", tmp_path / "b", SHIFTED)
    first, second = io.BytesIO(), io.BytesIO()
    write_tar(str(tmp_path / "a"), first, Manner(SHIFTED))
    write_tar(str(tmp_path / "b"), second, Manner(SHIFTED))
    assert first.getvalue() == second.getvalue()
    with tarfile.open(fileobj=io.BytesIO(first.getvalue())) as tar:
        members = {m.name: m for m in tar}
    assert list(members) == ["bin", "bin/bash", "bin/sh", "link", os.fsdecode(b"odd\xff")]
    assert (members["bin"].uid, members["bin"].gid) == (7, 8)
    assert members["bin/sh"].islnk()
    assert members["bin/sh"].linkname == "bin/bash"
    assert members["bin/bash"].mode == 0o4755
