"""Results shared between machines: an empty store runs nothing, and fetches no more than it needs."""

import json
import os
import re
import shutil
import subprocess  # programs of the tests
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import images
from caches import KINDS, Cache, Shelf, shelf
from places import opened
from program import Program, cached, shell
from trees import differences

__all__ = ["shelf"]
pytestmark = [pytest.mark.needs("overlay", "crun", "registry")]

STEPS = tuple(
    shell(f"head -c 20000 /dev/urandom > /f{number}; echo said {number}") for number in range(30)
)
LAST = shell("ls / | grep -c ^f")
VARIETY = (
    shell("mkdir -p /d/e && echo one > /d/a && ln /d/a /d/b && ln -s a /d/c && chmod 4711 /d/a"),
    shell("mkdir /gone /opaque && touch /gone/x /opaque/low /d/e/f && echo said"),
    "(workdir /w)", "(copy (src here) (dst ./there))",
    shell("rm -r /gone /opaque /d/c && mkdir /opaque && touch /opaque/up && touch -d @5.25 /d/e/f"),
    "(user (uid 7) (gid 8))", "(copy (from (build dev)) (src /big) (dst /w/))",
    shell("touch /w/../tmp/mine 2>/dev/null; id -u"),
    "(user (uid 0) (gid 0))", cached("echo kept > /v/c/kept; chown 3:4 /d/b", c="private"),
)  # fmt: skip
DEV = f"(build dev ((from micro) (shell /bin/sh -c) {shell('head -c 300000 /dev/urandom > /big')}))"


class World(NamedTuple):
    """What one machine has built and sent to a cache of each kind: `STEPS`, and `VARIETY`."""

    program: Program
    caches: dict[str, Cache]
    steps: str
    variety: str

    def on(self, name: str) -> Program:
        """The program on another machine, with a store of its own there."""
        use(self.program, name)
        return self.program


@pytest.fixture(scope="module")
def world(shelf: Shelf) -> Iterator[World]:
    with opened("overlayfs") as place:
        program = Program(place.directory)
        caches = {kind: shelf.cache(kind) for kind in KINDS}
        for cache in caches.values():
            program.variables |= cache.variables
        to = [word for cache in caches.values() for word in ("--cache-to", cache.name)]
        program.file("here", b"from here\n")
        keys = []
        for ops, before, sent in ((STEPS, "", 30), (VARIETY, DEV, 8)):
            program.spec(*ops, before=before)
            out = program.ok("build", *to)
            assert moved(out) == (0, 0, 3 * sent)
            keys.append(out.rpartition('Got: "')[2][:64])
            assert "cache:" not in program.ok("build", *to), "all of it is there"
        trees = [
            tree(program, key, f"{name}-before")
            for key, name in zip(keys, ("steps", "variety"), strict=True)
        ]
        yield World(program, caches, *trees)


@pytest.fixture(params=KINDS)
def cache(request: pytest.FixtureRequest, world: World) -> Cache:
    return world.caches[request.param]


@pytest.fixture
def layout(shelf: Shelf) -> Cache:
    return shelf.cache("layout")


def use(program: Program, name: str) -> None:
    """Another store, for one who knows the same passwords."""
    before = program.variables
    program.use(name)
    program.variables = {**before, **program.variables}


def moved(out: str) -> tuple[int, int, int]:
    """Of a build: steps that a cache had, layers that were fetched, and sent."""
    line = re.findall(r"^cache: .*$", out, re.MULTILINE)[-1]

    def count(pattern: str) -> int:
        found = re.search(pattern, line)
        return int(found[1]) if found else 0

    steps = count(r"(\d+) steps? found")
    return (
        steps,
        count(r"(\d+) layers? \([\d.]+ MB\) fetched"),
        count(r"(\d+) layers? \([\d.]+ MB\) sent"),
    )


def tree(program: Program, key: str, name: str) -> str:
    target = os.path.join(program.temporary, name)
    program.ok("export", key, target)
    return target


