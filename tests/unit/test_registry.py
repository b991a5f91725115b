"""Rows of the registry, and back ends that are paired by it."""

import pytest

import places
from obuilder import Builder, Settings, errors
from obuilder.backends import registry
from obuilder.backends.protocols import EngineImage
from obuilder.backends.registry import SANDBOXES, STORES, BackEnd, StoreKind, parse_store
from obuilder.testing.fakes import open_fakes
from workbench import run, spec

FAKE = "obuilder.testing.fakes:"


class ImageSandbox:
    """What is known of a sandbox for another kind of root before it is opened."""

    accepts = frozenset({EngineImage})


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setitem(STORES, "fake", StoreKind(FAKE + "FakeStore", "copies"))
    monkeypatch.setitem(STORES, "pool", StoreKind(FAKE + "FakeStore", "copies", place="name"))
    monkeypatch.setitem(SANDBOXES, "fake", BackEnd(FAKE + "FakeSandbox", "no isolation"))
    monkeypatch.setitem(SANDBOXES, "image", BackEnd(f"{__name__}:ImageSandbox", "for images"))


@pytest.mark.parametrize("table", [STORES, SANDBOXES])
def test_every_row_names_a_class_that_can_be_opened(table):
    for kind, row in table.items():
        found = registry.load(row.target)
        assert callable(found.open), kind
        assert row.summary


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("overlayfs:/a/b/../c", ("overlayfs", "/a/c")),
        ("btrfs://a", ("btrfs", "/a")),
        ("pool:tank", ("pool", "/tank")),
        ("pool:/mnt/tank", ("pool", "/mnt/tank")),
    ],
)
def test_a_store_is_its_kind_and_a_place(rows, text, meant):
    assert parse_store(text) == meant


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("nosuch:/x", errors.UnknownBackend, "there is no store called 'nosuch'"),
        ("", errors.UnknownBackend, "there is no store called ''"),
        ("overlayfs", errors.UsageError, "needs an absolute path"),
        ("overlayfs:x", errors.UsageError, "needs an absolute path"),
        ("pool:", errors.UsageError, "needs a name"),
    ],
)
def test_what_is_no_store_is_told_with_what_is(rows, text, error, said):
    with pytest.raises(error, match=said) as wrong:
        parse_store(text)
    assert wrong.value.hint
    if error is errors.UnknownBackend:
        assert "overlayfs:/path (overlay layers" in wrong.value.hint
        assert "pool:NAME (copies)" in wrong.value.hint


def test_pairs_are_what_the_classes_say(rows):
    assert ("fake", "fake") in registry.pairs()
    assert ("overlayfs", "oci") in registry.pairs()
    assert "image" not in [sandbox for _, sandbox in registry.pairs()]


@pytest.mark.anyio
async def test_a_pair_that_does_not_meet_is_refused_with_those_that_do(rows):
    with places.memory() as directory:
        settings = Settings(store=f"fake:{directory}/store", sandbox="image")
        with pytest.raises(errors.BackendMismatch, match="image does not work on") as refused:
            async with Builder.open(settings):
                pass
        assert "fake with fake" in refused.value.hint
        async with open_fakes(f"{directory}/store") as (store, _):
            with pytest.raises(errors.BackendMismatch, match="ImageSandbox does not work on"):
                async with Builder.over(store, ImageSandbox()):
                    pass


@pytest.mark.anyio
async def test_a_sandbox_that_nobody_knows_is_told(rows):
    with pytest.raises(errors.UnknownBackend, match="no sandbox called 'nosuch'") as refused:
        async with Builder.open(Settings(store="fake:/nowhere", sandbox="nosuch")):
            pass
    assert "oci (crun, runc" in refused.value.hint
    with pytest.raises(errors.UsageError, match="no store is named"):
        async with Builder.open(Settings()):
            pass


@pytest.mark.anyio
@pytest.mark.needs("namespaces")
async def test_a_row_and_a_file_are_all_that_a_back_end_needs(rows):
    with places.memory() as directory:
        settings = Settings(store=f"fake:{directory}/store", sandbox="fake")
        async with Builder.open(settings) as builder:
            result = await builder.build(spec(run("id -u")), directory)
            assert builder.log(result.key) == b"0\n"
