"""How images are named, which platforms stand for which, and who we are to a registry."""

import base64
import json
import os

import pytest

from obuilder.errors import ConfigError, Denied, NotFound, UsageError
from obuilder.oci.auth import Challenge, challenges, credentials
from obuilder.oci.platforms import accepted, best, normalised, parse_platform
from obuilder.oci.reference import Reference
from obuilder.values import Platform

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/library/debian:12", "docker.io/library/debian:12"),
        ("ocaml/opam:debian-12-ocaml-5.2", "docker.io/ocaml/opam:debian-12-ocaml-5.2"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x:y", "localhost:5000/x:y"),
        ("host:5000/a/b/c", "host:5000/a/b/c:latest"),
        ("ghcr.io/owner/app", "ghcr.io/owner/app:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("Host/x", "Host/x:latest"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}"),
        (f"host.test/debian:12@{DIGEST}", f"host.test/debian:12@{DIGEST}"),
        ("a__b/c-d.e", "docker.io/a__b/c-d.e:latest"),
    ],
)
def test_names_mean_what_docker_means(text, whole):
    assert str(Reference.parse(text)) == whole
    assert str(Reference.parse(whole)) == whole


@pytest.mark.parametrize(
    "text",
    ["", "Debian", "a//b", "a/../b", "/a", "a/", "a:", "a b", "a\n", "a@sha256:12", "-a", "a:-b",
     "a@md5:" + "0" * 32, f"a@{DIGEST}0", "host:123456/x", "é", "a" * 256, "a:" + "b" * 129,
     "https://host/x", "user@host/x", "a/b:c/d:e"],
)  # fmt: skip
def test_names_no_image_has(text):
    with pytest.raises(NotFound):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm64/8", Platform("linux", "arm64")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/armel", Platform("linux", "arm", "v6")),
        ("linux/arm/6", Platform("linux", "arm", "v6")),
        ("linux/amd64/v1", Platform("linux", "amd64")),
        ("linux/amd64/v3", Platform("linux", "amd64", "v3")),
        ("linux/i386", Platform("linux", "386")),
        ("windows/amd64", Platform("windows", "amd64")),
    ],
)
def test_platforms_in_one_spelling(text, platform):
    assert parse_platform(text) == platform
    assert normalised(platform) == platform


@pytest.mark.parametrize(
    "text", ["", "linux", "arm64", "linux/", "linux/a/b/c", "linux/ä", "l x/y"]
)
def test_what_is_no_platform(text):
    with pytest.raises(UsageError, match="is no platform"):
        parse_platform(text)


def shown(platform):
    return [str(each) for each in accepted(parse_platform(platform))]


