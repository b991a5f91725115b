"""Pulls through networks and registries that fail in every way: the image is right, or nothing is."""

import json
import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

import images
from obuilder.oci.platforms import host_platform
from program import finish, running, shell, until
from registries import Front, make_authority, make_certificate, running as running_registry
from trees import differences

pytestmark = pytest.mark.needs("root", "overlay", "registry", "umoci", "skopeo")

SIZES = (3_000_000, 2_000_000, 1_000_000)
"""Of the files in the layers, which can't be compressed."""
SHOW = shell("cat /big0 /big1 /big2 | sha256sum; ls /")


@pytest.fixture(scope="module")
def big(registry, layout):
    """Of an image with large layers: what `SHOW` says of it."""
    import hashlib

    place, digest = tempfile.mkdtemp(dir="/var/tmp"), hashlib.sha256()
    try:
        copy = shutil.copytree(layout, f"{place}/layout")
        for number, size in enumerate(SIZES):
            before = "two" if number == 0 else f"big{number - 1}"
            with images._bundle(copy, before, f"big{number}", place) as root:
                data = os.urandom(size)
                digest.update(data)
                Path(root, f"big{number}").write_bytes(data)
                if number == 0:
                    shutil.copy("/usr/bin/busybox", f"{root}/bin/sha256sum")
        registry.push(f"oci:{copy}:big2", "big:1")
    finally:
        shutil.rmtree(place)
    return f"{digest.hexdigest()}  -\nbig0\nbig1\nbig2\nbin\n"


@pytest.fixture
def front(registry):
    with Front(registry.host) as front:
        yield front


@pytest.fixture
def use(program, front, big):
    """Writes a spec on the large image behind the front."""
    program.spec(SHOW, base=f"{front.host}/big:1")


def refused(program):
    """What is said when nothing comes of it, and nothing is left of it."""
    done = program.run("build")
    assert done.status == 5, done
    assert done.err.count("error: ") == 1
    assert os.listdir(f"{program.store}/drafts") == []
    return done.err


def pulled(program, big):
    assert big in program.ok("build")
    assert os.listdir(f"{program.store}/downloads") == []


def starts(front):
    """Where the parts of blobs that were asked for began, by their digests."""
    found = {}
    for path, headers in front.blobs():
        said = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", "bytes=0-"))
        found.setdefault(path.rpartition(":")[2], []).append(int(said[1]))
    return found


def part_sizes(program):
    try:
        names = os.listdir(f"{program.store}/downloads")
        return {name: os.path.getsize(f"{program.store}/downloads/{name}") for name in names}
    except FileNotFoundError:
        return {}


def test_a_registry_that_cuts_off_and_is_busy_now_and_then(program, front, use, big):
    front.cut = 200_000
    front.busy = [(503, {}), (429, {"Retry_After": "0"}), (502, {})]
    pulled(program, big)
    largest = max(starts(front).values(), key=len)
    assert len(largest) >= SIZES[0] / front.cut
    assert largest == sorted(largest)
    assert len(set(largest)) == len(largest)  # nothing came twice


def test_all_at_once_and_the_root_is_what_umoci_makes_of_it(program, layout, tmp_path):
    """Passwords, a certificate of one's own, an index, zstd, cuts every 200 kB, a busy registry."""
    copy, user = str(shutil.copytree(layout, tmp_path / "layout")), "me:word"
    images.make_odd(copy)
    with images._bundle(copy, "odd", "large", str(tmp_path)) as root:
        Path(root, "large").write_bytes(os.urandom(1_500_000))
    images.run("umoci", "unpack", "--image", f"{copy}:large", f"{tmp_path}/bundle")  # knows no zstd
    authority = make_authority(str(tmp_path))
    with running_registry(users={"me": "word"}) as guarded:
        for tag in ("large", "two"):
            guarded.push(
                f"oci:{copy}:{tag}", f"app:{tag}", "--dest-compress-format=zstd", user=user
            )
        pairs = [("two", "linux/s390x"), ("large", str(host_platform()))]
        guarded.put_index("app", "1", pairs, user)
        with Front(guarded.host, make_certificate(str(tmp_path), authority)) as front:
            front.cut, front.busy = 200_000, [(503, {}), (429, {"Retry_After": "0"})]
            known = {"auths": {front.host: {"username": "me", "password": "word"}}}
            program.file("config.json", json.dumps(known).encode())
            settings = f'[registries."{front.host}"]\nca = "{authority}"\n'
            program.variables |= {
                "DOCKER_CONFIG": program.context,
                "OBUILDER_CONFIG": program.file("config.toml", settings.encode()),
            }
            program.spec(base=f"{front.host}/app:1")
            program.ok("build", "-o", f"directory:{program.temporary}/root")
            assert max(len(places) for places in starts(front).values()) > 5
    assert differences(f"{program.temporary}/root", f"{tmp_path}/bundle/rootfs") == []


