"""Results as images: what we write, others read, load and run; what is there is not sent again."""

import base64
import json
import os
import subprocess  # judges are programs of others
import tarfile
from contextlib import suppress

import pytest

import images
from places import opened
from program import Program, shell, until
from registries import Gate, running
from trees import differences

pytestmark = pytest.mark.needs("root", "overlay", "crun", "skopeo", "umoci")

HOSTILE = r"""
mkdir -p '/h/new
line' /h/many /h/gone /h/again /h/opaque/in && echo x > '/h/new
line/a
b' && printf y > "/h/$(printf '\377\376')" && mkfifo -m 622 /h/fifo && ln -s ../../../etc /h/out &&
echo set > /h/setuid && chmod 6755 /h/setuid && chown 5:6 /h/setuid && echo a > /h/many/a &&
mkdir /h/other && ln /h/many/a /h/other/b && ln /h/many/a /h/other/c && truncate -s 3M /h/sparse &&
echo end >> /h/sparse && echo g > /h/gone/g && echo o > /h/opaque/in/o && echo k > /h/again/k &&
touch -d @1000000000 /h/old && chmod 1777 /h/many
"""
CHANGED = r"""
rm -r /h/gone && rm -r /h/opaque && mkdir /h/opaque && echo new > /h/opaque/n && rm /h/again/k &&
rmdir /h/again && echo file > /h/again && rm /h/old && mkdir /h/old && echo more >> /h/other/b &&
ln /h/setuid /h/aaa && chmod 700 '/h/new
line' && chmod 644 /h/sparse && ln -sf nowhere /h/out && touch -d @5 /h/fifo
"""


NAME = "7" * 200
HALF = "/".join([NAME] * 15)
DEEP = f"mkdir -p /deep/{HALF} /other/{HALF} && echo deep > /other/{HALF}/bottom && mv /other/{NAME} /deep/{HALF}/"
"""A path of 6000 characters, made of two that the kernel takes."""
CLIMB = f"cd /deep/{HALF} && cat {HALF}/bottom"
LINKED = "echo more >> /h/other/b &&"
"""An overlay gives such a file content of its own, as a file of one name."""


def pieces(text: str) -> str:
    return shell(text.strip())


@pytest.fixture
def out(program: Program) -> str:
    path = os.path.join(program.temporary, "out")
    os.mkdir(path)
    return path


def manifest(source: str) -> dict:
    return json.loads(images.run("skopeo", "inspect", "--raw", *insecure(source), source))


def config(source: str) -> dict:
    return json.loads(images.run("skopeo", "inspect", "--config", *insecure(source), source))


def insecure(source: str) -> list[str]:
    return ["--tls-verify=false"] if source.startswith("docker://") else []


def layers(source: str) -> list[str]:
    return [layer["digest"] for layer in manifest(source)["layers"]]


def unpacked(layout: str, target: str) -> str:
    images.run("umoci", "unpack", "--image", layout, target)
    return f"{target}/rootfs"


def whole_seconds(root: str) -> None:
    """Drop what no layer tells: parts of seconds."""
    for _folder, _, names, fd in os.fwalk(root, topdown=False):
        for name in (*names, "."):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            time = status.st_mtime_ns // 10**9 * 10**9
            os.utime(name, ns=(time, time), dir_fd=fd, follow_symlinks=False)


# --- what is in an image -------------------------------------------------------------------------


@pytest.mark.needs("btrfs")
@pytest.mark.parametrize("kind", ["overlayfs", "btrfs"])
def test_a_hostile_root_is_the_same_after_umoci(kind) -> None:
    with opened(kind) as place:
        program = Program(place.directory, kind=place.kind)
        out = program.temporary
        program.spec(pieces(HOSTILE), pieces(CHANGED))
        program.ok("build", "-o", f"directory:{out}/mine", "-o", f"oci:{out}/layout:steps")
        program.ok("build", "-o", f"oci:{out}/layout:one", "--squash")
        whole_seconds(f"{out}/mine")
        for tag, count in (("steps", 3), ("one", 2)):
            assert len(layers(f"oci:{out}/layout:{tag}")) == count
            theirs = unpacked(f"{out}/layout:{tag}", f"{out}/{tag}")
            assert differences(f"{out}/mine", theirs) == []


