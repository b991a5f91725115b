"""Images in real registries: who is let in, what is chosen, what comes out, what is asked and when."""

import base64
import json
import os
import shutil
import subprocess  # other tests are a process
import sys
import tempfile
from pathlib import Path

import pytest

import images
import registries
from program import REPO, shell, until
from registries import Front, Proxy, Registry, Tokens, running
from trees import differences

pytestmark = pytest.mark.needs("root", "overlay", "registry", "umoci", "skopeo")

SHOW = shell("cat /made; echo; stat -c %u:%g /made; echo $A; ls /")
SHOWN = "made\n5:6\nb=c\nabsolute\nbin\n"


@pytest.fixture
def config(program):
    """Writes the program's configuration, and Docker's."""

    def write(text="", **auths):
        path = program.file("config.toml", text.encode())
        program.variables["OBUILDER_CONFIG"] = path
        entries = {
            name.replace("_", ":"): {"auth": base64.b64encode(word.encode()).decode()}
            for name, word in auths.items()
        }
        program.file("config.json", json.dumps({"auths": entries}).encode())

    program.variables["DOCKER_CONFIG"] = program.context
    return write


def built(program, name):
    program.spec(SHOW, base=name)
    return program.ok("build")


def refused(program, name, *options):
    """The message of a build that gets no image."""
    program.spec(SHOW, base=name)
    done = program.run("build", *options)
    assert done.status == 5, done
    assert os.listdir(f"{program.store}/drafts") == []
    assert json.loads(program.ok("ls", "--json")) == []
    return done.err


def test_an_image_is_built_on_and_then_nobody_is_asked_any_more(program, registry):
    with Front(registry.host) as front:
        name = f"{front.host}/app:one"
        out = built(program, name)
        assert SHOWN in out
        assert "gone" not in out
        assert len(front.blobs()) == 3  # a config and two layers
        asked = len(front.asked)
        assert SHOWN in built(program, name)
        program.spec(SHOW, shell("echo more"), base=name)
        assert "saved as" in program.ok("build")
        assert len(front.asked) == asked
    program.variables["PYTHONPROFILEIMPORTTIME"] = "1"
    done = program.run("build")
    assert "using" in done.out
    assert "obuilder.backends.fetchers.remote" in done.err
    assert "httpx2" not in done.err
    assert "anyio" not in done.err
    assert os.listdir(f"{program.store}/downloads") == []


@pytest.mark.needs("btrfs")
@pytest.mark.parametrize("place", ["btrfs"], indirect=True)
def test_any_store_takes_them(program, registry):
    assert SHOWN in built(program, f"{registry.host}/app:one")


def test_how_far_it_got_is_told(program, registry):
    with Front(registry.host) as front:
        front.pace = 0.05
        program.spec(base=f"{front.host}/app:one")
        lines = program.ok("build", "--progress=json").splitlines()
    told = [event for event in map(json.loads, lines) if event["event"] == "progress"]
    done = [event["done"] for event in told if event["total"] > 100_000]
    assert done == sorted(done)
    assert 0 < done[-1] < next(event["total"] for event in told if event["total"] > 100_000)


def test_layers_that_are_there_are_not_fetched_again(program, registry):
    with Front(registry.host) as front:
        built(program, f"{front.host}/app:one")
        before = {path for path, _ in front.blobs()}
        program.spec(shell("cat /other"), base=f"{front.host}/app:two")
        assert "other" in program.ok("build")
        new = [path for path, _ in front.blobs() if path not in before]
        assert len(front.blobs()) == 5
        assert len(new) == 2  # its own config and layer