def test_busy_in_the_middle_of_a_layer(program, front, use, big):
    front.cut = 1_500_000
    answers = [(503, {}), (429, {}), (503, {})] * 2

    class Now(list):
        """Busy, once a layer has begun to come."""

        def __bool__(self):
            return front.sent > 1_000_000 and bool(answers)

        def pop(self, _):
            return answers.pop()

    front.busy = Now()
    pulled(program, big)
    assert answers == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_registry_that_gives_no_parts(program, front, use, big, chunked):
    front.ranges, front.chunked, front.cut = False, chunked, 500_000
    said = refused(program)
    assert "broke off" in said or re.search(r"ends after \d+ of \d+ bytes", said)
    front.cut = None
    pulled(program, big)


def test_bytes_that_are_changed_on_the_way(program, front, use, big):
    front.corrupt = 700_000
    assert "not what was asked for" in refused(program)
    front.corrupt = None
    pulled(program, big)


@pytest.mark.parametrize(
    ("lie", "chunked", "said"),
    [
        (100, False, r"has \d+ bytes, and should have \d+"),
        (-100, False, r"has \d+ bytes, and should have \d+"),
        (100, True, r"has more than the \d+ bytes it should have"),
    ],
)
def test_a_registry_that_lies_about_sizes(program, front, use, big, lie, chunked, said):
    front.lie, front.spared, front.chunked = lie, 10_000, chunked
    assert re.search(said, refused(program))
    front.lie, front.chunked = 0, False
    pulled(program, big)


def test_how_long_to_wait_is_the_registrys_to_say(program, front, use, big):
    front.busy = [(429, {"Retry_After": "2"})]
    began = time.monotonic()
    pulled(program, big)
    assert time.monotonic() - began > 2


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (429, {"Retry_After": "3600"}, "answers 429: not now; it says to come back in 3600 s"),
        (503, {"Retry_After": "Fri, 31 Dec 2999 23:59:59 GMT"}, "it says to come back in"),
        (500, {}, "answers 500: not now"),
        (418, {}, "answers 418: not now"),
        (403, {}, "does not let us in: not now"),
        (404, {}, "has no such image: not now"),
    ],
)
def test_refusals_in_one_line(program, front, use, status, headers, said):
    front.busy = [(status, headers)] * 5
    assert said in refused(program)


def test_a_host_where_nobody_is(program):
    program.spec(SHOW, base="127.0.0.1:1/app")
    began = time.monotonic()
    assert "can't reach 127.0.0.1:1: Connection refused" in refused(program)
    assert time.monotonic() - began < 20


def test_where_blobs_are_redirected_to_nobody_learns_who_we_are(program, registry, layout):
    with running_registry(users={"me": "word"}) as guarded:
        guarded.push(f"oci:{layout}:one", "app:one", user="me:word")
        with Front(guarded.host) as first, Front(registry.host) as second:
            first.redirect = second.host
            auths = {first.host: {"username": "me", "password": "word"}}
            program.file("config.json", json.dumps({"auths": auths}).encode())
            program.variables["DOCKER_CONFIG"] = program.context
            program.spec(shell("cat /made"), base=f"{first.host}/app:one")
            assert "made" in program.ok("build")
            assert len(second.asked) == 3
            assert all("authorization" not in {n.lower() for n in h} for _, _, h in second.asked)
            assert any("Authorization" in headers for _, _, headers in first.asked)
            first.redirect = first.host
            program.use("another")
            program.variables["DOCKER_CONFIG"] = program.context
            assert "redirects round and round" in refused(program)


def documents(**change):
    """Changes image manifests as they pass."""

    def rewrite(path, data):
        if "/manifests/" not in path:
            return data
        return json.dumps({**json.loads(data), **change}).encode()

    return rewrite


LAYER = {
    "digest": "sha256:" + "0" * 64,
    "size": 5,
    "mediaType": "application/vnd.oci.image.layer.v1.tar",
}