def test_an_empty_store_runs_nothing(world: World, cache: Cache) -> None:
    program = world.on(f"steps-{cache.name[:2]}")
    program.spec(*STEPS)
    out = program.ok("build", "--cache-from", cache.name)
    key = out.rpartition('Got: "')[2][:64]
    assert moved(out) == (30, 0, 0), "and moves no layer"
    assert "saved as" not in out
    assert out.count(f"from {cache.name}") == 30
    assert "cache:" not in program.ok("build"), "now it is known, and nobody is asked"
    assert program.ok("plan").count("cached") >= 30
    assert program.ok("log", key) == "said 29\n"
    listed = json.loads(program.ok("ls", "--json"))
    assert {record["kind"] for record in listed} == {"remote"}
    program.spec(*STEPS[:20], LAST)
    out = program.ok("build", "--cache-from", cache.name)
    assert moved(out) == (20, 20, 0), "a changed step fetches what it stands on"
    assert "\n20\n" in out
    assert "said 19\n" in out
    assert out.count("saved as") == 1
    program.spec(*STEPS, LAST)
    out = program.ok("build", "--cache-from", cache.name, "--cache-to", cache.name)
    assert moved(out) == (10, 10, 1), "and only what is not here yet"
    assert differences(world.steps, tree(program, key, f"steps-{cache.name[:2]}")) == []


def test_what_comes_is_what_was_made(world: World, cache: Cache) -> None:
    program = world.on(f"variety-{cache.name[:2]}")
    program.spec(*VARIETY, before=DEV)
    target = f"{program.temporary}/variety-{cache.name[:2]}"
    out = program.ok("build", "--cache-from", cache.name, "-o", target)
    assert moved(out) == (9, 0, 0)
    assert differences(world.variety, target) == []
    kinds = {r["key"]: r["kind"] for r in json.loads(program.ok("ls", "--json"))}
    use(program, "store")
    first = {r["key"]: r["kind"] for r in json.loads(program.ok("ls", "--json"))}
    assert all(kind == first[key] for key, kind in kinds.items() if kind != "remote")
    assert list(kinds.values()).count("run") == 5


def test_a_stage_that_comes_to_the_same_is_found_by_its_content(
    program: Program, shelf: Shelf
) -> None:
    cache = shelf.cache("layout")
    after = ("(copy (from (build dev)) (src /made) (dst /made))", shell("cat /made; echo used"))

    def stage(command: str) -> str:
        return f"(build dev ((from micro) (shell /bin/sh -c) {shell(command)}))"

    program.spec(*after, before=stage("touch -d @7 /made"))
    program.ok("build", "--cache-to", cache.name)
    use(program, "second")
    program.spec(*after, before=stage("touch -d @7 /made; true"))
    out = program.ok("build", "--cache-from", cache.name)
    assert out.count("saved as") == 1
    assert moved(out)[1] == 2
    assert "used\n" in out


def test_stores_of_other_kinds_take_the_same(world: World, layout: Cache) -> None:
    cache = world.caches["layout"]
    program = world.on("copies")
    program.variables["OBUILDER_STORE"] = f"copy:{program.store}"
    program.spec(*VARIETY, before=DEV)
    target = f"{program.temporary}/copies"
    program.ok("build", "--cache-from", cache.name, "-o", target)
    assert differences(world.variety, target) == []
    assert moved(program.ok("build", "--cache-to", layout.name))[2] == 7
    sent, there = layers_of(layout.name[4:]), layers_of(cache.name[4:])
    assert sent, "a layer is the same, whatever kind of store it was made in"
    assert sent <= there


def layers_of(layout: str) -> set[str]:
    """The digests of all layers in a cache that is a layout."""
    index = json.loads(Path(layout, "index.json").read_text())
    found = set()
    for entry in index["manifests"]:
        manifest = Path(layout, "blobs", entry["digest"].replace(":", "/"))
        layers = json.loads(manifest.read_text())["layers"]
        found |= {layer["digest"] for layer in layers if "tar" in layer["mediaType"]}
    return found


