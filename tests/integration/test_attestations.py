"""What goes along with images: consumers find it, judges check it, and it is the same each time."""

import base64
import json
import os
import subprocess  # openssl and skopeo are the judges

import pytest
from spdx_tools.spdx.model import Document
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

import images
from obuilder.oci.attestation import pre_authentication
from program import Program, shell
from registries import running

pytestmark = pytest.mark.needs("root", "overlay", "crun", "skopeo")

APK = "mkdir -p /lib/apk/db && printf 'P:musl\\nV:1.2\\nA:x86_64\\nL:MIT\\n\\n' > /lib/apk/db/installed"
DOCKERFILE = f"""ARG BASE
FROM $BASE
ARG VERSION=1
COPY kept /kept
RUN --mount=type=secret,id=token test -s /run/secrets/token && {APK} && echo $VERSION
"""
SECRET = "the-very-secret-value"
ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
ARTIFACTS = (
    "application/vnd.dev.cosign.artifact.att.v1+json",
    "application/vnd.dev.cosign.artifact.sig.v1+json",
    "application/spdx+json",
    "application/vnd.in-toto+json",
)
SLSA, SPDX = "https://slsa.dev/provenance/v1", "https://spdx.dev/Document"


@pytest.fixture
def signing(program: Program) -> Program:
    """A Dockerfile's build with a secret and an argument, and a pair of keys."""
    program.variables |= {"COSIGN_PASSWORD": "word", "TOKEN": SECRET}
    program.file("kept", b"kept")
    program.ok("key", "new", f"{program.temporary}/own")
    return program


def options(program: Program, *more: str) -> list[str]:
    return [
        "build", "--secret", "token=env:TOKEN", "--build-arg", "VERSION=7", "--provenance", "--sbom",
        "--sign-key", f"{program.temporary}/own.key", *more,
    ]  # fmt: skip


class Place:
    """A repository of a registry, or a layout, read by hand."""

    def __init__(self, document, blob):
        self.document, self.blob = document, blob

    def subject(self, digest):
        return self.document(digest.replace(":", "-"))["manifests"]

    def layers(self, manifest):
        return [(layer, self.blob(layer["digest"])) for layer in manifest["layers"]]


def of_registry(registry, repository):
    def document(wanted):
        status, _, data = registry.request("GET", f"{repository}/manifests/{wanted}", Accept=ACCEPT)
        assert status == 200, wanted
        return json.loads(data)

    return Place(
        document, lambda digest: registry.request("GET", f"{repository}/blobs/{digest}")[2]
    )


def of_layout(path):
    def blob(digest):
        with open(f"{path}/blobs/{digest.replace(':', '/')}", "rb") as file:
            return file.read()

    def document(wanted):
        if not wanted.startswith("sha256:"):
            with open(f"{path}/index.json") as file:
                found = json.load(file)["manifests"]
            name = "org.opencontainers.image.ref.name"
            (wanted,) = [item["digest"] for item in found if item["annotations"][name] == wanted]
        return json.loads(blob(wanted))

    return Place(document, blob)


def checked(program: Program, signature: bytes, data: bytes, key="own") -> bool:
    """Whether openssl finds a signature right."""
    for name, content in (("signature", signature), ("data", data)):
        with open(f"{program.temporary}/{name}", "wb") as file:
            file.write(content)
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", f"{program.temporary}/{key}.pub", "-signature",
         f"{program.temporary}/signature", f"{program.temporary}/data"],
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


def whole(program: Program, place: Place, digest: str, names: set[str]) -> tuple[dict, dict]:
    """The provenance and the SBOM that go along with a manifest; all of it is looked at."""
    found = {item["artifactType"]: item for item in place.subject(digest)}
    assert sorted(found) == sorted(ARTIFACTS)
    said = {}
    for kind, item in found.items():
        manifest = place.document(item["digest"])
        assert manifest["subject"]["digest"] == digest
        assert manifest["artifactType"] == kind
        said[kind] = place.layers(manifest)
    ((_, stated),), ((_, spdx),) = said[ARTIFACTS[3]], said[ARTIFACTS[2]]
    statement = json.loads(stated)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == SLSA
    assert [one["digest"] for one in statement["subject"]] == [{"sha256": digest[7:]}]
    assert found[ARTIFACTS[3]]["annotations"] == {"in-toto.io/predicate-type": SLSA}
    # cosign's: each under its tag, signed by the key.
    for suffix, kind in ((".att", ARTIFACTS[0]), (".sig", ARTIFACTS[1])):
        assert place.layers(place.document(digest.replace(":", "-") + suffix)) == said[kind]
    kinds = []
    for layer, data in said[ARTIFACTS[0]]:
        envelope = json.loads(data)
        payload = base64.b64decode(envelope["payload"])
        (signature,) = envelope["signatures"]
        signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
        assert signed == pre_authentication(envelope["payloadType"], payload)
        assert checked(program, base64.b64decode(signature["sig"]), signed)
        assert not checked(program, base64.b64decode(signature["sig"]), signed + b" ")
        inner = json.loads(payload)
        kinds.append(inner["predicateType"])
        assert layer["annotations"]["predicateType"] == kinds[-1]
        assert inner["subject"] == statement["subject"]
        wanted = statement["predicate"] if kinds[-1] == SLSA else json.loads(spdx)
        assert inner["predicate"] == wanted
    assert sorted(kinds) == [SLSA, SPDX]
    assert {name(program, layer, data, digest) for layer, data in said[ARTIFACTS[1]]} == names
    return statement["predicate"], json.loads(spdx)


