"""Dockerfiles built here and by BuildKit in a Docker engine: the same trees and the same configs."""

import io
import json
import os
import shutil
import subprocess  # the judges are no part of the program
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildkit import BuildKit, buildkit
from dockerfile_cases import CASES, Case
from dockerfile_world import DERIVED, World, world
from obuilder import Settings
from obuilder.engine.cached import look
from obuilder.engine.dockerfiles import convert
from obuilder.engine.inputs import Contexts
from obuilder.oci.platforms import host_platform
from obuilder.spec.dockerfile import parse
from obuilder.spec.from_dockerfile import Options
from obuilder.spec.image import ImageConfig
from places import scratch
from program import REPO, obuilder

pytestmark = [pytest.mark.needs("root", "overlay", "docker"), pytest.mark.xdist_group("docker")]

_HEALTH = ("Test", "Interval", "Timeout", "StartPeriod", "Retries")
_ENGINE = {".dockerenv", "dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf",
           "etc/mtab", "dev/console", "dev/pts", "dev/shm"}  # fmt: skip


class Judge:
    """A Docker engine with the base images, and a store that has them too."""

    def __init__(self, world: World, host: str) -> None:
        self.world, self.place, self.host = world, world.place, host
        self.store = f"overlayfs:{self.place}/store"
        tar = subprocess.run(
            ["tar", "-C", f"{self.place}/root", "-c", "."], capture_output=True, check=True
        )
        Path(f"{self.place}/base-root.tar").write_bytes(tar.stdout)
        self.docker("import", "--change", "ENV BASE=based PATH=/bin", "-", "base", data=tar.stdout)
        for name, text in DERIVED.items():
            self.docker("build", "-q", "-t", name, "-", data=text.encode())
        for name in ("base", *DERIVED):
            path = f"{self.place}/{name}.tar"
            self.docker("save", "-o", path, f"{name}:latest")  # others may have tags, too
            done = obuilder("image", "import", name, f"docker-archive:{path}", cwd=REPO,
                            OBUILDER_STORE=self.store)  # fmt: skip
            assert done.status == 0, done.err

    def docker(self, *argv: str, data: bytes = b"") -> bytes:
        env = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1", "HOME": self.place}
        done = subprocess.run(
            ["/usr/bin/docker", *argv], input=data, capture_output=True, env=env, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def built_by_docker(self, file: str, *options: str) -> tuple[bytes, dict[str, Any]]:
        image = self.docker(
            "build", "-q", "--network=none", f"--secret=id=tok,src={self.world.secret}",
            f"--ssh=default={self.world.agent}", "-f", file, *options, self.world.context,
        ).decode().strip()  # fmt: skip
        config = json.loads(self.docker("inspect", image))[0]
        box = self.docker("create", image, "/none").decode().strip()
        try:
            return self.docker("export", box), config
        finally:
            self.docker("rm", box)

    def built_here(self, file: str, *options: str) -> tuple[bytes, ImageConfig]:
        path = f"{self.place}/result.tar"
        done = obuilder("build", *options, "--network=none", "-f", file, "-o", f"tar:{path}",
                        f"--secret=tok:{self.world.secret}", f"--ssh=default={self.world.agent}",
                        self.world.context, cwd=REPO, OBUILDER_STORE=self.store)  # fmt: skip
        assert done.status == 0, done.out + done.err
        return Path(path).read_bytes(), self.planned(file, *options)

    def planned(self, file: str, *options: str) -> ImageConfig:
        """What the result says of itself."""
        pairs = list(zip(options[::2], options[1::2], strict=True))
        args = tuple(tuple(value.split("=", 1)) for name, value in pairs if name == "--build-arg")
        told = Options(
            host_platform(), args=args, target=dict(pairs).get("--target", ""), network=("none",)
        )  # fmt: skip
        settings = Settings(store=self.store)
        spec = convert(parse(Path(file).read_bytes(), file=file), told, settings).spec
        plan, _ = look(spec, Contexts(self.world.context), settings)
        return plan.contexts[plan.result].config

    def added(self, data: bytes) -> dict[str, list[object]]:
        """What a tree has and the base has not, with all contents that are text."""
        found = tree(data)
        for member, entry in tree(Path(f"{self.place}/base-root.tar").read_bytes()).items():
            if found.get(member) == entry:
                del found[member]
        return {
            name: [_kind(kind), *rest, _text(content)]
            for name, (kind, *rest, content) in found.items()
        }


def _text(content: object) -> object:
    assert isinstance(content, bytes)
    try:
        return None if b"\0" in content else content.decode()
    except UnicodeDecodeError:
        return None


def _kind(kind: object) -> str:
    return {tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink"}.get(kind, str(kind))


@pytest.fixture(scope="module")
def judge(docker_engine: Any) -> Iterator[Judge]:
    with scratch("/var/tmp") as place, world(place) as ready:
        yield Judge(ready, docker_engine.host)


@pytest.fixture(scope="module")
def newer(judge: Judge) -> Iterator[BuildKit | None]:
    if "RENEW_GOLDEN" in os.environ and shutil.which("buildkitd"):
        with buildkit(judge.world) as running:
            yield running
    else:
        yield None


def tree(data: bytes) -> dict[str, tuple[object, ...]]:
    """What a tar archive holds, by name: type, permissions, owner, link, content."""
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            name = (
                member.name.strip("./") if member.name in (".", "./") else member.name.rstrip("/")
            )
            name = name.removeprefix("./")
            if not name or name in _ENGINE or name.split("/")[0] in ("dev", "proc", "sys"):
                continue
            kind = "file" if member.isreg() or member.islnk() else member.type
            mode = 0o777 if member.issym() else member.mode & 0o7777
            content = b""
            if member.isreg() or member.islnk():
                file = tar.extractfile(member)
                content = b"" if file is None else file.read()
            target = member.linkname if member.issym() else ""
            found[name] = (kind, oct(mode), member.uid, member.gid, target, content)
    if not any(name.startswith("etc/") for name in found):
        found.pop("etc", None)  # the engine makes it, to put files of its own there
    return found


def told(config: dict[str, Any]) -> dict[str, object]:
    """An image's config as Docker tells it, in our words."""
    inner = config["Config"]
    health = inner.get("Healthcheck") or {}
    return {
        "env": sorted(inner["Env"] or []),
        "user": inner["User"],
        "workdir": inner["WorkingDir"] or "/",
        "shell": inner.get("Shell") or [],
        "entrypoint": inner["Entrypoint"] or [],
        "cmd": inner["Cmd"] or [],
        "labels": inner["Labels"] or {},
        "ports": sorted(inner.get("ExposedPorts") or {}),
        "volumes": sorted(inner.get("Volumes") or {}),
        "stop_signal": inner.get("StopSignal", ""),
        "healthcheck": [health.get(k, 0) for k in _HEALTH] if health else [],
        "onbuild": inner.get("OnBuild") or [],
        "author": config["Author"],
    }  # fmt: skip


def ours(config: ImageConfig) -> dict[str, object]:
    health = config.healthcheck
    return {
        "env": sorted("=".join(pair) for pair in config.env),
        "user": config.user,
        "workdir": config.workdir or "/",
        "shell": list(config.shell),
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "labels": dict(config.labels),
        "ports": list(config.ports),
        "volumes": list(config.volumes),
        "stop_signal": config.stop_signal,
        "healthcheck": []
        if health is None
        else [list(health.test), health.interval, health.timeout, health.start_period, health.retries],
        "onbuild": list(config.onbuild),
        "author": config.author,
    }  # fmt: skip


GOLDEN = Path(__file__).parents[1] / "golden/buildkit"
OLDER = [name for name, case in CASES.items() if not case.newer]
NEWER = [name for name, case in CASES.items() if case.newer]


@pytest.mark.parametrize("name", OLDER)
def test_buildkit_makes_the_same(judge: Judge, name: str) -> None:
    case: Case = CASES[name]
    file = judge.world.written(name, case)
    theirs, their_config = judge.built_by_docker(file, *case.options)
    mine, my_config = judge.built_here(file, *case.options)
    assert different(tree(mine), tree(theirs)) == {}
    assert different(ours(my_config), told(their_config)) == {}


@pytest.mark.parametrize("name", NEWER)
def test_a_newer_buildkit_made_the_same(judge: Judge, newer: BuildKit | None, name: str) -> None:
    """Of `tests/golden/buildkit`: what is not in the base, and the config."""
    case = CASES[name]
    file = judge.world.written(name, case)
    mine, config = judge.built_here(file, *case.options)
    recorded = GOLDEN / f"{name}.json"
    if newer is not None:
        theirs, their_config = newer.built(file, case)
        recorded.write_text(_lines(judge.added(theirs), told(their_config)))
    theirs_now = json.loads(recorded.read_text())
    assert different(judge.added(mine), theirs_now["tree"]) == {}
    assert different(ours(config), theirs_now["config"]) == {}


def _lines(entries: dict[str, list[object]], config: dict[str, object]) -> str:
    """JSON with a line for each entry of a tree."""
    rows = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
    return f'{{"config": {json.dumps(config)},\n"tree": {{\n' + ",\n".join(rows) + "\n}}\n"


def different(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, by name: ours and theirs."""
    names = sorted({*mine, *theirs})
    pairs = {name: (mine.get(name), theirs.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


ALIKE = ("over-directories", "globs", "chown", "stages", "variables", "add-archives", "onbuild")
"""Some where buildah, which copies in its own way, makes of a Dockerfile what BuildKit makes."""


class Buildah:
    """buildah with a place of its own, and the base images of a judge."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.place = judge, f"{judge.place}/buildah"
        policy = f"{judge.place}/policy.json"
        Path(policy).write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.policy = policy
        for name in ("base", *DERIVED):
            self.run(
                "pull", f"--signature-policy={policy}", f"docker-archive:{judge.place}/{name}.tar"
            )

    def run(self, *argv: str) -> bytes:
        common = ("--root", f"{self.place}/root", "--runroot", f"{self.place}/run",
                  "--storage-driver", "vfs")  # fmt: skip
        env = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": "/var/tmp"}
        done = subprocess.run(
            ["buildah", *common, *argv], capture_output=True, check=False, env=env
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def built(self, file: str, *options: str) -> bytes:
        image = self.run(
            "bud", "-q", f"--signature-policy={self.policy}", "--pull-never", "--layers=false",
            "--network=none", "-f", file, *options, self.judge.world.context,
        ).decode().split()[-1]  # fmt: skip
        box = self.run("from", "--pull-never", image).decode().strip()
        root = self.run("mount", box).decode().strip()
        return subprocess.run(
            ["tar", "-C", root, "-c", "."], capture_output=True, check=True
        ).stdout


@pytest.fixture(scope="module")
def buildah(judge: Judge) -> Buildah:
    return Buildah(judge)


@pytest.mark.needs("buildah")
@pytest.mark.parametrize("name", ALIKE)
def test_buildah_makes_the_same_tree(judge: Judge, buildah: Buildah, name: str) -> None:
    case = CASES[name]
    file = judge.world.written(name, case)
    mine, _ = judge.built_here(file, *case.options)
    theirs = tree(buildah.built(file, *case.options))
    assert different(_plain(tree(mine)), _plain(theirs)) == {}


def _plain(found: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """A tree without the bits that buildah drops (setuid, setgid) and the /run that it leaves."""
    return {
        name: (kind, oct(int(str(mode), 8) & 0o1777), *rest)
        for name, (kind, mode, *rest) in found.items()
        if name != "run"
    }