def test_mode_min_has_the_result_alone(program: Program, shelf: Shelf) -> None:
    cache = shelf.cache("layout")
    program.spec(*STEPS[:3])
    assert moved(program.ok("build", "--cache-to", cache.name, "--cache-mode", "min"))[2] == 3
    use(program, "second")
    assert moved(program.ok("build", "--cache-from", cache.name)) == (3, 0, 0)
    use(program, "third")
    program.spec(*STEPS[:2])
    assert moved(program.ok("build", "--cache-from", cache.name)) == (0, 0, 0)


def test_what_a_failed_build_made_is_sent(program: Program, layout: Cache) -> None:
    program.spec(*STEPS[:3], shell("exit 3"))
    done = program.run("build", "--cache-to", layout.name)
    assert done.status == 1
    assert moved(done.out)[2] == 3
    use(program, "second")
    program.spec(*STEPS[:3])
    assert moved(program.ok("build", "--cache-from", layout.name)) == (3, 0, 0)


def test_others_read_what_is_there(program: Program, shelf: Shelf) -> None:
    """The layout and the repository are ones to skopeo: what an entry needs goes along."""
    program.spec(*STEPS[:3])
    layout, registry = shelf.cache("layout"), shelf.cache("registry")
    program.variables |= registry.variables
    out = program.ok("build", "--cache-to", layout.name, "--cache-to", registry.name)
    key = out.rpartition('Got: "')[2][:64]
    said = json.loads(images.run("skopeo", "inspect", "--raw", f"{layout.name}:obuilder-{key}"))
    assert said["artifactType"] == "application/vnd.obuilder.cache.v1"
    name = f"{registry.name}:obuilder-{key}"
    options = ["--tls-verify=false", "--creds=me:word", "--raw"]
    assert json.loads(images.run("skopeo", "inspect", *options, name)) == said
    layers = [layer for layer in said["layers"] if "tar" in layer["mediaType"]]
    assert len(layers) == 3
    for layer in said["layers"]:
        assert Path(layout.name[4:], "blobs", layer["digest"].replace(":", "/")).exists()


# --- whom to trust -------------------------------------------------------------------------------


def configured(program: Program, **caches: dict[str, object]) -> None:
    """Write a config file, with settings for all caches."""
    lines = ['[caches."*"]']
    lines += [f"{name} = {json.dumps(value)}" for name, value in caches["all"].items()]
    path = program.file("config.toml", "\n".join(lines).encode())
    program.variables["OBUILDER_CONFIG"] = path


def keys(program: Program, name: str) -> tuple[str, str]:
    program.variables["COSIGN_PASSWORD"] = "word"
    path = os.path.join(program.temporary, name)
    program.ok("key", "new", path)
    return f"{path}.key", f"{path}.pub"


def test_entries_are_signed_when_there_is_a_key(program: Program, layout: Cache) -> None:
    private, public = keys(program, "mine")
    _, foreign = keys(program, "foreign")
    program.spec(*STEPS[:3])
    program.ok("build", "--cache-to", layout.name)
    use(program, "unsigned")
    configured(program, all={"keys": [public]})
    out = program.ok("build", "--cache-from", layout.name)
    assert moved(out) == (0, 0, 0)
    assert "signed by nobody" in out
    assert out.count("saved as") == 3
    use(program, "store")
    configured(program, all={"sign": private})
    program.ok("build", "--no-cache", "--cache-to", layout.name)
    for number, (known, found) in enumerate([(public, 3), (foreign, 0)]):
        use(program, f"second{number}")
        configured(program, all={"keys": [known]})
        out = program.ok("build", "--cache-from", layout.name)
        assert moved(out) == (found, 0, 0)
        assert ("signed by another key" in out) == (not found)