def test_what_runs_what_is_in_containerds_order():
    assert shown("linux/amd64") == ["linux/amd64", "linux/386"]
    assert shown("linux/amd64/v3") == [
        "linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386",
    ]  # fmt: skip
    assert shown("linux/arm") == ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    assert shown("linux/arm/v5") == ["linux/arm/v5"]
    arm = ["linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    assert shown("linux/arm64") == ["linux/arm64", *arm]
    assert shown("linux/arm64/v9") == ["linux/arm64/v9", "linux/arm64", *arm]
    assert shown("linux/riscv64") == ["linux/riscv64"]


def test_the_best_of_several_platforms():
    def chosen(platform, *there):
        return best(
            [(Platform(*text.split("/")), text) for text in there], parse_platform(platform)
        )

    assert chosen("linux/arm/v7", "linux/arm/v5", "linux/arm/v6", "linux/amd64") == "linux/arm/v6"
    assert chosen("linux/arm/v6", "linux/arm/v7", "linux/arm64/v8") is None
    assert chosen("linux/amd64", "linux/386", "linux/amd64", "linux/amd64") == "linux/amd64"
    assert chosen("linux/amd64", "linux/amd64/v3", "linux/386") == "linux/386"
    assert chosen("linux/arm64", "linux/arm/v7", "linux/arm64/v8") == "linux/arm64/v8"
    assert chosen("linux/amd64", "unknown/unknown", "windows/amd64") is None
    assert chosen("linux/amd64") is None


def test_what_registries_ask_for():
    header = 'Bearer realm="https://auth.test/token?a=b,c",service="reg.test",scope="repository:a/b:pull,push"'
    said = {
        "realm": "https://auth.test/token?a=b,c", "service": "reg.test",
        "scope": "repository:a/b:pull,push",
    }  # fmt: skip
    assert challenges(header) == [Challenge("bearer", said)]
    assert challenges(f"Basic realm=x, {header}") == [
        Challenge("basic", {"realm": "x"}), Challenge("bearer", said),
    ]  # fmt: skip
    assert challenges('Negotiate, basic Realm = "a \\"b\\""') == [
        Challenge("negotiate", {}), Challenge("basic", {"realm": 'a "b"'}),
    ]  # fmt: skip
    assert challenges("") == []
    assert challenges('=,,"') == []


def packed(text):
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Writes Docker's configuration, and helpers that it names."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(config, **helpers):
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
        for name, script in helpers.items():
            path = tmp_path / f"docker-credential-{name}"
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

    return write


def test_nothing_is_known_without_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    assert credentials("host.test") is None


@pytest.mark.parametrize(
    "name", ["host.test:5000", "https://host.test:5000", "https://host.test:5000/v1/"]
)
def test_every_spelling_of_a_host(docker, name):
    docker({"auths": {name: {"auth": packed("me:a:b")}, "host.test": {"auth": packed("no:no")}}})
    found = credentials("host.test:5000")
    assert (found.user, found.password) == ("me", "a:b")
    assert found.basic() == "Basic " + packed("me:a:b")
    assert "a:b" not in repr(found)
    assert credentials("other.test") is None


def test_what_docker_calls_its_own_registry(docker):
    docker({"auths": {"https://index.docker.io/v1/": {"username": "me", "password": "word"}}})
    assert credentials("docker.io").user == "me"


def test_identity_tokens(docker):
    docker(
        {"auths": {"host.test": {"auth": packed("me:"), "identitytoken": "long"}, "empty.test": {}}}
    )
    assert credentials("host.test").identity_token == "long"
    assert credentials("empty.test") is None


ANSWERS = """read server
case $server in
  host.test) echo '{"ServerURL":"x","Username":"me","Secret":"word"}'; echo noise >&2 ;;
  token.test) echo '{"Username":"<token>","Secret":"long"}' ;;
  https://index.docker.io/v1/) echo '{"Username":"hub","Secret":"word"}' ;;
  locked.test) echo 'the keychain is locked'; exit 1 ;;
  noise.test) echo noise ;;
  *) echo 'credentials not found in native keychain'; exit 1 ;;
esac"""


def test_helpers_are_asked_first(docker):
    docker(
        {
            "credsStore": "all", "credHelpers": {"own.test": "own"},
            "auths": {"file.test": {"auth": packed("file:word")}, "host.test": {"auth": packed("no:no")}},
        },
        all=ANSWERS, own='echo \'{"Username":"own","Secret":"word"}\'',
    )  # fmt: skip
    assert credentials("host.test").user == "me"
    assert credentials("token.test").identity_token == "long"
    assert credentials("docker.io").user == "hub"
    assert credentials("own.test").user == "own"
    assert credentials("file.test").user == "file"
    assert credentials("nobody.test") is None
    with pytest.raises(Denied, match="the keychain is locked"):
        credentials("locked.test")
    with pytest.raises(Denied, match="an answer that is none"):
        credentials("noise.test")


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("{", "no configuration of Docker's"),
        ('{"auths": 1}', "no configuration of Docker's"),
        ('{"auths": {"host.test": {"auth": "%%%"}}}', "is damaged"),
        ('{"credsStore": "none-such"}', "not installed"),
        ('{"credHelpers": {"host.test": "../x"}}', "no name of a credential helper"),
    ],
)
def test_a_file_that_makes_no_sense(docker, config, error):
    docker(config)
    with pytest.raises(ConfigError, match=error):
        credentials("host.test")