def test_a_layer_holds_a_steps_changes_and_nothing_else(program: Program, out: str) -> None:
    program.spec(
        shell("mkdir -p /a/b && echo 1 > /a/b/one && echo 2 > /a/two && chown -R 3:4 /a"),
        shell("chown -R 3:4 /a && rm /a/two && echo 3 > /a/b/three"),
    )
    program.ok("build", "-o", f"oci:{out}/l")
    last = layers(f"oci:{out}/l:latest")[-1]
    with tarfile.open(f"{out}/l/blobs/{last.replace(':', '/')}") as tar:
        names = [member.name for member in tar if member.name not in (".", "etc")]
    assert names == ["a", "a/b", "a/b/three", "a/.wh.two"]


@pytest.mark.needs("btrfs")
def test_two_stores_of_two_kinds_give_one_digest() -> None:
    found = set()
    steps = [pieces(HOSTILE), pieces(CHANGED.replace(LINKED, "")), "(copy (src copied) (dst /c/))"]
    steps += [shell(f"echo {n} > /n{n}; chown -R 1:1 /h/new*; rm -f /n{n - 2}") for n in range(18)]
    for kind in ("overlayfs", "btrfs"):
        with opened(kind) as place:
            program = Program(place.directory, kind=place.kind)
            program.file("copied", kind[:1].encode() and b"content")
            program.spec(*steps, "(env A b)")
            program.variables["SOURCE_DATE_EPOCH"] = "1700000000"
            out = program.temporary
            program.ok(
                "build", "--reproducible", "-o", f"oci:{out}/l", "-o", f"oci-archive:{out}/a"
            )
            source = f"oci:{out}/l:latest"
            assert config(source)["created"] == "2023-11-14T22:13:20Z"
            with open(f"{out}/a", "rb") as file:
                found.add((images.run("skopeo", "inspect", "--raw", source), file.read()))
    assert len(found) == 1


def test_paths_longer_than_the_kernel_takes(program: Program, out: str) -> None:
    program.spec(shell(DEEP), shell(f"cd /deep/{HALF} && echo more >> {HALF}/bottom"))
    program.ok("build", "-o", f"oci:{out}/l")
    program.use("other")
    program.spec(shell(CLIMB), base=f"oci:{out}/l")
    assert "deep\nmore\n" in program.ok("build")


@pytest.mark.needs("gcc")
def test_capabilities_of_files_are_for_root_of_any_machine(program: Program, out: str) -> None:
    """The kernel notes whose root gave them, in a step's namespace: that stays here."""
    source = os.path.join(program.context, "set")
    code = (
        "#include <sys/xattr.h>\nint main(void) { unsigned v[5] = {0x02000001, 1 << 10, 0, 0, 0};"
        ' return setxattr("/capable", "security.capability", v, sizeof v, 0) != 0; }'
    )
    subprocess.run(
        ["gcc", "-static", "-x", "c", "-o", source, "-"], input=code.encode(), check=True
    )
    program.spec(
        shell("cp /bin/busybox /capable"), "(copy (src set) (dst /set))", shell("/set && rm /set")
    )
    program.ok("build", "-o", f"oci:{out}/l")
    root = unpacked(f"{out}/l:latest", f"{out}/root")
    bits = (1 << 10).to_bytes(4, "little") + bytes(12)
    assert os.getxattr(f"{root}/capable", "security.capability") == b"\x01\0\0\x02" + bits


def test_an_export_that_is_killed_leaves_nothing(program: Program, out: str) -> None:
    program.spec(shell("head -c 100000000 /dev/urandom > /big"))
    result = key(program)
    before = sorted(os.listdir(program.store))
    process = program.start("export", result, f"oci-archive:{out}/image")
    place = f"/proc/{process.pid}/fd"

    def packs() -> bool:
        with suppress(FileNotFoundError):  # closed meanwhile
            return any(
                path.startswith(program.store) and path.endswith("(deleted)")
                for path in (os.readlink(f"{place}/{fd}") for fd in os.listdir(place))
            )
        return False

    until(packs, "a scratch file in the store")
    process.kill()
    process.communicate()
    assert os.listdir(out) == []
    program.ok("export", result, f"oci-archive:{out}/image")
    assert sorted(os.listdir(program.store)) == before
    images.skopeo(f"oci-archive:{out}/image", f"oci:{out}/l:it")