class TestWhen:
    """--pull, lock files and imports: when a registry is asked, and what is taken from it."""

    @pytest.fixture
    def moving(self, registry, layout, request):
        name = f"moving{abs(hash(request.node.name))}"
        registry.push(f"oci:{layout}:one", f"{name}:1")
        return lambda tag: registry.push(f"oci:{layout}:{tag}", f"{name}:1")

    def test_a_name_means_what_it_meant_until_it_is_asked_for_anew(self, program, registry, moving):
        name = moving("one")
        built(program, name)
        moving("two")
        program.spec(shell("ls /"), base=name)
        assert "made" in program.ok("build")
        assert "made" in program.ok("build", "--pull=missing")
        out = program.ok("build", "--pull=always")
        assert "other" in out
        assert "made" not in out
        assert "other" in program.ok("build")

    def test_what_did_not_change_costs_a_look(self, program, registry):
        with Front(registry.host) as front:
            name = f"{front.host}/app:one"
            built(program, name)
            asked = len(front.asked)
            program.ok("build", "--pull=always")
            assert [method for method, _, _ in front.asked[asked:]] == ["HEAD"]

    def test_never_means_never(self, program, registry):
        with Front(registry.host) as front:
            said = refused(program, f"{front.host}/app:one", "--pull=never")
            assert "never asked" in said
            assert "image import" in said
            assert front.asked == []
            built(program, f"{front.host}/app:one")
            program.ok("build", "--pull=never")

    def test_what_is_locked_is_taken_and_nothing_else(self, program, registry, moving):
        name = moving("one")
        program.spec(SHOW, base=name)
        done = program.run("build", "--locked")
        assert (done.status, "`obuilder lock` writes it" in done.err) == (2, True)
        said = program.ok("lock")
        written = json.loads(Path(program.context, "obuilder.spec.lock").read_text())
        assert said == f"{name}  {written['images'][name]}\n"
        moving("two")
        assert SHOWN in program.ok("build", "--locked")
        assert SHOWN in program.ok("build", "--locked", "--pull=always")
        program.use("another")
        assert SHOWN in program.ok("build", "--locked")
        rows = json.loads(program.ok("plan", "--locked", "--json"))["steps"]
        assert [row["cached"] for row in rows] == [True, True, True]
        program.ok("lock")
        program.spec(shell("ls /"), base=name)
        assert "other" in program.ok("build", "--locked")
        program.spec(SHOW, base=f"{registry.host}/app:one")
        done = program.run("build", "--locked")
        assert (done.status, "is not in obuilder.spec.lock" in done.err) == (2, True)

    def test_local_images_are_locked_too(self, program, layout):
        archive = f"{program.temporary}/image.tar"
        images.skopeo(f"oci:{layout}:one", f"oci-archive:{archive}")
        program.spec(SHOW, before="(build x ((from scratch))) ", base=f"oci-archive:{archive}")
        program.ok("lock")
        program.ok("build", "--locked")
        os.unlink(archive)
        images.skopeo(f"oci:{layout}:two", f"oci-archive:{archive}")
        done = program.run("build", "--locked")
        assert done.status == 5
        assert "now, and obuilder.spec.lock says sha256:" in done.err
        os.unlink(archive)

    def test_what_was_imported_comes_first(self, program, registry, moving):
        name = moving("one")
        program.ok("image", "import", "debian:12", name)
        moving("two")
        assert SHOWN in built(program, "debian:12")
        program.ok("image", "import", "debian:12", name)
        program.spec(shell("ls /"), base="debian:12")
        assert "other" in program.ok("build")
        program.ok("image", "import", name, name)
        moving("one")
        program.ok("image", "import", name, name)
        program.spec(shell("ls /"), base=name)
        assert "made" in program.ok("build")

    def test_plan_and_explain_ask_what_they_need(self, program, registry):
        program.spec(SHOW, base=f"{registry.host}/app:one")
        assert program.ok("plan").count("(from ") == 2
        assert not os.path.exists(program.store)
        program.ok("build")
        program.spec(SHOW, base=f"{registry.host}/app:two")
        assert "from" in program.ok("explain")


@pytest.fixture(scope="module")
def index(registry, layout):
    copy = tempfile.mkdtemp(dir="/var/tmp")
    try:
        shutil.copytree(layout, f"{copy}/layout")
        for architecture in ("arm64", "386"):
            images.run(
                "umoci", "config", "--image", f"{copy}/layout:two", "--tag", architecture,
                f"--architecture={architecture}",
            )  # fmt: skip
            registry.push(f"oci:{copy}/layout:{architecture}", f"multi:{architecture}")
    finally:
        shutil.rmtree(copy)
    registry.push(f"oci:{layout}:one", "multi:amd64")
    registry.put_index("multi", "all", [("arm64", "linux/arm64/v8"), ("amd64", "linux/amd64"), ("386", "linux/386")])  # fmt: skip
    registry.put_index("multi", "others", [("arm64", "linux/arm64"), ("386", "linux/386")])
    return f"{registry.host}/multi"