@pytest.mark.parametrize(
    ("rewrite", "said"),
    [
        (lambda path, data: b"{", "is malformed"),
        (lambda path, data: b"[]", "is malformed"),
        (lambda path, data: b"x" * (17 << 20), "absurdly large"),
        (documents(manifests=[]), "neither an image nor an index"),
        (documents(config=None), "neither an image nor an index"),
        (documents(schemaVersion=1), "Docker gave up"),
        (documents(mediaType="application/vnd.oci.image.index.v1+json"), "and is a manifest"),
        (documents(layers=[]), "not the same layers"),
        (documents(layers=[LAYER | {"mediaType": "application/wasm"}]), "unknown type 'application/wasm'"),
        (documents(layers=[LAYER | {"size": 1 << 60}]), "absurd size"),
        (documents(layers=[LAYER | {"digest": "md5:0"}]), "no SHA-256 digest"),
        (documents(layers=[LAYER] * 5), "has no such image"),
        (documents(config={"digest": "../../x", "size": 2}), "no SHA-256 digest"),
        (documents(config={"digest": LAYER["digest"], "size": 1 << 40}), "absurd size"),
    ],
)  # fmt: skip
def test_documents_that_no_registry_should_have(program, front, use, rewrite, said):
    front.rewrite, front.digests = rewrite, False
    assert said in refused(program)


def test_a_config_of_another_size(program, front, use):
    front.lie = -1
    assert re.search(r"has \d+ bytes, and should have \d+", refused(program))


def test_a_document_that_is_not_what_the_registry_says(program, front, use):
    front.rewrite = documents(annotations={"a": "b"})
    assert "gives something else" in refused(program)


def begun(program, at_least):
    """A build whose first layer is there, and of whose next so many bytes are."""
    process = program.start("build")

    def enough():
        sizes = part_sizes(program)
        assert process.poll() is None, finish(process)
        return sum(sizes.values()) > at_least

    until(enough, "a pull got so far", seconds=60)
    return process


def test_what_a_killed_pull_had_is_not_fetched_again(program, front, use, big):
    front.pace = 0.05
    process = begun(program, 1_500_000)
    process.kill()
    process.communicate()
    left = part_sizes(program)
    assert left
    front.pace = 0
    front.asked.clear()
    pulled(program, big)
    asked = starts(front)
    for name, size in left.items():
        digest, _, part = name.partition(".")
        if not part:
            assert digest not in asked
        elif size:
            assert asked[digest] == [size]


def test_what_a_killed_pull_had_may_be_damaged(program, front, use, big):
    front.pace = 0.05
    process = begun(program, 1_500_000)
    process.kill()
    process.communicate()
    front.pace = 0
    front.asked.clear()
    (name, size) = max(part_sizes(program).items(), key=lambda item: item[1])
    path = f"{program.store}/downloads/{name}"
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(b"damaged")
    pulled(program, big)
    digest, _, part = name.partition(".")
    assert starts(front)[digest] == ([size, 0] if part else [0])


def test_an_interrupted_pull_ends_at_once_and_is_gone_on_with(program, front, use, big):
    front.pace = 0.05
    process = begun(program, 1_000_000)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    assert finish(process).status == 130
    assert time.monotonic() - sent < 5
    left = {name: size for name, size in part_sizes(program).items() if size}
    assert left
    front.pace = 0
    front.asked.clear()
    pulled(program, big)
    assert any(0 not in places for places in starts(front).values())


def test_pulls_that_nobody_goes_on_with_are_pruned(program, front, use, big):
    front.pace = 0.05
    process = begun(program, 1_000_000)
    still = program.run("prune")
    assert still.status == 0
    assert part_sizes(program)  # somebody is at it
    process.kill()
    process.communicate()
    program.ok("prune", "--older-than", "1h")
    assert part_sizes(program)
    for name in part_sizes(program):
        os.utime(f"{program.store}/downloads/{name}", (1, 1))
    program.ok("ls")
    program.ok("prune", "--older-than", "1h")
    assert part_sizes(program) == {}


def test_two_pulls_fetch_each_layer_once(program, front, use, big):
    front.pace = 0.01
    first, second = program.start("build"), program.start("build")
    for process in (first, second):
        done = finish(process)
        assert done.status == 0, done
        assert big in done.out
    layers = {digest: places for digest, places in starts(front).items() if places}
    assert sorted(len(places) for places in layers.values())[:-1] == [1] * (len(layers) - 1)
    assert os.listdir(f"{program.store}/downloads") == []
    assert running(program.store) == []
