"""Results of sandboxes that do not isolate are never taken for others: keys, and what is refused."""

import pytest

from obuilder.backends.fetchers import Sources
from obuilder.backends.protocols import Features
from obuilder.backends.registry import SANDBOXES, domain_of
from obuilder.engine.actions import Workshop
from obuilder.engine.settings import Settings
from obuilder.errors import UnknownBackend, Unsupported
from obuilder.oci.platforms import host_platform
from obuilder.plan.lower import lower, wanted
from obuilder.plan.model import Base, CopyAction, Inputs, Layer, MkdirAction, Plan
from obuilder.spec.decode import parse
from obuilder.values import ROOT, IdMap, Limits, Platform

TEXT = b"""((build dev ((from a) (run (shell make))))
 (from a) (copy (src x) (dst /x)) (copy (from (build dev)) (src y) (dst /y)) (run (shell x)))"""


def plan(domain: str = "", text: bytes = TEXT) -> Plan:
    spec = parse(text, file="t").spec
    needs = wanted(spec)
    base = Base("a", "sha256:a", Platform("linux", "amd64"), (Layer("sha256:a"),))
    copies = {copy.op: "m" for copy in needs.copies}
    return lower(spec, Inputs(bases=dict.fromkeys(needs.bases, base), copies=copies), domain=domain)


def test_every_run_and_what_stands_on_it_has_another_key_in_each_domain() -> None:
    plans = [plan(), plan("host"), plan("users")]
    shared = set.intersection(*(set(found.steps) for found in plans))
    # A layer, and a copy on it: made by the builder itself, alike whoever runs what comes after.
    assert len(shared) == 2
    assert len({found.result for found in plans}) == 3
    assert {len(found.steps) for found in plans} == {5}


def test_sandboxes_that_isolate_have_no_domain_and_are_the_first_choice() -> None:
    assert domain_of(None) == ""
    assert next(iter(SANDBOXES)) == "oci"
    assert domain_of("oci") == ""
    assert Settings(store="overlayfs:/s").domain == ""
    assert Settings(store="overlayfs:/s", sandbox="host").domain == "host"
    with pytest.raises(UnknownBackend):
        domain_of("nope")


class _Sandbox:
    def __init__(self, networks: frozenset[str], places: tuple[str, ...] = ("/",)) -> None:
        self.features = Features(
            users=False, networks=networks, secrets=True, limits=frozenset(),
            platforms=(host_platform(),), isolation=False, policies=frozenset(), places=places,
        )  # fmt: skip


class _Store:
    idmap = IdMap(first=1, count=65536)


def refusal(sandbox: _Sandbox, *ops: str) -> str | None:
    """Why a spec is refused; None if it is not."""
    workshop = Workshop(_Store(), sandbox, None, Limits(), Sources())  # type: ignore[arg-type]
    try:
        for step in plan(text=f"((from a) {' '.join(ops)})".encode()).steps.values():
            workshop.refuse(step.action)
    except Unsupported as error:
        return error.message
    return None


def test_where_no_step_can_be_kept_off_the_network_it_has_to_ask_for_it() -> None:
    open_to_all = _Sandbox(frozenset({"host"}))
    assert "can't keep a step off the network" in str(refusal(open_to_all, "(run (shell x))"))
    assert refusal(open_to_all, "(run (network host) (shell x))") is None
    assert "no network called 'lan'" in str(refusal(open_to_all, "(run (network lan) (shell x))"))
    closed = _Sandbox(frozenset({""}))
    assert refusal(closed, "(run (shell x))") is None
    assert "no network called 'host'" in str(refusal(closed, "(run (network host) (shell x))"))


def test_what_is_outside_of_a_steps_places_is_refused() -> None:
    some = _Sandbox(frozenset({""}), ("/home/b", "/usr/local"))
    for good in (
        "(copy (src x) (dst /usr/local/bin/))", "(copy (src x) (dst /home/b))",
        "(workdir /home/b/deep) (run (shell x))", "(run (shell x))",
        "(run (cache (c (target /home/b/c))) (shell x))",
    ):  # fmt: skip
        assert refusal(some, good) is None, good
    for bad in (
        "(copy (src x) (dst /usr/localx/))", "(copy (src x) (dst /home))", "(copy (src x) (dst /x))",
        "(workdir /home/b/../a) (run (shell x))", "(run (cache (c (target /c))) (shell x))",
        "(run (secrets (s (target /s))) (shell x))",
    ):  # fmt: skip
        assert "steps do not have it" in str(refusal(some, bad)), bad


def test_only_a_copy_puts_files_into_a_root_of_windows() -> None:
    windows = _Sandbox(frozenset({""}), ("C:/",))
    workshop = Workshop(_Store(), windows, None, Limits(), Sources())  # type: ignore[arg-type]
    workshop.refuse(CopyAction(("x",), "C:/x", into=False, user=ROOT))
    with pytest.raises(Unsupported, match="nothing but a `copy`"):
        workshop.refuse(MkdirAction("C:/x", ROOT))


def test_one_user_for_all_steps_is_root_to_the_spec() -> None:
    some = _Sandbox(frozenset({""}))
    assert refusal(some, "(user (uid 0) (gid 0)) (run (shell x))") is None
    assert "one user" in str(refusal(some, "(user (uid 1) (gid 1)) (run (shell x))"))