def name(program: Program, layer: dict, data: bytes, digest: str) -> str:
    """What a signature, which openssl finds right, says that the manifest is called."""
    signature = base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    assert checked(program, signature, data)
    critical = json.loads(data)["critical"]
    assert critical["image"]["docker-manifest-digest"] == digest
    assert critical["type"] == "cosign container image signature"
    found: str = critical["identity"]["docker-reference"]
    return found


def digest_of(source: str, *more: str) -> str:
    return images.run("skopeo", "inspect", "--format={{.Digest}}", *more, source).decode().strip()


@pytest.mark.needs("registry", "umoci")
def test_what_a_registry_has_of_an_image(signing: Program, registry) -> None:
    program, host = signing, registry.host
    program.file("Dockerfile", DOCKERFILE.encode())
    base = digest_of(f"docker://{host}/app:one", "--tls-verify=false")
    push = options(
        program,
        "--build-arg",
        f"BASE={host}/app:one",
        "-o",
        f"docker://{host}/at/app:1",
        "-t",
        f"{host}/at/app:2",
    )
    program.ok(*push)
    digest = digest_of(f"docker://{host}/at/app:1", "--tls-verify=false")
    place = of_registry(registry, "at/app")
    names = {f"{host}/at/app:1", f"{host}/at/app:2"}
    provenance, sbom = whole(program, place, digest, names)

    build, run = provenance["buildDefinition"], provenance["runDetails"]
    outside = build["externalParameters"]
    assert outside["frontend"] == "dockerfile"
    with open(f"{program.context}/Dockerfile") as file:
        assert outside["source"] == {"name": "Dockerfile", "text": file.read()}
    assert outside["buildArguments"] == {"VERSION": "7", "BASE": f"{host}/app:one"}
    assert outside["secrets"] == ["token"]
    image, context = build["resolvedDependencies"]
    assert image["uri"].startswith(f"pkg:docker/{host}/app@one?digest=sha256:")
    assert image["digest"] == {"sha256": base[7:]}
    assert context["annotations"] == {"sources": ["kept"], "destination": "/kept"}
    assert run["metadata"]["startedOn"] <= run["metadata"]["finishedOn"]
    assert [len(log["digest"]["sha256"]) for log in run["byproducts"]] == [64, 64]
    assert SECRET not in json.dumps([provenance, sbom])
    assert program.temporary not in json.dumps([provenance, sbom])
    assert [package["name"] for package in sbom["packages"][1:]] == ["musl"]

    before = place.document(digest.replace(":", "-"))
    program.ok(*push)  # the same again adds nothing
    assert place.document(digest.replace(":", "-")) == before
    program.ok("key", "new", f"{program.temporary}/other")
    result = build["internalParameters"]["result"]
    program.ok(
        "export",
        result,
        f"docker://{host}/at/app:1",
        "--sign-key",
        f"{program.temporary}/other.key",
    )
    layers = place.layers(place.document(digest.replace(":", "-") + ".sig"))
    assert len(layers) == 3  # what others signed stays
    assert sorted(item["artifactType"] for item in place.subject(digest)) == sorted(ARTIFACTS)

    assert json.loads(program.ok("provenance", result)) == provenance
    path = f"{program.temporary}/x.spdx.json"
    with open(path, "w") as file:
        file.write(program.ok("sbom", result))
    found = parse_file(path)
    assert isinstance(found, Document)
    assert validate_full_spdx_document(found) == []
    with open(path) as file:
        assert json.load(file) == sbom
    judged(program, host, f"{host}/at/app:1")


