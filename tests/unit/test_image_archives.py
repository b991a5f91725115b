"""Archives of images that nobody honest made: refused in words, and nothing outside is touched."""

import gzip
import hashlib
import io
import json
import os
import random
import tarfile
import time

import anyio
import pytest

from images import write_archive
from obuilder.backends.fetchers import fetcher_for
from obuilder.backends.protocols import HostDir
from obuilder.engine.inputs import drive
from obuilder.errors import BadImage, DigestMismatch, FetchError, NotFound
from obuilder.oci import image_archive
from obuilder.oci.platforms import host_platform
from obuilder.values import IdMap

SAME = IdMap(first=0, count=1 << 31) if os.geteuid() == 0 else IdMap(first=os.geteuid(), count=1)


def sha(data):
    return hashlib.sha256(data).hexdigest()


def layer(name="hello"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    return out.getvalue()[:2048]


LAYER = layer()


def config(*layers):
    return json.dumps({"rootfs": {"diff_ids": [f"sha256:{sha(data)}" for data in layers]}}).encode()


def docker_members(*, data=LAYER, settings=None, listed=None, place="a/layer.tar"):
    """What docker save before 25 writes of an image with one layer."""
    settings = config(LAYER) if settings is None else settings
    name = f"{sha(settings)}.json"
    found = {"Config": name, "RepoTags": None, "Layers": [place], **(listed or {})}
    return [
        ("a/layer.tar", data),
        (name, settings),
        ("manifest.json", json.dumps([found]).encode()),
    ]


def oci_members(*, data=LAYER, settings=None):
    settings = config(LAYER) if settings is None else settings

    def described(blob):
        return {"digest": f"sha256:{sha(blob)}"}

    manifest = json.dumps({"config": described(settings), "layers": [described(data)]}).encode()
    index = json.dumps({"manifests": [described(manifest)]}).encode()
    blobs = [(f"blobs/sha256/{sha(blob)}", blob) for blob in (data, settings, manifest)]
    return [*blobs, ("index.json", index)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to work in, below one in which nothing may change."""
    (tmp_path / "x").write_text("whole")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "work"
    assert sorted(os.listdir(tmp_path)) == ["work", "x"]
    assert (tmp_path / "x").read_text() == "whole"
    assert set(os.listdir(tmp_path / "work")) <= {"image", "root"}


def resolve(kind="docker-archive"):
    name = f"{kind}:image"
    return drive(fetcher_for(name).resolve(name, host_platform()))


def fetch(base):
    os.makedirs("root", exist_ok=True)

    async def run():
        await fetcher_for(base.name).fetch(
            base, 0, into=HostDir(os.path.abspath("root")), idmap=SAME, output=print
        )

    anyio.run(run)


@pytest.mark.parametrize(
    ("kind", "members"), [("docker-archive", docker_members), ("oci-archive", oci_members)]
)
def test_honest_ones_are_read(place, kind, members):
    write_archive("image", members())
    base = resolve(kind)
    assert [layer.digest for layer in base.layers] == [f"sha256:{sha(LAYER)}"]
    fetch(base)
    assert (place / "root/hello").read_text() == "hello"


def test_links_lead_to_layers_inside(place):
    honest = docker_members(place="b/layer.tar")
    write_archive("image", [("b/layer.tar", "../a/layer.tar"), *honest])
    assert resolve().layers[0].digest == f"sha256:{sha(LAYER)}"
    with tarfile.open("image", "w") as tar:
        for name, content in honest:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("b/layer.tar")
        info.type, info.linkname = tarfile.LNKTYPE, "a/layer.tar"
        tar.addfile(info)
    fetch(resolve())


BOMB = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("../x", b"evil"), *docker_members()], "outside of itself"),
        ([*docker_members(), ("a/../../x", b"evil")], "outside of itself"),
        ([*docker_members(), ("/etc/x", b"evil")], "outside of itself"),
        ([*docker_members(), ("manifest.json", b"[]")], "manifest.json twice"),
        ([*docker_members(), docker_members()[1]], "json twice"),
        ([*docker_members(), ("a/layer.tar", LAYER)], "a/layer.tar twice"),
        ([*docker_members(), ("a/layer.tar", "elsewhere")], "a/layer.tar twice"),
        (docker_members()[1:], "'a/layer.tar'"),
        (docker_members(place="../x"), "'../x'"),
        (docker_members(place="/etc/passwd"), "'/etc/passwd'"),
        ([("l", "../../x"), *docker_members(place="l")], "'l'"),
        ([("l", "/etc/passwd"), *docker_members(place="l")], "'l'"),
        ([("l", "m"), ("m", "l"), *docker_members(place="l")], "'l'"),
        (docker_members()[:2], "no archive of docker save"),
        (docker_members(listed={"Config": "missing"}), "'missing'"),
        (docker_members(listed={"Config": "a/layer.tar"}), "malformed"),
        (docker_members(listed={"Layers": None}), "malformed"),
        (docker_members(listed={"Layers": []}), "not the same layers"),
        (docker_members(listed={"Layers": ["a/layer.tar"] * 2}), "not the same layers"),
        (docker_members(settings=config()), "no layers"),
        (docker_members(settings=config(*[LAYER] * 1001), listed={"Layers": ["a/layer.tar"] * 1001}), "absurd"),
        (docker_members(settings=b"{}"), "malformed"),
        (docker_members(settings=b'{"rootfs":{"diff_ids":["md5:1"]}}'), "no SHA-256 digest"),
        (docker_members(settings=b'{"rootfs":{"diff_ids":["sha256:../../x"]}}'), "no SHA-256 digest"),
        (docker_members(settings=b'{"x":"\xff\xfe"}'), "malformed"),
        (docker_members(settings=BOMB), "malformed"),
        (docker_members(settings=b"{" + b" " * (17 << 20)), "absurdly large"),
        ([("manifest.json", b"[]")], "no image"),
        ([("manifest.json", b'{"a":1}')], "malformed"),
        ([], "no archive of docker save"),
    ],
)  # fmt: skip
def test_refused(place, members, says):
    write_archive("image", members)
    with pytest.raises(BadImage) as caught:
        resolve()
    assert says in caught.value.message
    assert "image" in caught.value.message


@pytest.mark.parametrize(
    ("members", "error", "says"),
    [
        (oci_members()[1:], BadImage, "lacks a part"),
        (oci_members()[:2] + oci_members()[3:], BadImage, "lacks a part"),
        (oci_members()[:3], BadImage, "no OCI layout"),
        ([*oci_members(), ("index.json", b"{}")], BadImage, "index.json twice"),
        ([*oci_members()[:3], ("index.json", b'{"manifests":[{"digest":"sha256:../../x"}]}')], BadImage, "no SHA-256"),
        ([*oci_members()[:3], ("index.json", b'{"manifests":[]}')], NotFound, "no image"),
        ([(name, data + b" ") for name, data in oci_members()], DigestMismatch, "not what its name says"),
    ],
)  # fmt: skip
def test_layouts_refused(place, members, error, says):
    write_archive("image", members)
    with pytest.raises(error, match=says):
        resolve("oci-archive")


def test_a_config_that_is_not_what_its_name_says(place):
    (data, (name, _), listed) = docker_members()
    write_archive("image", [data, (name, config(b"other")), listed])
    with pytest.raises(DigestMismatch, match="not what its name says"):
        resolve()


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
@pytest.mark.parametrize(
    "data",
    [layer("other"), gzip.compress(layer("other"), mtime=0), b"", LAYER + b"more"],
    ids=["another", "another, compressed", "none", "more"],
)
def test_layers_that_are_not_what_the_config_says(place, kind, data):
    make = docker_members if kind == "docker-archive" else oci_members
    write_archive("image", make(data=data))
    base = resolve(kind)
    with pytest.raises((DigestMismatch, BadImage)):
        fetch(base)


def test_a_layer_that_leads_outside(place):
    data = layer("../../x")
    write_archive("image", docker_members(data=data, settings=config(data)))
    base = resolve()
    with pytest.raises(BadImage, match="outside of its root"):
        fetch(base)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"?"])
def test_members_of_other_kinds(place, kind):
    with tarfile.open("image", "w") as tar:
        info = tarfile.TarInfo("device")
        info.type = kind
        tar.addfile(info)
    with pytest.raises(BadImage):
        resolve()


@pytest.mark.parametrize("cut", [1, 511, 700, 2600, 3200, 4200])
def test_cut_off(place, cut):
    write_archive("image", docker_members())
    with open("image", "r+b") as file:
        file.truncate(cut)
    with pytest.raises(BadImage):
        resolve()


def test_an_archive_that_changed_since(place):
    write_archive("image", docker_members())
    base = resolve()
    with open("image", "r+b") as file:
        file.truncate(800)
    with pytest.raises(FetchError):
        fetch(base)
    os.unlink("image")
    with pytest.raises(BadImage, match="can't read"):
        fetch(base)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_sizes_that_are_bombs_are_not_read(place, pack):
    info = tarfile.TarInfo("big")
    info.size = 1 << 45
    (place / "image").write_bytes(pack(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))
    began = time.monotonic()
    with pytest.raises(BadImage, match="absurdly large"):
        resolve()
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    (place / "image").write_bytes(pack(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))
    with pytest.raises(BadImage, match="absurd size"):
        resolve()
    assert time.monotonic() - began < 1


def test_more_files_than_an_image_has(place, monkeypatch):
    monkeypatch.setattr(image_archive, "_MEMBERS", 50)
    write_archive("image", [*docker_members(), *[(f"f{number}", b"") for number in range(50)]])
    with pytest.raises(BadImage, match="more than 50 files"):
        resolve()


def test_what_is_no_archive(place):
    (place / "image").mkdir()
    with pytest.raises(NotFound):
        resolve()
    (place / "image").rmdir()
    os.mkfifo("image")
    with pytest.raises(NotFound):
        resolve()
    os.unlink("image")
    for data in (b"", b"x" * 5000, b"\x1f\x8b", bytes(10240)):
        (place / "image").write_bytes(data)
        with pytest.raises(BadImage):
            resolve()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_no_damage_makes_a_traceback(place, kind, pack):
    chance = random.Random(11)
    write_archive("image", (docker_members if kind == "docker-archive" else oci_members)())
    whole = pack((place / "image").read_bytes())
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (place / "image").write_bytes(data[: chance.randrange(1, len(data) * 3)])
        try:
            fetch(resolve(kind))
        except FetchError:
            refused += 1
    assert refused > 100