def test_settings_are_as_docker_would_have_them(program: Program, out: str) -> None:
    program.file(
        "Dockerfile",
        b'FROM scratch\nENV A=b PATH=/bin\nLABEL one="1 2"\nWORKDIR /w\nCOPY Dockerfile .\nUSER 5:6\n'
        b'EXPOSE 80 53/udp\nVOLUME /data\nSTOPSIGNAL SIGINT\nHEALTHCHECK --interval=3s CMD ["/x"]\n'
        b'ONBUILD RUN true\nSHELL ["/sh", "-c"]\nENTRYPOINT ["/e"]\nCMD ["c", "d"]\n',
    )
    program.ok("build", "-o", f"oci:{out}/l:d")
    name = manifest(f"oci:{out}/l:d")["config"]["digest"].replace(":", "/")
    with open(f"{out}/l/blobs/{name}") as file:
        found = json.load(file)
    assert found["config"] == {
        "User": "5:6", "Env": ["PATH=/bin", "A=b"], "WorkingDir": "/w", "Entrypoint": ["/e"],
        "Cmd": ["c", "d"], "Labels": {"one": "1 2"}, "Volumes": {"/data": {}}, "StopSignal": "SIGINT",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Shell": ["/sh", "-c"],
        "OnBuild": ["RUN true"], "Healthcheck": {"Test": ["CMD", "/x"], "Interval": 3000000000},
    }  # fmt: skip
    assert len(found["rootfs"]["diff_ids"]) == len(found["history"])


# --- who reads it --------------------------------------------------------------------------------


@pytest.fixture
def built(program: Program) -> Program:
    program.spec(
        shell("echo made > /made && rm -r /home"), "(user (uid 3) (gid 4))", "(workdir /srv)",
        "(entrypoint /bin/sh -c)", '(cmd "id -u; pwd; cat /made; ls -d /home")',
    )  # fmt: skip
    program.ok("build")
    return program


RUN = b"3\n/srv\nmade\n"


@pytest.mark.needs("docker", "registry")
@pytest.mark.xdist_group("docker")
@pytest.mark.parametrize("way", ["archive", "pipe", "daemon", "registry"])
def test_docker_loads_and_runs_it(built: Program, out: str, docker_engine, registry, way) -> None:
    built.variables["DOCKER_HOST"] = docker_engine.host
    name = f"exported/{way}"
    if way == "daemon":
        done = built.run("build", "-o", f"docker-daemon:{name}", "-t", f"{name}:more")
        assert "Loaded image: exported/daemon:latest" in done.err, done
    elif way == "archive":
        built.ok("build", "-o", f"docker-archive:{out}/d:{name}")
        docker(docker_engine, "load", "-i", f"{out}/d")
    elif way == "registry":
        name = f"{registry.host}/{name}"
        built.ok("build", "-o", f"docker://{name}")
        docker(docker_engine, "pull", "-q", name)
    else:
        process = built.start(
            "export", key(built), f"docker-archive:-:{name}", stdout=subprocess.PIPE
        )
        docker(docker_engine, "load", stdin=process.stdout)
        process.stdout.close()
        process.stderr.close()
        assert process.wait() == 0
    ran = docker(docker_engine, "run", "--rm", "--network=host", name, check=False)
    assert ran.stdout == RUN, ran
    if way == "daemon":
        assert docker(docker_engine, "image", "inspect", f"{name}:more").stdout
        program = built
        program.spec(shell("cat /made"), base=f"docker-daemon:{name}")
        program.ok("build", "-o", f"docker-archive:{out}/again")
        with tarfile.open(f"{out}/again") as tar:
            (listed,) = json.load(tar.extractfile("manifest.json"))
            again = json.load(tar.extractfile(listed["Config"]))["rootfs"]["diff_ids"]
        said = json.loads(docker(docker_engine, "image", "inspect", name).stdout)
        assert again[: len(said[0]["RootFS"]["Layers"])] == said[0]["RootFS"]["Layers"]


