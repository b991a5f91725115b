"""What a test needs of the machine, probed by doing it.

    @pytest.mark.needs("root", "btrfs")

A test whose needs are not met is skipped with the probe's reason; with OBUILDER_TEST_MUST_HAVE (a
list with commas, or `all`) naming the capability, it fails instead, so that a machine that should
have it can't hide that it has not. Import `pytest_runtest_setup` into a conftest.py to use it.
"""

import ctypes
import functools
import os
import shutil
import sys
import tempfile

import pytest

from obuilder.errors import ObuilderError
from obuilder.system import linux, process
from obuilder.system.namespaces import enter
from obuilder.system.process import capture
from obuilder.testing.engines import try_engine


@functools.cache
def probe(capability: str) -> str | None:
    """Why the machine lacks it; None if it has it. ValueError for a name nobody knows."""
    if capability == "root":
        return None if os.geteuid() == 0 else "not root"
    if capability == "namespaces":
        return _attempt_namespaces()
    if capability == "tmpfs":
        return _attempt_namespaces() or _attempt_filesystem("tmpfs")
    if capability == "overlay":
        return _attempt_namespaces() or _attempt_filesystem("overlay")
    if capability in ("btrfs", "xfs"):
        return (
            probe("root")
            or _attempt_filesystem(capability)
            or _program(f"mkfs.{capability}")
            or (None if os.path.exists("/dev/loop-control") else "no loop devices")
        )
    if capability == "zfs":
        return probe("root") or _program("zpool") or _attempt_zfs()
    if capability == "docker":
        return probe("root") or _program("dockerd") or try_engine("docker")
    if capability == "podman":
        return probe("root") or _program("podman") or try_engine("podman")
    if capability == "binfmt":
        table = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc"
        return _attempt_program(
            "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", table
        )
    if capability == "registry":
        return _attempt_program("docker-registry", "--version") or _program("openssl")
    if capability in ("skopeo", "umoci", "chromium"):
        return _attempt_program(capability, "--version")
    if capability in (
        "crun", "runc", "runsc", "newuidmap", "mmdebstrap", "gcc", "useradd", "git", "ssh-agent",
        "buildah", "zsh", "fish", "systemd-analyze",
    ):  # fmt: skip
        return _program(capability)
    if capability == "old-nats":
        return _attempt_program(
            os.environ.get("OBUILDER_OLD_NATS", "no old nats-server"), "--version"
        )
    if capability == "rpmbuild":
        return _program("rpmbuild") or _program("rpm") or _program("db_load")
    if capability == "system-python":
        return _system_python()
    if capability == "fuse":
        return probe("root") or _attempt_fuse()
    if capability == "libseccomp":
        return _library("libseccomp.so.2")
    raise ValueError(f"nobody knows how to probe {capability!r}")


def _program(name: str) -> str | None:
    return None if shutil.which(name) else f"{name} is not installed"


def _attempt_fuse() -> str | None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse"
    status, said = process.capture([sys.executable, "-c", "import obuilder.redirect.mount"])
    return said.decode(errors="replace").strip().splitlines()[-1] if status else None


def _system_python() -> str | None:
    """A Python that every user can run and make environments with."""
    program = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    status, said = process.capture(["/usr/bin/python3", "-c", program])
    return f"/usr/bin/python3 can't: {said.decode(errors='replace')}" if status else None


def _library(name: str) -> str | None:
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return str(error)
    return None


def _attempt_program(*argv: str) -> str | None:
    status, said = capture(argv)
    return None if status == 0 else f"{argv[0]} does not run: {os.fsdecode(said).strip()}"


def _attempt_namespaces() -> str | None:
    try:
        enter()
    except ObuilderError as error:
        return error.message
    return None


def _attempt_filesystem(kind: str) -> str | None:
    try:
        os.close(linux.fsopen(kind))
    except OSError as error:
        return f"the kernel has no {kind}: {error.strerror}"
    return None


def _attempt_zfs() -> str | None:
    from obuilder.testing.zfs_pool import zfs_pool

    try:
        with tempfile.TemporaryDirectory() as folder, zfs_pool(folder, 64 << 20):
            return None
    except ObuilderError as error:
        return error.message


def unmet(capabilities: tuple[str, ...]) -> str | None:
    """The first reason why a test with these needs can't run; pytest's failure if it must."""
    must = os.environ.get("OBUILDER_TEST_MUST_HAVE", "").split(",")
    for capability in capabilities:
        reason = probe(capability)
        if reason is not None:
            if capability in must or "all" in must:
                pytest.fail(f"this machine must have {capability}: {reason}", pytrace=False)
            return f"needs {capability}: {reason}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The hook: skips, or fails, tests whose `needs` are not met."""
    for marker in item.iter_markers("needs"):
        reason = unmet(marker.args)
        if reason is not None:
            pytest.skip(reason)