class TestPlatforms:
    """Indexes of images for several platforms."""

    def test_the_machines_own_is_taken(self, program, index):
        assert SHOWN in built(program, f"{index}:all")

    def test_what_it_can_run_is_taken_where_there_is_none(self, program, index):
        program.spec(shell("cat /other"), base=f"{index}:others")
        assert "other" in program.ok("build")

    def test_another_one_can_be_had_and_its_files_copied(self, program, index):
        program.ok("image", "import", "--platform=linux/arm64", "arm", f"{index}:all")
        assert "linux/arm64" in program.ok("image", "ls")
        program.spec(
            "(copy (from (build arm)) (src /other) (dst /from-arm))", shell("cat /from-arm"),
            before="(build arm ((from arm))) ", base="micro",
        )  # fmt: skip
        assert "other" in program.ok("build")

    def test_a_platform_that_is_not_there(self, program, index):
        said = refused(program, f"{index}:all", "--platform=linux/riscv64")
        assert "no image for linux/riscv64" in said
        assert "it has: linux/386, linux/amd64, linux/arm64" in said
        said = refused(program, f"{index}:arm64")
        assert "it is for linux/arm64" in said

    def test_local_images_are_for_what_they_are_for(self, program):
        assert "it is for linux/" in refused(program, "micro", "--platform=linux/arm64")

    def test_one_lock_is_for_all_platforms(self, program, index):
        program.spec("(copy (src obuilder.spec) (dst /))", base=f"{index}:all")
        program.ok("lock")
        first = program.ok("build", "--locked", "-q")
        assert program.ok("build", "--locked", "-q", "--platform=linux/arm64") != first
        program.ok("lock", "--platform=linux/arm64")
        assert program.ok("build", "--locked", "-q") == first


@pytest.fixture(scope="module")
def guarded(layout):
    with running(users={"me": "word"}, tls=True) as started:
        started.push(f"oci:{layout}:one", "app:one", user="me:word")
        yield started


class TestWhoIsLetIn:
    """Passwords, tokens and certificates."""

    def trusting(self, registry):
        return f'[registries."{registry.host}"]\nca = "{registry.ca}"\n'

    def test_a_password_and_a_certificate_of_its_own(self, program, guarded, config):
        name = f"{guarded.host}/app:one"
        config()
        said = refused(program, name)
        assert "wants TLS" in said
        config(f'[registries."{guarded.host}"]\ntls = "verify"\n')
        said = refused(program, name)
        assert "can't show who it is" in said
        assert "ca = " in said
        config(self.trusting(guarded))
        said = refused(program, name)
        assert "does not let us in" in said
        assert f"docker login {guarded.host}" in said
        config(self.trusting(guarded), **{guarded.host.replace(":", "_"): "me:wrong"})
        said = refused(program, name)
        assert "does not take the user and password" in said
        assert "wrong" not in said
        config(self.trusting(guarded), **{guarded.host.replace(":", "_"): "me:word"})
        assert SHOWN in built(program, name)

    def test_a_machines_own_bundle(self, program, guarded, config):
        config(f'[registries."{guarded.host}"]\ntls = "verify"\n', **{guarded.host.replace(":", "_"): "me:word"})  # fmt: skip
        program.variables["SSL_CERT_FILE"] = guarded.ca
        assert SHOWN in built(program, f"{guarded.host}/app:one")

    def test_who_does_not_care(self, program, guarded, config):
        config(f'[registries."{guarded.host}"]\ntls = "unverified"\n', **{guarded.host.replace(":", "_"): "me:word"})  # fmt: skip
        assert SHOWN in built(program, f"{guarded.host}/app:one")

    def test_a_helper_has_the_password(self, program, guarded, config):
        config(self.trusting(guarded))
        helper = program.file(
            "docker-credential-tests",
            b'#!/bin/sh\necho \'{"Username":"me","Secret":"word"}\'\n',
        )
        os.chmod(helper, 0o755)
        program.file("config.json", json.dumps({"credsStore": "tests"}).encode())
        program.variables["PATH"] = f"{program.context}:{os.environ['PATH']}"
        assert SHOWN in built(program, f"{guarded.host}/app:one")

    @pytest.fixture
    def tokens(self, layout, tmp_path):
        """A registry for who has tokens, which anybody gets at first."""
        with Tokens(str(tmp_path)) as server, running(tokens=server) as started:
            token = server.token(["repository:app:pull,push"])
            images.skopeo(
                f"oci:{layout}:one", f"docker://{started.host}/app:one", "--dest-tls-verify=false",
                f"--dest-registry-token={token}",
            )  # fmt: skip
            yield started, server

    def test_tokens_for_anybody(self, program, tokens, config):
        registry, server = tokens
        config()
        assert SHOWN in built(program, f"{registry.host}/app:one")
        assert all("repository%3Aapp%3Apull" in path for _, path, _ in server.asked)
        assert len(server.asked) == 2  # one to find the image, one to fetch it

    def test_tokens_for_users(self, program, tokens, config):
        registry, server = tokens
        server.users = {"me": "word"}
        config()
        assert "gives no token: who are you?" in refused(program, f"{registry.host}/app:one")
        config(**{registry.host.replace(":", "_"): "me:word"})
        server.life = 1
        assert SHOWN in built(program, f"{registry.host}/app:one")

    def test_an_identity_token_is_no_password(self, program, tokens, config):
        registry, server = tokens
        server.users = {}
        config()
        entry = {registry.host: {"auth": "", "identitytoken": server.refresh}}
        program.file("config.json", json.dumps({"auths": entry}).encode())
        assert SHOWN in built(program, f"{registry.host}/app:one")
        assert {method for method, _, _ in server.asked} == {"POST"}


