"""Entries of caches, and what of a plan may come from one: without a cache."""

import os
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from obuilder import Settings
from obuilder.backends.caches import parse_cache
from obuilder.engine.cache_entry import LOG, Entry, Link, Log, Remote, capped, opened, sealed
from obuilder.engine.cache_policy import may_take, sent_as, to_send
from obuilder.engine.index import Index, Record
from obuilder.errors import BadImage, UsageError
from obuilder.oci.pack import Blob
from obuilder.oci.signing import generate, load_public
from obuilder.plan.lower import lower
from obuilder.plan.model import Base, Inputs, Layer, Plan, RunAction
from obuilder.values import CacheSettings, Key, Platform
from workbench import run, spec

KEYS = [Key(f"{number:064x}") for number in range(1, 5)]
DIGEST = "sha256:" + "a" * 64


def entry(*headings: str, key: Key = KEYS[3], single: bool = False) -> Entry:
    links = [Link(KEYS[0], None, "layer", "from", "", 1.5, 0.0)]
    for number, heading in enumerate(headings):
        links.append(
            Link(
                KEYS[number + 1], KEYS[number], "run", heading, "dev", 2.5, 1.0,
                Blob(DIGEST, DIGEST, 17, "gzip"), Log(DIGEST, 5) if number else None,
            )
        )  # fmt: skip
    return Entry(key, tuple(links), single)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3), st.booleans())
def test_what_is_sealed_is_opened(headings: list[str], single: bool) -> None:
    made = entry(*headings, single=single)
    assert opened(sealed(made, None), KEYS[3], []) == made
    assert made.result == KEYS[len(headings)]
    assert len(made.blobs()) == 1, "each blob is named once"


@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(0, 255))
def test_no_entry_makes_a_traceback(noise: bytes, place: int, byte: int) -> None:
    whole = bytearray(sealed(entry("one", "two"), None))
    whole[place % len(whole)] = byte
    for data in (noise, bytes(whole), bytes(whole[: place % len(whole)])):
        try:
            opened(data, KEYS[3], [])
        except BadImage:
            continue


@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ed25519"])
def test_signatures(tmp_path: Path, algorithm: str) -> None:
    key, other = generate(algorithm), generate(algorithm)
    (tmp_path / "pub").write_bytes(key.public.pem)
    known = load_public(str(tmp_path / "pub"))
    made = entry("one")
    assert opened(sealed(made, key), KEYS[3], [other.public, known]) == made
    with pytest.raises(BadImage, match="signed by another key"):
        opened(sealed(made, other), KEYS[3], [known])
    with pytest.raises(BadImage, match="signed by nobody"):
        opened(sealed(made, None), KEYS[3], [known])
    forged = sealed(made, key).replace(b'"payload":"', b'"payload":"IA')
    with pytest.raises(BadImage):
        opened(forged, KEYS[3], [known])


def test_long_logs_keep_their_ends() -> None:
    assert capped(b"short") == b"short"
    data = b"start" + bytes(3 * LOG) + b"end"
    kept = capped(data)
    assert len(kept) <= LOG
    assert kept.startswith(b"start")
    assert kept.endswith(b"end")
    assert b"bytes left out" in kept


def test_names() -> None:
    for text, name in (
        ("docker://host:5000/a/b/", "docker://host:5000/a/b"),
        ("docker://debian", "docker://docker.io/library/debian"),
        ("oci:here", f"oci:{os.getcwd()}/here"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
    ):
        assert parse_cache(text).name == name
        assert parse_cache(name).name == name
    for text in (
        "",
        "x",
        "oci:",
        "s3:",
        "s3://",
        "docker:host/x",
        "docker://h/x@sha256:0",
        "tar:x",
    ):
        with pytest.raises(UsageError):
            parse_cache(text)


# --- policy --------------------------------------------------------------------------------------

SECRET = run("cat /s", "(secrets (s (target /s)))")


def plan(*ops: str, stages: str = "") -> Plan:
    wanted = spec(*ops, base="base", stages=stages)
    base = Base("base", DIGEST, Platform("linux", "amd64"), (Layer(DIGEST),))
    return lower(wanted, Inputs(bases={"base": base}, copies={}))


def headings(found: Plan, keys: set[Key]) -> set[str]:
    actions = [found.steps[key].action for key in keys]
    return {action.argv[-1] if isinstance(action, RunAction) else "" for action in actions}


def test_what_strangers_may_have_to_do_with_secrets() -> None:
    stages = f"(build other ((from base) (shell /bin/sh -c) {run('apart')}))"
    made = plan(
        run("before"), SECRET, run("after"), "(copy (from (build other)) (src /x) (dst /))",
        stages=stages,
    )  # fmt: skip
    stranger, friend, signed = "oci:/stranger", "oci:/friend", "oci:/signed"
    settings = Settings(
        caches={friend: CacheSettings(trusted=True), signed: CacheSettings(keys=("k",))}
    )
    everything = {"before", "cat /s", "after", "apart", ""}
    for known in (friend, signed):
        assert headings(made, may_take(made, settings, known)) == everything
        assert headings(made, to_send(made, settings, known)) == everything
    assert headings(made, may_take(made, settings, stranger)) == {"apart"}
    assert headings(made, to_send(made, settings, stranger)) == {"before", "apart"}
    least = Settings(cache_mode="min", caches=settings.caches)
    assert to_send(made, least, friend) == {made.result}
    assert to_send(made, least, stranger) == set()


def test_what_was_sent_was_signed_by_somebody() -> None:
    settings = Settings(caches={"*": CacheSettings(sign="a"), "oci:/x": CacheSettings()})
    assert sent_as(settings, "oci:/x") == "oci:/x"
    assert sent_as(settings, "oci:/y") != "oci:/y"


# --- the index -----------------------------------------------------------------------------------


def test_results_that_are_elsewhere(tmp_path: Path) -> None:
    index = Index(str(tmp_path))
    made = entry("one", "two")
    index.add_remotes([Remote("oci:/x", link) for link in made.links], ["s.1"])
    index.alias(made.key, made.result)
    assert index.find(KEYS) == {}
    assert index.find(KEYS, remote=True) == {
        KEYS[0]: KEYS[0], KEYS[1]: KEYS[1], KEYS[2]: KEYS[2], KEYS[3]: KEYS[2]
    }  # fmt: skip
    remote = index.remote(KEYS[2])
    assert remote == Remote("oci:/x", made.links[2])
    assert [record.kind for record in index.records()] == ["remote"] * 3
    assert index.volatile() == []
    real = Record(KEYS[1], "run", "one", "dev", KEYS[0], 2.5, 9.0, 1.0)
    index.add(real)
    assert index.remote(KEYS[1]) is None
    index.add_remotes([Remote("oci:/y", made.links[1])], [])
    assert index.record(KEYS[1]) == [real], "what is here stays"
    assert not index.condemn(KEYS[2], set())
    assert index.condemn(KEYS[2], {"s.1"})
    assert index.remote(KEYS[2]) is None
    assert index.find([KEYS[3]], remote=True) == {}
    index.put_sent("oci:/x", KEYS[0])
    assert index.sent("oci:/x", KEYS) == {KEYS[0]}
    assert index.sent("oci:/y", KEYS) == set()
    index.put_sent("oci:/x", KEYS[0], there=False)
    assert index.sent("oci:/x", KEYS) == set()
    index.close()
