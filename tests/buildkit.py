"""A newer BuildKit than Debian's engine has, asked once for what `tests/golden/buildkit` holds.

RENEW_GOLDEN=1 with `buildkitd` and `buildctl` on the PATH asks again; without it nobody needs them.
"""

import json
import os
import subprocess  # BuildKit is no part of the program
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dockerfile_cases import Case
from dockerfile_world import DERIVED, World
from obuilder.testing.engines import in_namespaces


class BuildKit:
    """A running BuildKit, with the base images of a world."""

    def __init__(self, world: World, socket: str, images: str) -> None:
        self.world, self.socket, self.images = world, socket, images

    def built(self, file: str, case: Case) -> tuple[bytes, dict[str, Any]]:
        """A case's tree, as a tar archive, and its image's config."""
        folder, _, name = file.rpartition("/")
        words = [
            "--opt", f"filename={name}", "--local", f"dockerfile={folder}",
            "--local", f"context={self.world.context}", "--opt", "force-network-mode=none",
            "--secret", f"id=tok,src={self.world.secret}", "--ssh", f"default={self.world.agent}",
            "--oci-layout", f"images={self.images}",
        ]  # fmt: skip
        for image, digest in self._digests().items():
            words += ["--opt", f"context:{image}=oci-layout://images@{digest}"]
        for option, value in zip(case.options[::2], case.options[1::2], strict=True):
            words += ["--opt", {"--build-arg": f"build-arg:{value}"}.get(option, f"target={value}")]
        path = f"{self.world.place}/by-buildkit"
        self._build(words, f"type=oci,dest={path}.oci")
        self._build(words, f"type=tar,dest={path}.tar")
        with open(f"{path}.tar", "rb") as file_:
            return file_.read(), _config(f"{path}.oci")

    def _digests(self) -> dict[str, str]:
        with open(f"{self.images}/index.json", encoding="utf-8") as file:
            found = json.load(file)["manifests"]
        return {
            each["annotations"]["org.opencontainers.image.ref.name"]: each["digest"]
            for each in found
        }

    def _build(self, words: list[str], output: str) -> None:
        done = subprocess.run(
            ["buildctl", "--addr", self.socket, "build", "--frontend", "dockerfile.v0",
             "--output", output, *words],
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode(errors="replace")


@contextmanager
def buildkit(world: World) -> Iterator[BuildKit]:
    """Start it, with everything below the world's place."""
    place = f"{world.place}/buildkit"
    os.mkdir(place)
    for name in ("base", *DERIVED):
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "-q",
             f"docker-archive:{world.place}/{name}.tar", f"oci:{place}/images:{name}"],
            check=True,
        )  # fmt: skip
    socket = f"{place}/socket"
    with open(f"{place}/log", "wb") as log:
        server = subprocess.Popen(
            in_namespaces(
                f"exec buildkitd --root {place}/root --addr unix://{socket} --oci-worker=true "
                "--containerd-worker=false --oci-worker-binary runc --oci-worker-net host"
            ),
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            while not os.path.exists(socket):
                assert server.poll() is None, "buildkitd ended"
                time.sleep(0.1)
            yield BuildKit(world, f"unix://{socket}", f"{place}/images")
        finally:
            server.kill()
            server.wait()


def _config(path: str) -> dict[str, Any]:
    """The config of the one image in an OCI archive, with the names that `docker inspect` has."""
    with tarfile.open(path) as tar:

        def read(name: str) -> Any:
            file = tar.extractfile(name)
            assert file is not None
            return json.load(file)

        found = read("index.json")
        while "config" not in found:
            digest = found["manifests"][0]["digest"]
            found = read("blobs/" + digest.replace(":", "/"))
        config = read("blobs/" + found["config"]["digest"].replace(":", "/"))
    usual = {"Env": [], "User": "", "WorkingDir": "", "Entrypoint": [], "Cmd": [], "Labels": {}}
    return {"Config": {**usual, **config.get("config", {})}, "Author": config.get("author", "")}
