"""Images in layouts and archives that other tools wrote."""

import os
import shutil

import anyio
import pytest

import images
from obuilder.backends.fetchers import Sources, fetcher_for
from obuilder.backends.protocols import HostDir
from obuilder.engine.index import Index
from obuilder.engine.inputs import SingleStats, drive
from obuilder.errors import BadImage, DigestMismatch, NotFound
from obuilder.oci.platforms import host_platform
from obuilder.system import tree
from obuilder.values import IdMap

pytestmark = pytest.mark.needs("root", "umoci")


def resolve(name, stats=None):
    return drive(fetcher_for(name, Sources(stats=stats)).resolve(name, host_platform()))


def fetch(base, root):
    root.mkdir()

    async def run():
        for index in range(len(base.layers)):
            await fetcher_for(base.name).fetch(
                base, index, into=HostDir(str(root)), idmap=IdMap(1000, 65536), output=print
            )

    anyio.run(run)


def has_all_of_one(root):
    """Whether it is what `make_layout` says of `one`: whiteouts, links, owners, attributes."""
    assert sorted(os.listdir(root)) == ["absolute", "bin", "etc", "linked", "made"]
    assert os.path.samefile(root / "made", root / "linked")
    assert os.readlink(root / "absolute") == "/etc/base"
    assert os.getxattr(root / "made", "user.note") == b"kept"
    status = os.stat(root / "made")
    assert (status.st_uid, status.st_gid) == (1005, 1006)
    assert (root / "etc/base").read_text() == "base"


def test_layers_of_another_tool(layout, tmp_path):
    base = resolve(f"oci:{layout}:one")
    assert len(base.layers) == 2
    assert ("A", "b=c") in base.config.env
    fetch(base, tmp_path / "r")
    has_all_of_one(tmp_path / "r")


def test_missing_tags_say_what_there_is(layout):
    with pytest.raises(NotFound) as caught:
        resolve(f"oci:{layout}:three")
    assert caught.value.hint == "it has: base, one, two"


def test_content_that_is_not_the_configs(layout, tmp_path):
    copy = shutil.copytree(layout, tmp_path / "copy")
    base = resolve(f"oci:{copy}:one")
    shutil.copy(base.layers[1].source, base.layers[0].source)
    with pytest.raises(DigestMismatch):
        fetch(base, tmp_path / "r")


def test_a_layer_that_is_not_there(layout, tmp_path):
    copy = shutil.copytree(layout, tmp_path / "copy")
    os.unlink(resolve(f"oci:{copy}:one").layers[0].source)
    with pytest.raises(BadImage, match="lacks a layer"):
        resolve(f"oci:{copy}:one")


@pytest.fixture(scope="module")
def archives(layout, tmp_path_factory):
    """The image `one` in every kind of archive, made by the tools that people have."""
    place = tmp_path_factory.mktemp("archives")
    images.skopeo(f"oci:{layout}:one", f"oci-archive:{place}/oci.tar:one")
    images.skopeo(f"oci:{layout}:one", f"docker-archive:{place}/docker.tar:app:one")
    shutil.copy(place / "docker.tar", place / "docker:odd.tar")
    images.run("tar", "cf", f"{place}/packed.tar", "-C", layout, ".")
    images.run("zstd", "-q", f"{place}/docker.tar")
    images.save_as_docker_25(layout, ["two", "one"], f"{place}/new.tar")
    images.run("gzip", "-k", "-S", ".gz", f"{place}/new.tar")
    return place


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize(
    "name",
    [
        "oci-archive:oci.tar",
        "oci-archive:oci.tar:one",
        "oci-archive:oci.tar:@0",
        "oci-archive:packed.tar:one",
        "oci-archive:new.tar:one:latest",
        "docker-archive:docker.tar",
        "docker-archive:docker.tar:one",
        "docker-archive:docker.tar:docker.io/library/app:one",
        "docker-archive:docker:odd.tar",
        "docker-archive:docker:odd.tar:app:one",
        "docker-archive:docker.tar.zst",
        "docker-archive:new.tar:one",
        "docker-archive:new.tar:@1",
        "docker-archive:new.tar.gz:one",
    ],
)
def test_archives_of_other_tools(archives, name, layout, tmp_path, monkeypatch):
    monkeypatch.chdir(archives)
    base = resolve(name)
    monkeypatch.chdir("/")
    same = resolve(f"oci:{layout}:one")
    assert [layer.digest for layer in base.layers] == [layer.digest for layer in same.layers]
    assert (base.platform, base.config) == (same.platform, same.config)
    fetch(base, tmp_path / "r")
    has_all_of_one(tmp_path / "r")


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize(
    ("name", "error", "hint"),
    [
        ("oci-archive:missing.tar:x", NotFound, None),
        ("oci-archive:oci.tar:x", NotFound, "it has: one"),
        ("oci-archive:new.tar", NotFound, "docker.io/library/one:latest"),
        ("oci-archive:docker.tar", BadImage, "docker-archive:FILE"),
        ("docker-archive:docker.tar:app:two", NotFound, "it has: docker.io/library/app:one"),
        ("docker-archive:new.tar", NotFound, "two:latest, one:latest"),
        ("docker-archive:new.tar:@2", NotFound, "@0 to @1"),
        ("docker-archive:oci.tar", BadImage, "oci-archive:FILE"),
        ("docker-archive:", NotFound, "tar:FILE"),
    ],
)
def test_what_is_not_there_says_what_is(archives, name, error, hint, monkeypatch):
    monkeypatch.chdir(archives)
    with pytest.raises(error) as caught:
        resolve(name)
    assert (caught.value.hint is None) if hint is None else (hint in caught.value.hint)


def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("name", ["oci-archive:oci.tar", "docker-archive:new.tar.gz:one"])
def test_an_unchanged_archive_is_not_read_again(archives, name, monkeypatch):
    monkeypatch.chdir(archives)
    index = Index(None)
    stats = SingleStats(index)
    monkeypatch.setattr(tree, "_RACY_NS", 1 << 62)
    first = resolve(name, stats)
    assert index.stats("") == {}  # so new a file may change without a sign of it
    monkeypatch.setattr(tree, "_RACY_NS", 0)
    began = bytes_read()
    assert resolve(name, stats) == first
    read = bytes_read()
    assert resolve(name, stats) == first
    assert read - began > 500_000
    assert bytes_read() - read < 5_000
    os.utime(name.split(":")[1], (5, 5))
    assert resolve(name, stats) == first
    (remembered,) = index.stats("")
    assert os.fsencode(name.split(":")[1]) in remembered
    index.close()