def judged(program: Program, host: str, wanted: str) -> None:
    """What skopeo finds it takes. Debian's was built without the checking: it says so of
    each signature that it finds.
    """
    os.makedirs(f"{program.temporary}/hosts")
    with open(f"{program.temporary}/hosts/one.yaml", "w") as file:
        file.write(f"docker:\n  {host}:\n    use-sigstore-attachments: true\n")
    rule = {"type": "sigstoreSigned", "keyPath": f"{program.temporary}/own.pub"}
    policy = {"default": [{"type": "reject"}], "transports": {"docker": {host: [rule]}}}
    with open(f"{program.temporary}/policy", "w") as file:
        json.dump(policy, file)
    done = subprocess.run(
        ["skopeo", "--policy", f"{program.temporary}/policy", "--registries.d",
         f"{program.temporary}/hosts", "copy", "--src-tls-verify=false", f"docker://{wanted}",
         f"dir:{program.temporary}/copied"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 or done.stderr.count("sigstore disabled") == 3, done.stderr


def test_two_stores_give_the_same_artifacts(signing: Program) -> None:
    program = signing
    out, found = program.temporary, []
    program.file("Dockerfile", DOCKERFILE.encode())
    for store in ("one", "two"):
        program.use(store)
        program.variables |= {
            "COSIGN_PASSWORD": "word", "TOKEN": SECRET, "SOURCE_DATE_EPOCH": "1700000000",
        }  # fmt: skip
        there = [f"oci:{out}/{store}:app", f"oci-archive:{out}/{store}.tar:app"]
        program.ok(
            *options(
                program,
                "--build-arg",
                "BASE=micro",
                "--reproducible",
                "-o",
                there[0],
                "-o",
                there[1],
            )
        )
        digest = digest_of(there[0])
        provenance, sbom = whole(program, of_layout(f"{out}/{store}"), digest, {"app"})
        assert set(provenance["runDetails"]) == {"builder"}
        assert sbom["creationInfo"]["created"] == "2023-11-14T22:13:20Z"
        assert [package["name"] for package in sbom["packages"][1:]] == ["musl"]
        with open(f"{out}/{store}/index.json") as file, open(f"{out}/{store}.tar", "rb") as archive:
            found.append((file.read(), archive.read()))
    assert found[0] == found[1]
    program.ok(
        *options(
            program, "--build-arg", "BASE=micro", "--reproducible", "-o", f"oci:{out}/two:other"
        )
    )
    with open(f"{out}/two/index.json") as file:
        assert len(json.load(file)["manifests"]) == 5  # the image has one name more
    images.run("skopeo", "--insecure-policy", "copy", f"oci:{out}/two:app", f"oci:{out}/three:app")


@pytest.mark.needs("registry")
def test_each_platform_has_its_own_and_the_index_is_signed(signing: Program) -> None:
    program = signing
    program.spec("(copy (src kept) (dst /kept))", base="scratch")
    with running() as registry:
        wanted = f"{registry.host}/many/app:1"
        key = f"{program.temporary}/own.key"
        program.ok(
            "build", "--platform", "linux/amd64,linux/arm64", "-o", f"docker://{wanted}",
            "--provenance", "--sbom", "--sign-key", key,
        )  # fmt: skip
        place = of_registry(registry, "many/app")
        index = place.document("1")
        _, headers, _ = registry.request("HEAD", "many/app/manifests/1", Accept=ACCEPT)
        digest = headers["Docker-Content-Digest"]
        for item in index["manifests"]:
            provenance, _ = whole(program, place, item["digest"], {wanted})
            outside = provenance["buildDefinition"]["externalParameters"]
            assert outside["platform"] == f"linux/{item['platform']['architecture']}"
        assert [one["artifactType"] for one in place.subject(digest)] == [ARTIFACTS[1]]
        ((layer, data),) = place.layers(place.document(digest.replace(":", "-") + ".sig"))
        assert name(program, layer, data, digest) == wanted


def test_what_can_not_be_is_refused_before_anything_is_built(signing: Program) -> None:
    program = signing
    program.spec(shell("echo ran"))
    own, out = f"{program.temporary}/own", program.temporary
    for given, said in (
        (["--provenance"], "--provenance is for images, and no image is exported"),
        (["--sbom", "-o", f"tar:{out}/t"], "--sbom is for images"),
        (
            ["--sign-key", f"{own}.key", "-o", f"docker-archive:{out}/d"],
            "docker-archive can't hold",
        ),
        (["--sign", "-o", f"oci:{out}/l"], "there is no key to sign with"),
        (["--sign-key", f"{own}.pub", "-o", f"oci:{out}/l"], "no private key that can be read"),
        (["--sign-key", f"{out}/none", "-o", f"oci:{out}/l"], "can't read the key"),
        (["--provenance", "--builder-id", "x", "-o", f"oci:{out}/l"], "is no URI"),
    ):
        done = program.run("build", *given)
        assert (done.status, done.out) == (2, "")
        assert said in done.err
    program.variables["COSIGN_PASSWORD"] = "wrong"
    done = program.run("build", "--sign-key", f"{own}.key", "-o", f"oci:{out}/l")
    assert (done.status, "another password" in done.err) == (2, True)
    assert not os.path.exists(program.store)
    program.variables["COSIGN_PASSWORD"] = "word"
    program.variables |= {
        "OBUILDER_SIGN_KEY": f"{own}.key",
        "OBUILDER_BUILDER_ID": "https://ci.example/1",
    }
    program.spec(shell("echo one > /one"), shell("echo two > /two"))
    program.ok("build", "--sign", "--provenance", "-o", f"oci:{out}/l:app")
    place = of_layout(f"{out}/l")
    kinds = {item["artifactType"]: item for item in place.subject(digest_of(f"oci:{out}/l:app"))}
    ((_, data),) = place.layers(place.document(kinds[ARTIFACTS[3]]["digest"]))
    assert json.loads(data)["predicate"]["runDetails"]["builder"]["id"] == "https://ci.example/1"
    middle = json.loads(program.ok("ls", "--json"))
    between = next(one["key"] for one in middle if "one > /one" in one["heading"])
    done = program.run("provenance", between)
    assert (done.status, "nobody noted how" in done.err) == (2, True)
