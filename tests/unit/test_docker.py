"""What an engine is told and sent, without one: Linux and Windows containers, images, mount points."""

import io
import json
import tarfile

import anyio
import anyio.lowlevel
import pytest

from obuilder.backends.docker import archives
from obuilder.backends.docker.containers import (
    INIT,
    Bind,
    Guest,
    body,
    features,
    network,
    windows_path,
)
from obuilder.backends.docker.engine import beside
from obuilder.backends.docker.images import NewLayer, archive
from obuilder.backends.docker.model import Change, Found, Image, Info, decoded
from obuilder.backends.docker.mountpoints import left_behind
from obuilder.backends.docker.names import Names
from obuilder.backends.docker.streams import pieces
from obuilder.backends.protocols import Command, EngineVolume, HostDir, Mount
from obuilder.backends.registry import parse_store
from obuilder.errors import SandboxError, Unsupported, UsageError
from obuilder.oci.config import Settings
from obuilder.system.sessions import open_session
from obuilder.values import ROOT, Limits, NamedUser, Platform, Policy, UnixUser

LINUX = Guest(init="/usr/bin/tini-static", ca_bundle="/etc/ssl/cert.pem", seccomp="{}")
WINDOWS = Guest("windows")
IMAGE = Image("sha256:i", config=Settings(env=["PATH=/bin", "A=1"], entrypoint=["/run"], cmd=["x"]))


def told(guest, policy=Policy(), *, binds=(), groups=(), **changes):  # noqa: B008 - frozen
    given = {"argv": ("/bin/sh", "-c", "true"), "cwd": "/src", "user": ROOT}
    command = Command(**{**given, **changes})
    return body(command, IMAGE, guest, policy, labels={"l": "1"}, binds=binds, groups=groups)