class TestWays:
    """Mirrors and proxies."""

    def test_a_mirror_is_asked_first(self, program, registry, config):
        with Front(registry.host) as mirror, Front(registry.host) as origin:
            config(f'[registries."{origin.host}"]\nmirrors = ["http://{mirror.host}"]\n')
            assert SHOWN in built(program, f"{origin.host}/app:one")
            assert origin.asked == []
            assert len(mirror.blobs()) == 3

    def test_what_mirrors_lack_or_get_wrong_the_registry_has(self, program, registry, config):
        with Front(registry.host) as mirror, Front(registry.host) as origin:
            places = f'["127.0.0.1:1", "http://{mirror.host}/nowhere", "{mirror.host}"]'
            config(f'[registries."{origin.host}"]\nmirrors = {places}\n')
            mirror.lie = -1
            assert SHOWN in built(program, f"{origin.host}/app:one")
            assert len(origin.blobs()) > 0

    def test_a_proxy_of_the_environment(self, program, registry, config):
        config('[registries."images.test"]\ntls = "off"\n')
        with Proxy(registry.host) as proxy:
            program.variables |= {"HTTP_PROXY": f"http://{proxy.host}", "http_proxy": ""}
            program.variables["http_proxy"] = f"http://{proxy.host}"
            assert SHOWN in built(program, "images.test/app:one")
            assert all(path.startswith("http://images.test/v2/app/") for _, path, _ in proxy.asked)
            asked = len(proxy.asked)
            program.spec(shell("cat /other"), base=f"{registry.host}/app:two")
            assert "other" in program.ok("build")  # what is here is not looked for there
            assert len(proxy.asked) == asked
        said = refused_again(program, "images.test/app:two")
        assert "can't reach images.test" in said


def refused_again(program, name):
    program.spec(SHOW, base=name)
    done = program.run("build")
    assert done.status == 5, done
    return done.err


@pytest.mark.parametrize("kind", ["gzip", "zstd", "docker"])
def test_the_root_is_what_umoci_makes_of_it(program, registry, layout, tmp_path, kind):
    copy = shutil.copytree(layout, tmp_path / "layout")
    images.make_odd(str(copy))
    form = "v2s2" if kind == "docker" else "oci"
    source, options = f"oci:{copy}:odd", list[str]()
    if kind == "zstd":  # skopeo would take what it has pushed in another form, as it remembers
        source, options = f"oci:{tmp_path}/zstd:odd", ["--preserve-digests"]
        images.skopeo(f"oci:{copy}:odd", source, "--dest-compress-format=zstd")
    name = registry.push(source, f"odd:{kind}", *options, form=form)
    images.run("umoci", "unpack", "--image", f"{copy}:odd", str(tmp_path / "bundle"))
    program.spec(base=name)
    program.ok("build", "-o", f"directory:{program.temporary}/root")
    assert differences(f"{program.temporary}/root", str(tmp_path / "bundle/rootfs")) == []
    kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    _, headers, manifest = registry.request("GET", f"odd/manifests/{kind}", Accept=kinds)
    if kind == "docker":
        assert "vnd.docker" in headers["Content-Type"]
    else:
        assert f"tar+{kind}".encode() in manifest


_VICTIM = """
import time
from registries import running
with running() as registry:
    print(registry.directory, registry.host, flush=True)
    time.sleep(60)
"""


def test_a_registry_ends_with_the_tests_however_they_end():
    environ = {**os.environ, "PYTHONPATH": f"{REPO}/src:{REPO}/tests"}
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM], env=environ, stdout=subprocess.PIPE, text=True
    )
    directory, host = victim.stdout.readline().split()
    started = Registry(host, directory)
    assert started.request("GET", "")[0] == 200
    registries.sweep()
    assert started.request("GET", "")[0] == 200
    victim.kill()
    victim.communicate()

    def gone():
        try:
            started.request("GET", "")
        except ConnectionError:
            return True
        return False

    until(gone, "a registry without an owner ends", seconds=10)
    registries.sweep()
    assert not os.path.exists(directory)
