"""Images that tests make, with the programs of others."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess  # programs of the tests
import tarfile

import pytest

from obuilder.oci.platforms import host_platform


@pytest.fixture(scope="session")
def layout(tmp_path_factory):
    """What `make_layout` makes, for reading only. Needs umoci and root."""
    return make_layout(str(tmp_path_factory.mktemp("images")))


def run(*argv, **variables):
    """Run a program to its end: what it said. CalledProcessError with what it complained of."""
    done = subprocess.run(argv, capture_output=True, check=False, env={**os.environ, **variables})
    assert done.returncode == 0, f"{argv}: {done.stderr.decode(errors='replace')}"
    return done.stdout


def make_layout(directory):
    """An OCI layout, by umoci as root: images `one` and `two` on one layer with a static shell.

    `one` has `/made`, owned by 5:6, `/linked` to it, `/absolute` to `/etc/base`, and no `/gone`; `two`
    has `/other`.
    """
    image = f"{directory}/layout"
    run("umoci", "init", "--layout", image)
    run("umoci", "new", "--image", f"{image}:base")
    with _bundle(image, "base", "base", directory) as root:
        os.makedirs(f"{root}/bin")
        os.makedirs(f"{root}/etc")
        shutil.copy("/usr/bin/busybox", f"{root}/bin/busybox")
        for name in ("sh", "cat", "ls", "id", "stat"):
            os.symlink("busybox", f"{root}/bin/{name}")
        _write(f"{root}/etc/base", "base")
        _write(f"{root}/gone", "gone")
    with _bundle(image, "base", "one", directory) as root:
        _write(f"{root}/made", "made")
        os.chown(f"{root}/made", 5, 6)
        os.setxattr(f"{root}/made", "user.note", b"kept")
        os.link(f"{root}/made", f"{root}/linked")
        os.symlink("/etc/base", f"{root}/absolute")
        os.unlink(f"{root}/gone")
    with _bundle(image, "base", "two", directory) as root:
        _write(f"{root}/other", "other")
    run("umoci", "config", "--image", f"{image}:one", "--config.env", "A=b=c")
    return image


def layout_of(layout, layer):
    """An OCI layout with an image `it` of one layer, a file compressed by gzip that nobody looks into."""
    kinds, blobs = "application/vnd.oci.image.", f"{layout}/blobs/sha256"
    os.makedirs(blobs)

    def put(data, kind, **more):
        digest = hashlib.sha256(data).hexdigest()
        with open(f"{blobs}/{digest}", "wb") as file:
            file.write(data)
        return {"mediaType": kinds + kind, "digest": f"sha256:{digest}", "size": len(data), **more}

    with open(layer, "rb") as file:
        described = put(file.read(), "layer.v1.tar+gzip")
    rootfs = {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}
    about = {"architecture": str(host_platform().architecture), "os": "linux", "rootfs": rootfs}
    config = put(json.dumps(about).encode(), "config.v1+json")
    said = {"schemaVersion": 2, "mediaType": kinds + "manifest.v1+json", "config": config}
    names = {"org.opencontainers.image.ref.name": "it"}
    manifest = put(
        json.dumps({**said, "layers": [described]}).encode(), "manifest.v1+json", annotations=names
    )
    _write(f"{layout}/index.json", json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    _write(f"{layout}/oci-layout", '{"imageLayoutVersion": "1.0.0"}')


def make_odd(layout):
    """Add an image with all that a layer can say to a layout: `odd`, on `one`."""
    with _bundle(layout, "one", "odd", os.path.dirname(layout)) as root:
        os.makedirs(f"{root}/d/e")
        for name in (b"plain", b"odd\xc3\xa9 \xe2\x82\xac", b"-rf", b"x" * 200):
            with open(os.path.join(os.fsencode(root), b"d", name), "wb") as file:
                file.write(name * 1000)
        os.link(f"{root}/d/plain", f"{root}/d/e/hard")
        os.symlink("../nowhere", f"{root}/d/dangling")
        os.mkfifo(f"{root}/d/fifo", 0o640)
        os.chmod(f"{root}/d/plain", 0o6750)
        os.chown(f"{root}/d/plain", 1000, 1001)
        os.chmod(f"{root}/d", 0o1777)
        os.setxattr(f"{root}/d/-rf", "user.note", b"\x01 any")
        os.setxattr(f"{root}/d/-rf", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))  # fmt: skip
        with open(f"{root}/d/sparse", "wb") as file:
            file.truncate(1 << 20)
            file.seek(500_000)
            file.write(b"in the middle")
        shutil.rmtree(f"{root}/etc")
        os.makedirs(f"{root}/etc/new")
        os.utime(f"{root}/d/e", ns=(1, 1_234_567_890_123_456_789))
        os.utime(f"{root}/d/dangling", ns=(1, 999_999_999), follow_symlinks=False)


class _bundle:  # noqa: N801 - reads like a function
    def __init__(self, image, source, tag, directory):
        self.image, self.source, self.tag = image, source, tag
        self.path = f"{directory}/bundle-{tag}"

    def __enter__(self):
        run("umoci", "unpack", "--image", f"{self.image}:{self.source}", self.path)
        return f"{self.path}/rootfs"

    def __exit__(self, *exc):
        run("umoci", "repack", "--image", f"{self.image}:{self.tag}", self.path)
        shutil.rmtree(self.path)


def _write(path, text):
    with open(path, "w") as file:
        file.write(text)


def skopeo(source, target, *options):
    """Copy an image with skopeo."""
    run("skopeo", "--insecure-policy", "copy", *options, source, target)


def save_as_docker_25(layout, tags, path):
    """What `docker save` writes since version 25: an OCI layout of plain layers, and a list."""
    with open(f"{layout}/index.json") as file:
        manifests = json.load(file)["manifests"]
    blobs, index, listed = {}, [], []

    def put(data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def blob(item):
        with open(f"{layout}/blobs/sha256/{item['digest'].partition(':')[2]}", "rb") as file:
            return file.read()

    kinds = "application/vnd.oci.image."
    for tag in tags:
        (found,) = [
            m for m in manifests if m["annotations"]["org.opencontainers.image.ref.name"] == tag
        ]
        manifest = json.loads(blob(found))
        config = put(blob(manifest["config"]))
        layers = [put(gzip.decompress(blob(layer))) for layer in manifest["layers"]]
        described = put(
            json.dumps(
                {
                    "schemaVersion": 2, "mediaType": kinds + "manifest.v1+json",
                    "config": {"mediaType": kinds + "config.v1+json", **config},
                    "layers": [{"mediaType": kinds + "layer.v1.tar", **layer} for layer in layers],
                }
            ).encode()
        )  # fmt: skip
        names = {"io.containerd.image.name": f"docker.io/library/{tag}:latest",
                 "org.opencontainers.image.ref.name": "latest"}  # fmt: skip
        index.append({"mediaType": kinds + "manifest.v1+json", **described, "annotations": names})
        paths = ["blobs/sha256/" + item["digest"].partition(":")[2] for item in (config, *layers)]
        listed.append({"Config": paths[0], "RepoTags": [f"{tag}:latest"], "Layers": paths[1:]})
    documents = {
        "index.json": {"schemaVersion": 2, "manifests": index},
        "manifest.json": listed,
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
    }
    members = {**blobs, **{name: json.dumps(value).encode() for name, value in documents.items()}}
    return write_archive(path, sorted(members.items()))


def write_archive(path, members):
    """A tar archive of names and content, in that order; a str is where a symlink leads."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path
