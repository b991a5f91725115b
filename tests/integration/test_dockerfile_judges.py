"""Dockerfiles built here and by BuildKit in a Docker engine: the same trees and the same configs."""

import io
import json
import os
import subprocess  # the judges are no part of the program
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dockerfile_cases import CASES, Case, make_context
from places import scratch
from program import REPO, obuilder

pytestmark = [pytest.mark.needs("root", "overlay", "docker"), pytest.mark.xdist_group("docker")]

_BUSYBOX = ("sh", "cat", "ls", "id", "stat", "mkdir", "chmod", "chown", "ln", "rm", "touch", "env",
            "grep", "sort", "pwd", "echo", "test", "true", "false", "sed", "tr", "find")  # fmt: skip
_ENGINE = {".dockerenv", "dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf",
           "etc/mtab", "dev/console", "dev/pts", "dev/shm"}  # fmt: skip


def make_root(place: str) -> None:
    """A root with a shell, users, directories and links to copy over."""
    for name in ("bin", "etc", "tmp", "there", "dev", "proc", "sys"):
        os.makedirs(f"{place}/{name}")
    os.chmod(f"{place}/tmp", 0o1777)
    os.chmod(f"{place}/there", 0o750)
    with open("/usr/bin/busybox", "rb") as file, open(f"{place}/bin/busybox", "wb") as made:
        made.write(file.read())
    os.chmod(f"{place}/bin/busybox", 0o755)
    for name in _BUSYBOX:
        os.symlink("busybox", f"{place}/bin/{name}")
    texts = {
        "passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\ntwelve:x:12:13::/:\n",
        "group": "root:x:0:\napp:x:1001:\nteam:x:77:app,twelve\nmore:x:78:app\n",
    }
    for name, text in texts.items():
        Path(place, "etc", name).write_text(text)
        os.chmod(f"{place}/etc/{name}", 0o644)
    Path(place, "file").write_text("file\n")
    os.symlink("there", f"{place}/to-there")
    os.symlink("/file", f"{place}/to-file")


class Judge:
    """A Docker engine with the base images, and a store that has them too."""

    def __init__(self, place: str, host: str) -> None:
        self.place, self.host = place, host
        self.context = f"{place}/context"
        self.store = f"overlayfs:{place}/store"
        os.mkdir(self.context)
        make_context(self.context)
        os.mkdir(f"{place}/root")
        make_root(f"{place}/root")
        tar = subprocess.run(
            ["tar", "-C", f"{place}/root", "-c", "."], capture_output=True, check=True
        )
        self.docker("import", "--change", "ENV BASE=based PATH=/bin", "-", "base", data=tar.stdout)
        for name, text in (
            ("told", 'FROM base\nUSER app\nWORKDIR /tmp/w\nENV FROM_BASE=told\nCMD ["x"]\n'),
            ("trigger", "FROM base\nONBUILD COPY a.txt /on\nONBUILD ENV SET=by\nONBUILD RUN echo $SET >> /on\n"),
        ):  # fmt: skip
            self.docker("build", "-q", "-t", name, "-", data=text.encode())
        for name in ("base", "told", "trigger"):
            path = f"{place}/{name}.tar"
            self.docker("save", "-o", path, name)
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
            "build", "-q", "--network=none", "-f", file, *options, self.context
        ).decode().strip()  # fmt: skip
        config = json.loads(self.docker("inspect", image))[0]
        box = self.docker("create", image, "/none").decode().strip()
        try:
            return self.docker("export", box), config
        finally:
            self.docker("rm", box)

    def built_here(self, file: str, *options: str) -> tuple[bytes, dict[str, Any]]:
        common = (*options, "--network=none", "-f", file)
        path = f"{self.place}/result.tar"
        done = obuilder("build", *common, "-o", f"tar:{path}", self.context, cwd=REPO,
                        OBUILDER_STORE=self.store)  # fmt: skip
        assert done.status == 0, done.out + done.err
        options = tuple(o for o in options if o != "--target")
        if "--target" in common:
            return Path(path).read_bytes(), {}
        planned = obuilder("plan", "--json", *common, self.context, cwd=REPO,
                           OBUILDER_STORE=self.store)  # fmt: skip
        assert planned.status == 0, planned.err
        return Path(path).read_bytes(), json.loads(planned.out)["config"]


@pytest.fixture(scope="module")
def judge(docker_engine: Any) -> Iterator[Judge]:
    with scratch("/var/tmp") as place:
        yield Judge(place, docker_engine.host)


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
        "healthcheck": [health.get(k, 0) for k in ("Test", "Interval", "Timeout", "Retries")] if health else [],
        "onbuild": inner.get("OnBuild") or [],
        "author": config["Author"],
    }  # fmt: skip


def ours(config: dict[str, Any]) -> dict[str, object]:
    health = config.get("healthcheck") or {}
    return {
        "env": sorted("=".join(pair) for pair in config.get("env", ())),
        "user": config.get("user", ""),
        "workdir": config.get("workdir") or "/",
        "shell": config.get("shell", []),
        "entrypoint": config.get("entrypoint", []),
        "cmd": config.get("cmd", []),
        "labels": dict(config.get("labels", ())),
        "ports": config.get("ports", []),
        "volumes": config.get("volumes", []),
        "stop_signal": config.get("stop_signal", ""),
        "healthcheck": [health.get(k, 0) for k in ("test", "interval", "timeout", "retries")] if health else [],
        "onbuild": config.get("onbuild", []),
        "author": config.get("author", ""),
    }  # fmt: skip


JUDGED = {name: case for name, case in CASES.items() if not case.newer}


@pytest.mark.parametrize("name", JUDGED)
def test_buildkit_makes_the_same(judge: Judge, name: str) -> None:
    case: Case = JUDGED[name]
    file = f"{judge.place}/{name}.Dockerfile"
    Path(file).write_text(case.text)
    theirs, their_config = judge.built_by_docker(file, *case.options)
    mine, my_config = judge.built_here(file, *case.options)
    assert different(tree(mine), tree(theirs)) == {}
    if my_config:
        assert different(ours(my_config), told(their_config)) == {}


def different(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, by name: ours and theirs."""
    names = sorted({*mine, *theirs})
    pairs = {name: (mine.get(name), theirs.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


ALIKE = (
    "files", "over-directories", "globs", "chown", "stages", "scratch",
    "variables", "shell", "exec-form", "continued", "workdir", "add-archives", "target",
    "everything", "onbuild",
)  # fmt: skip
"""Where buildah, which copies in its own way, makes of a Dockerfile what BuildKit makes."""


class Buildah:
    """buildah with a place of its own, and the base images of a judge."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.place = judge, f"{judge.place}/buildah"
        policy = f"{judge.place}/policy.json"
        Path(policy).write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.policy = policy
        for name in ("base", "told", "trigger"):
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
            "--network=none", "-f", file, *options, self.judge.context,
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
    file = f"{judge.place}/{name}.Dockerfile"
    Path(file).write_text(case.text)
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