def test_secrets_and_caches_of_strangers(program: Program, shelf: Shelf) -> None:
    cache = shelf.cache("layout")
    secret = '(run (secrets (pass (target /run/pass))) (shell "wc -c < /run/pass"))'
    program.spec(STEPS[0], secret, STEPS[1])
    value = program.file("pass", b"very secret")
    words = ("build", "--secret", f"pass:{value}")
    assert moved(program.ok(*words, "--cache-to", cache.name))[2] == 1, "what comes before it"
    use(program, "second")
    out = program.ok(*words, "--cache-from", cache.name)
    assert moved(out) == (0, 0, 0), "it would run in a root that strangers made"
    configured(program, all={"trusted": True})
    out = program.ok(*words, "--cache-to", cache.name)
    assert moved(out)[2] == 3
    use(program, "third")
    assert moved(program.ok(*words, "--cache-from", cache.name)) == (3, 0, 0)
    assert "very secret" not in subprocess.run(
        ["grep", "-r", "very secret", cache.name[4:]], capture_output=True, text=True, check=False
    ).stdout  # fmt: skip


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_place_that_is_dead_fails_no_build(program: Program, shelf: Shelf) -> None:
    program.spec(*STEPS[:2])
    dead = ("docker://127.0.0.1:1/cache", "s3://nobody/has/this", f"oci:{program.store}/none/such")
    program.variables |= shelf.cache("s3").variables | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    options = [word for name in dead for word in ("--cache-from", name, "--cache-to", name)]
    Path(program.store).parent.joinpath("file").write_text("")
    out = program.ok("build", *options)
    assert out.count("warning: the cache docker://127.0.0.1:1/cache is not used any more") == 1
    assert out.count("warning: the cache s3://nobody/has/this is not used any more") == 1
    assert out.count("nothing more is sent to") == 2
    assert out.count("saved as") == 2
    configured(program, all={"required": True})
    done = program.run("build", "--no-cache", "--cache-to", dead[0])
    assert done.status == 5
    assert "not all could be sent to docker://127.0.0.1:1/cache, which is required" in done.err


def test_bad_names_and_settings(program: Program) -> None:
    program.spec(STEPS[0])
    for name, said in (
        ("nope", "there is no cache 'nope'"),
        ("docker://host/name:tag", "a whole repository, without tag or digest"),
        ("s3://", "there is no cache"),
        ("oci:", "there is no cache"),
    ):
        done = program.run("build", "--cache-from", name)
        assert done.status == 2
        assert said in done.err
    configured(program, all={"keys": ["/no/such/key"]})
    done = program.run("build", "--cache-from", "oci:somewhere")
    assert done.status == 2
    assert "can't read the key /no/such/key" in done.err
    program.file("config.toml", b'[caches."oci:x"]\ntrust = true\n')
    assert "unknown field `trust`" in program.run("build").err
    program.file("config.toml", b'cache-from = ["oci:elsewhere"]\n[caches."oci:elsewhere"]\n')
    program.variables["OBUILDER_CACHE_TO"] = "oci:one oci:two"
    found = json.loads(program.ok("config", "--json"))
    assert found["cache_from"]["value"] == ["oci:elsewhere"]
    assert found["cache_to"]["value"] == ["oci:one", "oci:two"]


def damage(cache: Cache, how: str) -> None:
    """Do something to the blobs of a cache that is a layout."""
    folder = Path(cache.name[4:], "blobs/sha256")
    for digest in layers_of(cache.name[4:]):
        path = folder / digest.removeprefix("sha256:")
        data = bytearray(path.read_bytes())
        if how == "gone":
            path.unlink()
        elif how == "cut":
            path.write_bytes(data[: len(data) // 2])
        else:
            data[len(data) // 2] ^= 0xFF
            path.write_bytes(data)


@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
def test_layers_that_are_damaged_are_made_again(program: Program, shelf: Shelf, how: str) -> None:
    cache = shelf.cache("layout")
    program.spec(*STEPS[:3])
    program.ok("build", "--cache-to", cache.name)
    shutil.copytree(cache.name[4:], f"{cache.name[4:]}-copy")
    damage(cache, how)
    use(program, "second")
    program.spec(*STEPS[:3], LAST)
    out = program.ok("build", "--cache-from", cache.name, "--cache-to", cache.name)
    assert f"warning: the cache {cache.name} is not used any more in this build" in out
    assert out.count("saved as") == 4
    assert os.listdir(f"{program.store}/drafts") == []
    assert os.listdir(f"{program.store}/downloads") == []
    use(program, "third")
    out = program.ok("build", "--cache-from", cache.name, "-o", f"{program.temporary}/out")
    assert moved(out)[0] == 4, "what was damaged was sent again"
    assert out.count("saved as") == 0