@pytest.mark.needs("docker")
@pytest.mark.xdist_group("docker")
def test_files_alone_run_as_well(built: Program, out: str, docker_engine) -> None:
    built.ok("build", "-o", f"tar:{out}/tar", "-o", f"directory:{out}/root")
    name = docker(docker_engine, "import", f"{out}/tar").stdout.decode().strip()
    words = ("run", "--rm", "--network=host", name, "/bin/sh", "-c", "cat /made")
    assert docker(docker_engine, *words).stdout == b"made\n"
    assert images.run("chroot", f"{out}/root", "/bin/sh", "-c", "cat /made") == b"made\n"


@pytest.mark.needs("podman")
@pytest.mark.xdist_group("docker")
def test_podman_loads_and_runs_it(built: Program, out: str, podman_engine) -> None:
    built.ok(
        "build", "-o", f"docker-archive:{out}/d:exported/podman:1", "-o", f"oci-archive:{out}/o:one"
    )
    podman = ("podman", "--url", podman_engine.host)
    # Without limits of its own it asks for some that not every root may set.
    limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--network=none")
    for name in ("d", "o"):
        loaded = images.run(*podman, "load", "-q", "-i", f"{out}/{name}").decode().split()[-1]
        words = [*podman, "run", "--rm", *limits, loaded]
        ran = subprocess.run(words, capture_output=True, check=False)
        assert ran.stdout == RUN, ran


def docker(engine, *argv, check=True, **streams):
    streams = {"stdin": subprocess.DEVNULL, **streams}
    done = subprocess.run(
        ["docker", "--host", engine.host, *argv], capture_output=True, check=False, **streams
    )
    assert done.returncode == 0 or not check, done
    return done


def key(program: Program) -> str:
    return program.ok("build", "-q").strip()


@pytest.mark.needs("buildah")
@pytest.mark.parametrize("how", ["oci gzip", "oci zstd", "oci-archive zstd", "docker-archive gzip"])
def test_buildah_takes_it(built: Program, out: str, how) -> None:
    form, compression = how.split()
    built.ok("build", "-o", f"{form}:{out}/image", f"--compression={compression}")
    with open(f"{out}/policy.json", "w") as file:
        json.dump({"default": [{"type": "insecureAcceptAnything"}]}, file)
    env = {"BUILDAH_ISOLATION": "chroot", "TMPDIR": out}

    def buildah(*argv: str) -> bytes:
        # It makes a name of the path, and not every path is one.
        there = ("sh", "-c", 'cd "$0" && exec "$@"', out, "buildah")
        places = ("--root", f"{out}/root", "--runroot", f"{out}/run", "--storage-driver", "vfs")
        return images.run(*there, *places, *argv, **env)

    source = f"{form}:image" + (":latest" if form == "oci" else "")
    box = buildah("from", "--signature-policy=policy.json", source).decode().split()[-1]
    assert buildah("run", box, "cat", "/made") == b"made\n"
    said = json.loads(buildah("inspect", box))
    assert said["OCIv1"]["config"]["User"] == "3:4"
    buildah("rm", "-a")


def test_a_layout_keeps_what_else_is_in_it_and_can_be_built_on(built: Program, out: str) -> None:
    one = key(built)
    built.ok("export", one, f"oci:{out}/l:one")
    built.ok("export", one, f"oci:{out}/l:two", "--squash", "-t", "host.example/app:3")
    built.ok("export", one, f"oci:{out}/l:one", "--annotation", "a=b")
    with open(f"{out}/l/index.json") as file:
        names = [
            m["annotations"]["org.opencontainers.image.ref.name"]
            for m in json.load(file)["manifests"]
        ]
    assert sorted(names) == ["host.example/app:3", "one", "two"]
    assert manifest(f"oci:{out}/l:one")["annotations"] == {"a": "b"}
    before = layers(f"oci:{out}/l:one")
    for form in ("oci", "oci-archive"):
        if form == "oci-archive":
            images.skopeo(f"oci:{out}/l:one", f"oci-archive:{out}/a:one")
        base = f"oci:{out}/l:one" if form == "oci" else f"oci-archive:{out}/a:one"
        built.spec(shell("cat /made"), base=base)
        done = built.run("build", "-o", f"oci:{out}/{form}-next", "--compression=zstd")
        assert done.status == 0, done
        assert layers(f"oci:{out}/{form}-next:latest")[:-1] == before