def test_a_step_on_linux_has_little_power_and_no_network():
    found = told(LINUX, user=UnixUser(1000, 100), env=(("A", "b=c"), ("B", "")))
    assert found["Image"] == "sha256:i"
    assert found["Entrypoint"] == [INIT, "--", "/bin/sh", "-c", "true"]
    assert (found["User"], found["WorkingDir"], found["Hostname"]) == (
        "1000:100", "/src", "builder",
    )  # fmt: skip
    assert found["Env"] == ["A=b=c", "B=", "PATH", "HOSTNAME"], "what is not asked for is unset"
    host = found["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert not {"MKNOD", "NET_RAW", "SYS_ADMIN"} & set(host["CapAdd"])
    assert host["SecurityOpt"] == ["no-new-privileges=false", "seccomp={}"]
    assert host["LogConfig"] == {"Type": "none"}
    assert not host["Init"]
    assert host["Mounts"] == [
        {"Type": "bind", "Source": LINUX.init, "Target": INIT, "ReadOnly": True}
    ]
    assert "Isolation" not in host


def test_limits_policies_and_the_hosts_network():
    limits = Limits(memory=1 << 20, cpus=1.5, pids=9)
    policy = Policy(no_new_privileges=True, runtime="crun")
    found = told(LINUX, policy, limits=limits, network=("host",), env=(("GIT_SSL_CAINFO", "/x"),))
    host = found["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (
        1 << 20, 1 << 20, 1_500_000_000, 9,
    )  # fmt: skip
    assert (host["NetworkMode"], host["Runtime"]) == ("host", "crun")
    assert host["SecurityOpt"][0] == "no-new-privileges=true"
    assert [mount["Source"] for mount in host["Mounts"]] == [LINUX.init, LINUX.ca_bundle]
    for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT"):
        assert f"{name}=/dev/.ca-certificates.crt" in found["Env"]
    assert "GIT_SSL_CAINFO=/x" in found["Env"]


def test_an_engine_that_has_other_files_brings_its_own_init():
    found = told(Guest())
    assert found["HostConfig"]["Init"]
    assert found["Entrypoint"] == ["/bin/sh", "-c", "true"]
    assert found["HostConfig"]["Mounts"] == []


def test_volumes_and_secrets_are_mounted():
    mounts = (Mount(EngineVolume("v"), "/cache"), Mount(EngineVolume("w"), "/w", readonly=True))
    host = told(Guest(), mounts=mounts, binds=[Bind("/dev/shm/s", "/run/s")])["HostConfig"]
    assert host["Mounts"] == [
        {
            "Type": "volume", "Source": "v", "Target": "/cache", "ReadOnly": False,
            "VolumeOptions": {"NoCopy": True},
        },
        {
            "Type": "volume", "Source": "w", "Target": "/w", "ReadOnly": True,
            "VolumeOptions": {"NoCopy": True},
        },
        {"Type": "bind", "Source": "/dev/shm/s", "Target": "/run/s", "ReadOnly": True},
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["/", "/proc/x", "/dev", "//sys/fs"])
def test_nothing_is_mounted_where_a_step_has_its_own(target):
    with pytest.raises(SandboxError, match="nothing can be mounted"):
        told(LINUX, mounts=(Mount(EngineVolume("v"), target),))


def test_an_engine_mounts_its_own_volumes_only():
    with pytest.raises(SandboxError, match="volumes of its own"):
        told(LINUX, mounts=(Mount(HostDir("/etc"), "/cache"),))


def test_users_on_linux_are_numbers_with_the_groups_they_have_besides():
    found = told(LINUX, user=UnixUser(7, 8), groups=(9, 10))
    assert (found["User"], found["HostConfig"]["GroupAdd"]) == ("7:8", ["9", "10"])
    with pytest.raises(Unsupported, match="nobody has looked up who 'app' is"):
        told(LINUX, user=NamedUser("app"))


def test_a_step_on_windows():
    found = told(
        WINDOWS, Policy(isolation="process"), argv=("cmd", "/S", "/C", "dir"), cwd="C:/src",
        user=NamedUser("ContainerUser"), limits=Limits(memory=1 << 30, cpus=2, pids=9),
        network=("host",), mounts=(Mount(EngineVolume("v"), "C:/cache"),),
        env=(("PATH", "C:\\Windows"),),
    )  # fmt: skip
    assert found["Entrypoint"] == ["cmd", "/S", "/C", "dir"]
    assert (found["User"], found["WorkingDir"]) == ("ContainerUser", "C:/src")
    assert found["Env"] == ["PATH=C:\\Windows", "A"]
    host = found["HostConfig"]
    assert (host["Isolation"], host["NetworkMode"]) == ("process", "nat")
    assert (host["Memory"], host["NanoCpus"]) == (1 << 30, 2_000_000_000)
    assert host["Mounts"][0]["Target"] == "C:/cache"
    assert not {"PidsLimit", "MemorySwap", "CapDrop", "SecurityOpt", "Init"} & set(host)


def test_paths_and_users_of_linux_on_windows():
    found = told(WINDOWS, argv=("/tools/sh", "-c"), cwd="/src")
    assert found["Entrypoint"] == ["C:/tools/sh", "-c"]
    assert (found["WorkingDir"], found["User"]) == ("C:/src", "ContainerAdministrator")
    assert windows_path("d:\\x") == "d:\\x"
    assert network("", WINDOWS) == "none"
    assert (network("corp", WINDOWS), network("host", LINUX)) == ("corp", "host")
    with pytest.raises(Unsupported, match="by name"):
        told(WINDOWS, user=UnixUser(1000, 1000))


def test_what_an_engine_of_windows_can_do():
    said = features(
        Info(os_type="windows", architecture="x86_64"), ["nat", "none"], WINDOWS, secrets=True
    )
    assert said.platforms == (Platform("windows", "amd64"),)
    assert said.limits == {"seconds", "memory", "cpus"}
    assert said.networks == {"", "host", "nat"}
    assert said.policies == {"isolation"}
    assert said.named_users
    assert not said.users
    assert not said.secrets
    for path in ("C:/", "C:/src", "d:/x"):
        assert said.holds(path)
    assert not said.holds("/src")


def test_what_an_engine_of_linux_can_do():
    info = Info(os_type="linux", architecture="x86_64", memory_limit=True)
    said = features(info, ["bridge", "none"], LINUX, secrets=True)
    assert said.platforms == (Platform("linux", "amd64"),)
    assert said.limits == {"seconds", "memory"}
    assert said.networks == {"", "host", "bridge"}
    assert said.policies >= {"runtime", "no_new_privileges", "fast_sync"}
    assert "isolation" not in said.policies
    assert said.holds("/src")
    assert not features(info, [], Guest(), secrets=False).secrets


# --- images ----------------------------------------------------------------------------------------


def test_an_archive_of_an_image_has_its_new_layer_alone(tmp_path):
    content = b"x" * 700
    with open(tmp_path / "layer", "w+b") as file:
        file.write(content)
        layer = NewLayer.of(file)
        labels = {"obuilder.session": "s", "theirs": "1"}
        image = Image.of(["sha256:a"], Platform("linux", "arm", "v7"), Settings(labels=labels))
        first = b"".join(archive("localhost/x:1", image, layer))
        assert b"".join(archive("localhost/x:1", image, layer)) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        parts = {member.name: tar.extractfile(member).read() for member in tar}
    (listed,) = json.loads(parts.pop("manifest.json"))
    config = json.loads(parts.pop(listed["Config"]))
    assert listed["RepoTags"] == ["localhost/x:1"]
    assert [parts[place] for place in listed["Layers"]] == [bytes(1024), content]
    assert config["rootfs"] == {"type": "layers", "diff_ids": ["sha256:a", layer.digest]}
    assert (config["os"], config["architecture"], config["variant"]) == ("linux", "arm", "v7")
    assert config["config"]["Labels"] == {"theirs": "1"}, "what marks containers is no image's"


def test_an_image_of_windows_stays_of_its_version():
    said = b"""{"Id": "sha256:w", "Architecture": "amd64", "Os": "windows", "OsVersion": "10.0.20348.1",
        "RootFS": {"Type": "layers", "Layers": ["sha256:a"]}, "Config": {"User": "ContainerUser"}}"""
    with tarfile.open(fileobj=io.BytesIO(b"".join(archive("x:1", decoded(said, Image))))) as tar:
        (name,) = (name for name in tar.getnames() if name not in ("manifest.json", "0/layer.tar"))
        config = json.load(tar.extractfile(name))
    assert (config["os"], config["os.version"]) == ("windows", "10.0.20348.1")
    assert config["config"]["User"] == "ContainerUser"


def test_modes_come_in_gos_bits():
    assert Found(0x80000000 | 1 << 20 | 0o755).permissions == 0o1755
    assert Found(0x80000000 | 1 << 23 | 1 << 22).permissions == 0o6000
    assert Found(0x80000000).is_directory
    assert Found(1 << 27).is_symlink


def test_streams_come_in_pieces_of_any_size():
    def frame(stream, data):
        return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4) + data

    sent = frame(1, b"out") + frame(2, b"err\0\xff") + frame(1, b"")
    for size in (1, 5, 9, 100):
        left = [sent[at : at + size] for at in range(0, len(sent), size)]

        class Answer:
            def receive(self, _, left=left):
                return left.pop(0) if left else b""

        assert list(pieces(Answer())) == [(1, b"out"), (2, b"err\0\xff"), (1, b"")]


