"""Caches that cut off, are busy, slow or hostile: the build is right, and nothing is left of it."""

import base64
import gzip
import hashlib
import json
import os
import tarfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from places import opened
from program import Program, finish, shell, until
from registries import Front, Registry, running as running_registry

pytestmark = [
    pytest.mark.needs("root", "overlay", "registry", "crun"), pytest.mark.xdist_group("faultycaches")
]  # fmt: skip

STEPS = tuple(shell(f"head -c 700000 /dev/urandom > /f{number}") for number in range(3))
LAST = shell("cat /f0 /f1 /f2 | sha256sum")


class Made(NamedTuple):
    """A registry with a cache that has `STEPS`, and what `LAST` says of them."""

    registry: Registry
    said: str


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    with running_registry() as registry, opened("overlayfs") as place:
        program = Program(place.directory)
        program.spec(*STEPS, LAST)
        out = program.ok("build")
        program.spec(*STEPS)
        program.ok("build", "--cache-to", f"docker://{registry.host}/cache")
        yield Made(registry, next(line for line in out.splitlines() if line.endswith("  -")))


@pytest.fixture
def front(made: Made) -> Iterator[Any]:
    with Front(made.registry.host) as front:
        yield front


def build(program: Program, name: str) -> str:
    program.spec(*STEPS, LAST)
    out = program.ok("build", "--cache-from", name)
    assert os.listdir(f"{program.store}/drafts") == []
    return out


def test_a_cache_that_cuts_off_and_is_busy(program: Program, front: Any, made: Made) -> None:
    front.cut = 200_000
    front.busy = [(503, {}), (429, {"Retry_After": "0"}), (502, {})]
    out = build(program, f"docker://{front.host}/cache")
    assert made.said in out
    assert "cache: 3 steps found, 3 layers (2.1 MB) fetched, nothing sent" in out
    assert os.listdir(f"{program.store}/downloads") == []


def test_one_question_is_enough(program: Program, front: Any, made: Made) -> None:
    program.spec(*STEPS)
    out = program.ok("build", "--cache-from", f"docker://{front.host}/cache")
    assert "cache: 3 steps found, nothing fetched, nothing sent" in out
    assert len(front.asked) == 1
    assert front.sent == 0


def test_a_cache_that_is_changed_on_the_way(program: Program, front: Any, made: Made) -> None:
    front.corrupt = 300_000
    out = build(program, f"docker://{front.host}/cache")
    assert out.count("is not used any more in this build") == 1
    assert "not what was asked for" in out
    assert made.said not in out, "it was built, so it is other bytes"
    assert os.listdir(f"{program.store}/downloads") == []


def test_a_cache_that_does_not_answer(program: Program, front: Any, made: Made) -> None:
    front.busy = [(503, {"Retry_After": "30"})] * 50
    began = time.monotonic()
    out = build(program, f"docker://{front.host}/cache")
    assert "does not answer" in out
    assert out.count("saved as") == 5
    assert time.monotonic() - began < 40


def test_killed_while_it_fetches(program: Program, front: Any, made: Made) -> None:
    front.pace = 0.1
    program.spec(*STEPS, LAST)
    name = f"docker://{front.host}/cache"
    process = program.start("build", "--cache-from", name)
    until(lambda: front.sent > 1_000_000, "some of it came", seconds=60)
    process.kill()
    process.communicate()
    sent, front.pace = front.sent, 0.0
    out = build(program, name)
    assert made.said in out
    assert front.sent - sent < 2_000_000, "what was there did not come again"
    assert os.listdir(f"{program.store}/downloads") == []


def test_killed_while_it_sends(program: Program) -> None:
    with running_registry() as registry:
        name = f"docker://{registry.host}/cache"
        program.spec(*STEPS, *STEPS[::-1])
        process = program.start("build", "--cache-to", name)
        folder = f"{registry.directory}/data/docker/registry/v2/repositories/cache/_manifests"
        until(lambda: os.path.exists(folder), "an entry is there", seconds=60)
        process.kill()
        process.communicate()
        out = program.ok("build", "--cache-to", name)
        assert "warning" not in out
        before = program.variables
        program.use("second")
        program.variables = {**before, **program.variables}
        assert "cache: 6 steps found" in program.ok("build", "--cache-from", name)


def test_two_at_the_same_time_fetch_once(program: Program, front: Any, made: Made) -> None:
    front.pace = 0.02
    program.spec(*STEPS, LAST)
    name = f"docker://{front.host}/cache"
    both = [program.start("build", "--cache-from", name) for _ in range(2)]
    for process in both:
        done = finish(process)
        assert done.status == 0, done
        assert made.said in done.out
    assert front.sent < 2_400_000


# --- entries that somebody made up ---------------------------------------------------------------