# --- registries ----------------------------------------------------------------------------------


@pytest.fixture
def docker_config(program: Program):
    """Writes what Docker knows of users."""

    def write(**auths: str) -> None:
        entries = {
            name: {"auth": base64.b64encode(word.encode()).decode()} for name, word in auths.items()
        }
        program.file("config.json", json.dumps({"auths": entries}).encode())

    program.variables["DOCKER_CONFIG"] = program.context
    return write


@pytest.mark.needs("registry")
def test_what_is_in_a_registry_is_not_sent_again(built: Program, out: str, registry) -> None:
    with Gate(registry.host) as gate:
        first = built.run(
            "build", "-o", f"docker://{gate.host}/new/app:1", "-t", f"{gate.host}/new/app:2"
        )
        assert first.status == 0, first
        assert first.err.count("pushed ") == 2
        sent = gate.sent
        assert sent > 100_000
        built.ok("export", key(built), f"docker://{gate.host}/new/app:3")
        assert gate.sent == sent
        assert gate.count("POST") == 3  # two layers and a config, once
        built.spec(shell("echo made > /made && rm -r /home"), shell("echo more"), "(label x y)")
        built.ok("build", "-o", f"docker://{gate.host}/new/app:4")
        assert gate.sent - sent < 2000
    source = f"docker://{registry.host}/new/app"
    assert manifest(f"{source}:1") == manifest(f"{source}:2") == manifest(f"{source}:3")
    images.skopeo(f"{source}:1", f"oci:{out}/back:it", "--src-tls-verify=false")
    assert os.path.exists(unpacked(f"{out}/back:it", f"{out}/root") + "/made")
    built.use("other")
    built.spec(shell("cat /made"), base=f"{registry.host}/new/app:4")
    assert "made\n" in built.ok("build")


@pytest.mark.needs("registry")
def test_a_base_images_layers_stay_what_they_are(program: Program, out: str, registry) -> None:
    base = f"docker://{registry.host}/app:one"
    with Gate(registry.host) as gate:
        program.spec(shell("echo more > /more"), base=f"{gate.host}/app:one")
        program.ok("build", "-o", f"docker://{gate.host}/lent:1", "-o", f"oci:{out}/l")
        mounts = [path for method, path, _ in gate.asked if method == "POST" and "mount=" in path]
        assert len(mounts) == 2
        assert "from=app" in mounts[0]
        assert gate.count("PUT", "/blobs/") == 2  # a layer and a config: the others are lent
    for made in (f"docker://{registry.host}/lent:1", f"oci:{out}/l:latest"):
        assert layers(made)[:2] == layers(base)
        env = config(made)["config"]["Env"]
        assert env == config(base)["config"]["Env"]
    root = unpacked(f"{out}/l:latest", f"{out}/root")
    assert os.getxattr(f"{root}/made", "user.note") == b"kept"
    assert os.stat(f"{root}/made").st_uid == 5


@pytest.mark.needs("registry")
def test_where_the_base_can_not_be_had_its_layers_are_made_anew(program, out, layout) -> None:
    with running() as registry:
        name = registry.push(f"oci:{layout}:one", "app:one")
        before = layers(f"docker://{name}")
        program.spec(shell("true"), base=name)
        program.ok("build")
    done = program.run("build", "-o", f"docker-archive:{out}/d")
    assert done.status == 0, done
    assert f"layers of {name} are made anew" in done.err
    images.skopeo(f"docker-archive:{out}/d", f"oci:{out}/l:it")
    assert layers(f"oci:{out}/l:it")[:2] != before
    root = unpacked(f"{out}/l:it", f"{out}/root")
    assert sorted(os.listdir(root))[:3] == ["absolute", "bin", "etc"]
    assert not os.path.exists(f"{root}/gone")
    assert os.stat(f"{root}/made").st_nlink == 2


