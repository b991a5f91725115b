"""Images in layouts that other tools wrote."""

import os
import shutil
import subprocess

import anyio
import pytest

from obuilder.backends.fetchers import fetcher_for
from obuilder.backends.protocols import HostDir
from obuilder.engine.inputs import drive
from obuilder.errors import DigestMismatch, NotFound
from obuilder.oci.reference import host_platform
from obuilder.values import IdMap


def resolve(name):
    return drive(fetcher_for(name).resolve(name, host_platform()))


@pytest.fixture
def layout(tmp_path):
    if shutil.which("umoci") is None or os.geteuid() != 0:
        pytest.skip("the layout is made by umoci, as root")
    image = f"{tmp_path}/image"

    def umoci(*arguments):
        subprocess.run(["umoci", *arguments], check=True, capture_output=True)

    umoci("init", "--layout", image)
    umoci("new", "--image", f"{image}:one")
    for number, (make, gone) in enumerate([("low", None), ("high", "low")]):
        bundle = f"{tmp_path}/bundle{number}"
        umoci("unpack", "--image", f"{image}:one", bundle)
        with open(f"{bundle}/rootfs/{make}", "w") as file:
            file.write(make)
        os.chown(f"{bundle}/rootfs/{make}", 5, 6)
        if gone:
            os.unlink(f"{bundle}/rootfs/{gone}")
        umoci("repack", "--image", f"{image}:one", bundle)
    umoci("config", "--image", f"{image}:one", "--config.env", "A=b=c")
    return image


def fetch(base, root):
    root.mkdir()

    async def run():
        for index in range(len(base.layers)):
            await fetcher_for(base.name).fetch(
                base, index, into=HostDir(str(root)), idmap=IdMap(1000, 65536), output=print
            )

    anyio.run(run)


def test_layers_of_another_tool(layout, tmp_path):
    base = resolve(f"oci:{layout}:one")
    assert len(base.layers) == 2
    assert ("A", "b=c") in base.config.env
    fetch(base, tmp_path / "r")
    assert os.listdir(tmp_path / "r") == ["high"]
    status = os.stat(tmp_path / "r/high")
    assert (status.st_uid, status.st_gid) == (1005, 1006)


def test_missing_tags_say_what_there_is(layout):
    with pytest.raises(NotFound) as caught:
        resolve(f"oci:{layout}:two")
    assert "one" in caught.value.hint


def test_content_that_is_not_the_configs(layout, tmp_path):
    base = resolve(f"oci:{layout}:one")
    shutil.copy(base.layers[1].source, base.layers[0].source)
    with pytest.raises(DigestMismatch):
        fetch(base, tmp_path / "r")