@pytest.mark.anyio
async def test_of_errors_side_by_side_the_first_is_raised_and_tells_the_others():
    async def beaten():
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("the second")

    with pytest.raises(ValueError, match="the first") as raised:  # noqa: PT012
        async with beside(beaten):
            await anyio.lowlevel.checkpoint()
            raise ValueError("the first")
    assert raised.value.__notes__ == ["and then: the second"]

    async def first():
        raise ValueError("of the other")

    with pytest.raises(ValueError, match="of the other"):
        async with beside(first):
            await anyio.sleep_forever()

    ended = False

    async def other():
        nonlocal ended
        try:
            await anyio.sleep_forever()
        finally:
            ended = True

    async with beside(other):
        await anyio.lowlevel.checkpoint()
    assert ended


@pytest.mark.parametrize(
    ("paths", "apart"),
    [
        (("src/a", "/usr"), True), ((".",), False), (("/",), False), (("etc/x",), False),
        (("usr", "dev"), False), (("etcetera",), True),
    ],
)  # fmt: skip
def test_where_containers_show_more_than_their_images(paths, apart):
    assert archives.told_apart(paths) == apart


# --- mount points ----------------------------------------------------------------------------------


def changes(**kinds):
    names = {"A": 1, "C": 0, "D": 2}
    return [Change(path, names[kind]) for kind, paths in kinds.items() for path in paths.split()]


@pytest.mark.parametrize(
    ("places", "found", "cwd", "gone"),
    [
        (["/srv/c/x"], changes(A="/srv /srv/c /srv/c/x"), "/", ["/srv"]),
        (["/srv/c/x"], changes(A="/srv /srv/c /srv/c/x /srv/y"), "/", ["/srv/c"]),
        (["/srv/c/x"], changes(A="/srv/c /srv/c/x", C="/srv"), "/", ["/srv/c"]),
        (["/srv/c/x"], changes(A="/srv/c/x /srv/c/z", C="/srv /srv/c"), "/", ["/srv/c/x"]),
        (["/a/b", "/a/c"], changes(A="/a /a/b /a/c"), "/", ["/a"]),
        (["/a/b", "/a/b/c"], changes(A="/a /a/b /a/b/c"), "/", ["/a"]),
        (["/was/there"], changes(C="/was", A="/new"), "/", []),
        (["/src/cache"], changes(A="/src /src/cache"), "/src", ["/src/cache"]),
        (["/src"], changes(A="/src"), "/src/deep", []),
        (["/s"], changes(A="/s /s2/x /s2"), "/", ["/s"]),
    ],
)
def test_only_what_mounting_made_is_taken_away(places, found, cwd, gone):
    assert left_behind(places, found, cwd) == gone


# --- names -----------------------------------------------------------------------------------------


def test_a_copy_of_a_store_is_another_store(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    session = open_session(str(one))
    ours = Names.of_store(str(one), session.name)
    assert Names.of_store(str(one), session.name) == ours
    two.mkdir()
    (two / "sandbox-id").write_text((one / "sandbox-id").read_text())
    assert Names.of_store(str(two), session.name).repository != ours.repository
    assert ours.image("t").startswith("localhost/obuilder-")
    assert ours.image("t").islower()
    session.close()


def test_a_store_in_an_engine_is_a_path():
    assert parse_store("docker:/srv/x/") == ("docker", "/srv/x")
    for wrong in ("docker:", "docker:mine", "docker"):
        with pytest.raises(UsageError, match="needs an absolute path"):
            parse_store(wrong)