@pytest.mark.needs("registry")
def test_pushes_go_on_where_they_broke_off(program: Program, registry) -> None:
    program.spec(
        shell("head -c 40000000 /dev/urandom > /big"), shell("head -c 9000 /dev/urandom > /little")
    )
    program.ok("build")
    with Gate(registry.host) as gate:
        gate.cut, gate.cuts = 3_000_000, 3
        gate.busy = [("POST", 503), ("HEAD", 429), ("PUT", 500), ("PATCH", 502)]
        program.ok("build", "-o", f"docker://{gate.host}/broken:1")
        assert gate.cuts == 0
        assert not gate.busy
        assert gate.sent < 60_000_000
    source = f"docker://{registry.host}/broken:1"
    images.skopeo(
        source, f"oci:{program.temporary}/l:it", "--src-tls-verify=false"
    )  # checks digests


@pytest.mark.needs("registry")
def test_passwords_and_certificates(built: Program, docker_config) -> None:
    with running(users={"me": "word"}, tls=True) as closed:
        name = f"{closed.host}/mine/app:1"
        built.variables["OBUILDER_CONFIG"] = built.file(
            "config.toml", f'[registries."{closed.host}"]\nca = "{closed.ca}"\n'.encode()
        )
        docker_config()
        done = built.run("build", "-o", f"docker://{name}")
        assert done.status == 5
        assert done.err.count("error: ") == 1
        assert f"{closed.host} does not let us in" in done.err
        docker_config(**{closed.host: "me:wrong"})
        assert (
            "does not take the user and password"
            in built.run("build", "-o", f"docker://{name}").err
        )
        docker_config(**{closed.host: "me:word"})
        built.ok("build", "-o", f"docker://{name}")
        certificates = ("--src-cert-dir", os.path.dirname(closed.ca), "--src-creds=me:word")
        images.skopeo(f"docker://{name}", f"oci:{built.temporary}/l:it", *certificates)


def test_a_host_that_is_not_there(built: Program) -> None:
    done = built.run("build", "-o", "docker://127.0.0.1:1/a")
    assert done.status == 5
    assert done.err.splitlines() == ["error: can't reach 127.0.0.1:1: Connection refused"]


@pytest.mark.needs("registry")
def test_images_for_several_platforms_are_one_name(program: Program, out: str, registry) -> None:
    program.file("file", b"content")
    program.spec("(copy (src file) (dst /))", base="scratch")
    name = f"{registry.host}/several:1"
    program.ok(
        "build", "--platform", "linux/amd64,linux/arm64", "-o", f"oci:{out}/l:it",
        "-o", f"docker://{name}", "--annotation", "org.example.a=b",
    )  # fmt: skip
    for source in (f"docker://{name}", f"oci:{out}/l:it"):
        index = manifest(source)
        assert [m["platform"]["architecture"] for m in index["manifests"]] == ["amd64", "arm64"]
        assert index["annotations"] == {"org.example.a": "b"}
        arm = images.run(
            "skopeo", "inspect", "--override-arch=arm64", "--config", *insecure(source), source
        )
        assert json.loads(arm)["architecture"] == "arm64"
    done = program.run(
        "build", "--platform", "linux/amd64,linux/arm64", "-o", f"docker-archive:{out}/d"
    )
    assert done.status == 2
    assert "can't hold images for 2 platforms" in done.err
    assert program.run("build", "--platform", "linux/amd64,linux/amd64").status == 2


# --- what can't be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing:there"], "can't export to"), (["oci:"], "can't export to"), ([""], "can't export"),
        (["docker://"], "needs a name"), (["docker://host/UPPER"], "no name of an image"),
        (["docker://host/a@sha256:" + "0" * 64], "under a tag"), (["oci:dir:a/b"], "is no tag"),
        (["tar:x", "--squash"], "is for images"), (["-", "-t", "a"], "is for images"),
        (["oci:x", "--annotation", "a"], "no annotation"), (["oci:/etc"], "no image layout"),
    ],
    ids=lambda value: str(value[0])[:12] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_can_not_be_is_refused(program: Program, arguments, said) -> None:
    program.spec(shell("true"))
    result = key(program)
    done = program.run("export", result, *arguments)
    assert done.status == 2, done
    assert said in done.err
    assert done.err.count("error: ") == 1


