"""Unpacking layers: what honest ones mean, and what hostile ones can't do."""

import gzip
import hashlib
import io
import os
import random
import subprocess
import tarfile

import anyio
import pytest

from obuilder.backends.fetchers import fetcher_for
from obuilder.backends.protocols import HostDir
from obuilder.engine.inputs import drive
from obuilder.errors import BadImage, DigestMismatch, StoreFull
from obuilder.oci import streams
from obuilder.oci.layers import unpack, unpack_blob
from obuilder.oci.platforms import host_platform
from obuilder.oci.streams import decompressed
from obuilder.system import linux
from obuilder.values import IdMap

SAME = IdMap(first=0, count=1 << 31) if os.geteuid() == 0 else IdMap(first=os.geteuid(), count=1)


def archive(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, value in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o755
            if kind == tarfile.REGTYPE:
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
            else:
                info.linkname = value
                tar.addfile(info)
    return out.getvalue()


F, D, S, H = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def put(root, *members):
    notes = []
    unpack(io.BytesIO(archive(*members)), str(root), SAME, notes.append)
    return notes


@pytest.fixture
def root(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/victim").write_text("whole")
    (tmp_path / "root").mkdir()
    yield tmp_path / "root"
    assert os.listdir(tmp_path / "outside") == ["victim"]
    assert (tmp_path / "outside/victim").read_text() == "whole"
    assert os.stat(tmp_path / "outside/victim").st_nlink == 1
    assert sorted(os.listdir(tmp_path)) == ["outside", "root"]


@pytest.mark.parametrize(
    "members",
    [
        [("../x", F, b"")],
        [("a/../../x", F, b"")],
        [("..", D, "")],
        [("x", H, "../outside/victim")],
        [("x", H, "/")],
        [("x", H, "missing")],
        [("d", D, ""), ("x", H, "d")],
        [("f", F, b""), ("f/x", F, b"")],
        [(".wh...", F, b"")],
        [(".wh..", F, b"")],
        [(".wh.", F, b"")],
        [("d/.wh...", F, b""), ("d", D, "")][::-1],
        [("l", S, "missing"), ("l/x", F, b"")],
        [("l", S, "l"), ("l/x", F, b"")],
        [("n" * 300, F, b"")],
        [("d/" * 2000 + "x", F, b"")],
        [("../../outside", D, "")],
        [("l", S, "../outside"), ("x", H, "l/victim")],
    ],
)
def test_refused(root, members):
    with pytest.raises(BadImage):
        put(root, *members)


@pytest.mark.parametrize("target", ["/", "..", "../../..", "/d", "../outside"])
def test_symlinks_lead_nowhere_else(root, target):
    (root / "d").mkdir()
    (root / "outside").mkdir()
    put(root, ("l", S, target), ("l/victim", F, b"new"))
    assert (
        (root / "victim").exists()
        or (root / "d/victim").exists()
        or (root / "outside/victim").exists()
    )


def test_absolute_names_stay_inside(root):
    put(root, ("/etc/x", F, b"1"))
    assert (root / "etc/x").read_bytes() == b"1"


def test_a_file_over_a_symlink_replaces_it(root):
    put(root, ("l", S, "../outside/victim"), ("l", F, b"mine"))
    assert (root / "l").read_bytes() == b"mine"
    assert not (root / "l").is_symlink()


def test_a_whiteout_of_a_symlink_removes_the_link(root):
    put(root, ("l", S, "../outside"))
    put(root, (".wh.l", F, b""))
    assert os.listdir(root) == []


def test_a_directory_swapped_for_a_symlink_is_not_remembered(root):
    put(root, ("d", D, ""), ("d/a", F, b""), ("d", S, "/e"), ("e", D, ""), ("d/victim", F, b"x"))
    assert (root / "e/victim").read_bytes() == b"x"


def test_whiteouts_remove_lower_files_only(root):
    put(root, ("d", D, ""), ("d/low", F, b""), ("d/sub/low", F, b""), ("gone", F, b""))
    put(
        root,
        ("d/sub/new", F, b""),
        ("d/.wh..wh..opq", F, b""),
        (".wh.gone", F, b""),
        ("d/up", F, b""),
    )
    assert sorted(os.listdir(root)) == ["d"]
    assert sorted(os.listdir(root / "d")) == ["sub", "up"]
    assert os.listdir(root / "d/sub") == ["new"]


def test_devices_are_left_out_with_a_note(root):
    devices = (("null", tarfile.CHRTYPE, ""), ("dev/null", tarfile.CHRTYPE, ""))
    notes = put(root, *devices, ("f", F, b""))
    assert notes == ["left out the device /null\n"]
    assert sorted(os.listdir(root)) == ["dev", "f"]
    assert os.listdir(root / "dev") == []


@pytest.mark.parametrize("cut", [100, 600, 1100])
def test_cut_off(root, cut):
    data = archive(("a", F, b"x" * 100), ("b", F, b"y" * 100))
    with pytest.raises(BadImage):
        unpack(io.BytesIO(data[:cut]), str(root), SAME, print)


def test_damaged_header(root):
    data = bytearray(archive(("a", F, b"x"), ("b", F, b"y")))
    data[1024 + 3] ^= 0xFF
    with pytest.raises(BadImage):
        unpack(io.BytesIO(bytes(data)), str(root), SAME, print)


def test_damaged_gzip(root):
    data = gzip.compress(archive(("a", F, os.urandom(5000))))
    with decompressed(io.BytesIO(data[:2000])) as content, pytest.raises(BadImage):
        unpack(content, str(root), SAME, print)


def zstd(data):
    done = subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True)
    return done.stdout


def fetch_tar(tmp_path, packed):
    (tmp_path / "image").write_bytes(packed)
    name = f"tar:{tmp_path / 'image'}"
    base = drive(fetcher_for(name).resolve(name, host_platform()))
    root = tmp_path / "r"
    root.mkdir(exist_ok=True)

    async def run():
        await fetcher_for(name).fetch(
            base, 0, into=HostDir(str(root)), idmap=SAME, output=lambda _: None
        )

    anyio.run(run)
    return base


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_tar_images(tmp_path, pack):
    packed = pack(archive(("etc/x", F, b"1"), ("y", H, "etc/x")))
    base = fetch_tar(tmp_path, packed)
    assert base.digest.startswith("sha256:")
    assert os.path.samefile(tmp_path / "r/etc/x", tmp_path / "r/y")


def test_a_tar_image_has_no_whiteouts(tmp_path):
    fetch_tar(tmp_path, archive(("x", F, b"1"), (".wh.x", F, b"2"), (".wh..wh..opq", F, b"3")))
    assert sorted(os.listdir(tmp_path / "r")) == [".wh..wh..opq", ".wh.x", "x"]
    assert (tmp_path / "r/.wh.x").read_bytes() == b"2"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_no_damage_makes_a_traceback(tmp_path, pack):
    chance = random.Random(7)
    whole = archive(
        ("etc/" + "long" * 60, F, chance.randbytes(900)), ("y", S, "x" * 300), ("\xe9", D, "")
    )
    packed = pack(whole)
    refused = 0
    for _ in range(300):
        data = bytearray(packed)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            fetch_tar(tmp_path, bytes(data[: chance.randrange(1, len(data) * 3)]))
        except (BadImage, DigestMismatch):
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(("pack", "bomb"), [(gzip.compress, True), (zstd, True), (bytes, False)])
def test_packed_zeros_are_a_bomb_when_there_are_too_many(tmp_path, monkeypatch, pack, bomb):
    monkeypatch.setattr(streams, "_BOMB_SIZE", 1 << 20)
    packed = pack(archive(("x", F, bytes(1 << 23))))
    if bomb:
        with pytest.raises(BadImage, match="is a bomb"):
            fetch_tar(tmp_path, packed)
    else:
        fetch_tar(tmp_path, packed)
    fetch_tar(tmp_path, gzip.compress(archive(("y", F, random.Random(1).randbytes(1 << 22)))))


@pytest.mark.parametrize("missing", [1024 + 500, 1024])
def test_a_layer_may_lack_its_last_zeros(root, missing):
    data = archive(("x", F, b"1" * 12))[: -10240 + 2048 - missing]
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    unpack_blob(io.BytesIO(gzip.compress(data)), digest, "it", str(root), SAME, print)
    assert (root / "x").read_bytes() == b"1" * 12
    with pytest.raises((BadImage, DigestMismatch)):
        unpack_blob(io.BytesIO(gzip.compress(data[:-1])), digest, "it", str(root), SAME, print)


def test_a_chain_of_headers_is_refused(root):
    info = tarfile.TarInfo("x")
    info.pax_headers = {"comment": "x"}
    header = info.tobuf(tarfile.PAX_FORMAT)[:1024]
    with pytest.raises(BadImage):
        unpack(io.BytesIO(header * 5000), str(root), SAME, print)


@pytest.mark.needs("tmpfs")
def test_a_full_store_is_called_full(tmp_path):
    fs = linux.fsopen("tmpfs")
    linux.fsconfig_string(fs, "size", "1m")
    linux.fsconfig_create(fs)
    mount = linux.fsmount(fs)
    try:
        with pytest.raises(StoreFull, match="'big'"):
            put(f"/proc/self/fd/{mount}", ("big", F, bytes(3 << 20)))
    finally:
        os.close(mount)
        os.close(fs)