class Layout:
    """A cache that is a layout, to be tampered with."""

    def __init__(self, path: str) -> None:
        self.path = path

    def blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        Path(self.path, "blobs/sha256", digest).write_bytes(data)
        return f"sha256:{digest}"

    def change(self, alter: Any) -> None:
        """Put another entry in the place of each: `alter` takes and gives what it says."""
        index = json.loads(Path(self.path, "index.json").read_text())
        for entry in index["manifests"]:
            path = Path(self.path, "blobs", entry["digest"].replace(":", "/"))
            manifest = json.loads(path.read_text())
            envelope = json.loads(
                base64.b64decode(manifest["annotations"]["org.obuilder.cache.entry"])
            )
            said = alter(json.loads(base64.b64decode(envelope["payload"])))
            envelope["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
            text = base64.b64encode(json.dumps(envelope).encode()).decode()
            manifest["annotations"]["org.obuilder.cache.entry"] = text
            data = json.dumps(manifest).encode()
            entry |= {"digest": self.blob(data), "size": len(data)}
        Path(self.path, "index.json").write_text(json.dumps(index))

    def layer(self, *members: tuple[str, bytes, str], zeros: int = 0) -> dict[str, Any]:
        """A layer that has these, and a file of so many zeros."""
        content = BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            for name, kind, target in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                tar.addfile(info)
            if zeros:
                info = tarfile.TarInfo("zeros")
                info.size = zeros
                tar.addfile(info, BytesIO(bytes(zeros)))
        data = gzip.compress(content.getvalue(), 9)
        diff = hashlib.sha256(content.getvalue()).hexdigest()
        return {
            "diff": f"sha256:{diff}", "digest": self.blob(data), "size": len(data), "form": "gzip"
        }  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    with opened("overlayfs") as place:
        program = Program(place.directory)
        program.spec(shell("echo 1 > /a"), shell("echo 2 > /b"))
        name = f"{place.directory}/cache"
        program.ok("build", "--cache-to", f"oci:{name}")
        yield name


def last(*, of: int = 0, **change: Any) -> Any:
    """Changes the last link of entries, or of those that have so many."""

    def alter(entry: dict[str, Any]) -> dict[str, Any]:
        if of in (0, len(entry["links"])):
            entry["links"][-1] |= change
        return entry

    return alter


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda entry: entry | {"key": "f" * 64}, "is malformed: it is of ffffffffffff"),
        (lambda entry: entry | {"links": []}, "has no links"),
        (lambda entry: entry | {"links": entry["links"][::-1]}, "not in a row"),
        (lambda entry: entry | {"links": entry["links"][1:]}, "not in a row"),
        (lambda entry: [], "is malformed"),
        (last(layer=None), "a step has no layer"),
        (last(kind="volume"), "it has a 'volume'"),
        (last(key="../../x"), "a key is none"),
        (last(log={"digest": "sha256:" + "0" * 64, "size": 1 << 40}), "a log is none"),
        (lambda entry: entry | {"links": [entry["links"][0] | {"key": "e" * 64}]}, "base image"),
        (lambda entry: entry | {"single": True}, "all files are of one owner"),
    ],
)  # fmt: skip
def test_entries_that_are_none(program: Program, small: str, alter: Any, said: str) -> None:
    layout = Layout(f"{program.temporary}/cache")
    os.system(f"cp -a {small} {layout.path}")
    layout.change(alter)
    program.spec(shell("echo 1 > /a"), shell("echo 2 > /b"))
    out = program.ok("build", "--cache-from", f"oci:{layout.path}")
    assert said in out
    assert "warning: " in out
    assert "cache: 0 steps found" in out
    assert out.count("saved as") == 3


def test_layers_that_are_none(program: Program, small: str) -> None:
    layout = Layout(f"{program.temporary}/cache")
    os.system(f"cp -a {small} {layout.path}")
    layers = [
        layout.layer(("../evil", tarfile.REGTYPE, "")),
        layout.layer(("a", tarfile.LNKTYPE, "../../../etc/passwd")),
        layout.layer(zeros=20 << 20) | {"diff": "sha256:" + "0" * 64},
        layout.layer() | {"diff": "sha256:" + "0" * 64},
        layout.layer() | {"size": 5},
    ]
    program.spec(shell("echo 1 > /a"), shell("echo 2 > /b"), shell("ls /; cat /b"))
    for number, layer in enumerate(layers):
        layout.change(last(of=3, layer=layer))
        program.use(f"store{number}")
        out = program.ok("build", "--cache-from", f"oci:{layout.path}")
        assert out.count("is not used any more in this build") == 1, layer
        assert "\n2\n" in out
        assert out.count("saved as") == 2
        assert "cache: 1 step found, 1 layer (0.0 MB) fetched" in out
        assert os.listdir(f"{program.store}/drafts") == []
        assert os.listdir(f"{program.store}/downloads") == []
    assert not os.path.exists(f"{program.store}/evil")