def test_bad_times_and_texts_are_one_error(built: Program, out: str) -> None:
    result = key(built)
    built.variables["SOURCE_DATE_EPOCH"] = "today"
    assert "SOURCE_DATE_EPOCH is 'today'" in built.run("export", result, f"oci:{out}/l").err
    del built.variables["SOURCE_DATE_EPOCH"]
    built.spec(shell("true"), '(env A "\udcff")')
    done = built.run("build", "-o", f"oci:{out}/l", "-o", f"tar:{out}/t")
    assert done.status == 2, done
    assert "no UTF-8" in done.err
    assert os.listdir(out) == ["l"]
    built.ok("export", result, f"oci:{out}/l")  # what failed is gone on with
    assert manifest(f"oci:{out}/l:latest")


def test_intermediate_steps_have_the_settings_of_their_base(built: Program, out: str) -> None:
    built.spec(shell("echo a > /a"), "(env A b)", shell("echo b > /b"))
    built.ok("build")
    first = json.loads(built.ok("ls", "--json"))[1]["key"]
    done = built.run("export", first, f"oci:{out}/l")
    assert "no build ended with" in done.err
    assert config(f"oci:{out}/l:latest")["config"] == {}


@pytest.mark.needs("registry")
def test_memory_does_not_grow_with_layers(program: Program, out: str, registry) -> None:
    program.spec(
        shell(
            "head -c 60000000 /dev/zero > /big; head -c 60000000 /dev/urandom >> /big; "
            "for i in $(seq 6000); do echo > /tmp/$i; done"
        )
    )
    _, memory = program.measured("export", key(program), f"oci:{out}/l")
    assert memory < 150_000
    name = registry.push(f"oci:{out}/l:latest", "large:1")
    program.use("other")
    _, memory = program.measured("image", "import", "large", name)
    assert memory < 150_000


# --- single files --------------------------------------------------------------------------------


def test_single_files_come_out_and_no_symlink_leads_out_of_a_result(
    program: Program, out: str
) -> None:
    program.spec(
        shell(
            "mkdir -p /d/in && echo a > /d/a && ln /d/a /d/in/b && ln -s /etc /d/etc && ln -s "
            "../../../../../../etc/hostname /d/up && echo mine > /etc/hostname && chown 7:8 /d/a && "
            "chmod 640 /d/a && mkfifo /d/f && ln -s / /d/root"
        )
    )
    result = key(program)
    program.ok("cp", f"{result}:/d/a", out)
    program.ok("cp", f"{result[:12]}:d/etc/hostname", f"{out}/host")
    program.ok("cp", f"{result}:/d/root/d/root/d/etc/hostname", f"{out}/host")  # goes over it
    program.ok("cp", f"{result}:/d", f"{out}/d")
    program.ok("cp", f"{result}:/d/etc/", f"{out}/etc")
    program.ok("cp", f"{result}:/../../d/up", out)
    program.ok("cp", f"{result}:/", f"{out}/all")
    status = os.stat(f"{out}/a")
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (7, 8, 0o640)
    with open(f"{out}/host") as file:
        assert file.read() == "mine\n"
    assert os.readlink(f"{out}/up") == "../../../../../../etc/hostname"
    assert os.stat(f"{out}/d/a").st_ino == os.stat(f"{out}/d/in/b").st_ino
    assert os.path.exists(f"{out}/etc/passwd")
    assert os.path.exists(f"{out}/all/d/a")
    before = sorted(os.listdir(out))
    for source, target, said in (
        (f"{result}:/none", out, "has no /none"), (f"{result}:/d/a/x", out, "has no /d/a/x"),
        (f"{result}:/d", out, "is a directory already"), (f"{result}:/", out, "no name of its own"),
        (result, out, "names no file"), (f"{result}:/d/a", f"{out}/x/y", "there is no directory"),
    ):  # fmt: skip
        done = program.run("cp", source, target)
        assert done.status == 2, done
        assert said in done.err
    assert sorted(os.listdir(out)) == before
