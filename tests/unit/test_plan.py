"""Plans: what is in them, and what keys depend on."""

import msgspec

from obuilder.plan.context import normalise
from obuilder.plan.lower import lower, wanted
from obuilder.plan.model import Base, Inputs, Layer, Plan
from obuilder.spec.decode import parse
from obuilder.spec.image import DEFAULT_PATH, ImageConfig
from obuilder.values import Platform


def base(name: str) -> Base:
    return Base(name, f"sha256:{name}", Platform("linux", "amd64"), (Layer(f"sha256:{name}"),))


def plan(text: str, manifest: str = "m") -> Plan:
    spec = parse(text.encode(), file="t").spec
    needs = wanted(spec)
    return lower(
        spec,
        Inputs(
            bases={name: base(name) for name in needs.bases},
            copies={copy.op: manifest for copy in needs.copies},
        ),
    )


def same(one: str, other: str) -> bool:
    return plan(one).result == plan(other).result


def test_equivalent_specs_have_one_key() -> None:
    assert same("((from a) (run (shell x)))", '((from a) (comment "no") (run (shell x)))')
    assert same(
        "((from a) (workdir /a/) (run (shell x)))", "((from a) (workdir /a/b/..) (run (shell x)))"
    )
    assert same(
        "((from a) (env A 1) (env B 2) (run (shell x)))",
        "((from a) (env B 2) (env A 0) (env A 1) (run (shell x)))",
    )
    assert same(
        "((from a) (run (cache (c (target /c))) (limits (time 1m)) (shell x)))",
        "((from a) (run (shell x)))",
    )


def test_an_image_without_a_path_gets_the_usual_one() -> None:
    spec = parse(b"((from a) (env A 1) (run (shell x)))", file="t").spec

    def path(image: Base) -> str:
        planned = lower(spec, Inputs(bases={"a": image}, copies={}))
        return dict(planned.contexts[planned.result].env)["PATH"]

    own = msgspec.structs.replace(base("a"), config=ImageConfig(env=(("PATH", "/only"),)))
    assert path(base("a")) == DEFAULT_PATH
    assert path(own) == "/only"


def test_what_changes_a_result_changes_its_key() -> None:
    first = "((from a) (run (shell x)))"
    for other in (
        "((from b) (run (shell x)))",
        "((from a) (run (shell y)))",
        "((from a) (run (network host) (shell x)))",
        "((from a) (user (uid 1) (gid 1)) (run (shell x)))",
        "((from a) (workdir /w) (run (shell x)))",
        "((from a) (shell sh) (run (shell x)))",
        "((from a) (env A 1) (run (shell x)))",
        "((from a) (run (secrets (s)) (shell x)))",
    ):
        assert not same(first, other), other
    copy = "((from a) (copy (src .) (dst /x)))"
    assert plan(copy, "m").result != plan(copy, "n").result


def test_names_that_are_not_text_have_keys_of_their_own() -> None:
    names = ['"\\255"', '"\\254"', '"b:\\\\xff"', '"\\\\xff"', '"b:\\255"', "x"]
    keys = {plan(f"((from a) (env A {name}) (run (shell x)))").result for name in names}
    assert len(keys) == len(names)


def test_a_stage_that_nobody_needs_is_not_planned() -> None:
    found = plan("((build unused ((from zzz) (run (shell x)))) (from a) (run (shell y)))")
    assert len(found.steps) == 2


def test_stages_come_before_what_copies_from_them() -> None:
    found = plan(
        """((build one ((from a) (run (shell 1)))) (build two ((from a) (run (shell 2))))
            (from a) (copy (from (build two)) (src f) (dst /f))
            (copy (from (build one)) (src f) (dst /g)))"""
    )
    seen: set[str] = set()
    for step in found.steps.values():
        assert set(step.needs) <= seen
        seen.add(step.key)
    assert found.result in seen
    assert len(found.steps) == 5


def test_an_inner_build_of_a_name_hides_the_outer_one() -> None:
    found = plan(
        """((build x ((from outer)))
            (build y ((build x ((from inner))) (from a) (copy (from (build x)) (src f) (dst /f))))
            (from a) (copy (from (build y)) (src f) (dst /f)))"""
    )
    headings = [step.heading for step in found.steps.values()]
    assert "(from inner)" in headings
    assert "(from outer)" not in headings


def test_a_name_used_again_means_what_stood_before_each_use() -> None:
    found = plan(
        """((build x ((from one)))
            (build y ((from a) (copy (from (build x)) (src f) (dst /f))))
            (build x ((from two)))
            (from a) (copy (from (build y)) (src f) (dst /f))
            (copy (from (build x)) (src f) (dst /g)))"""
    )
    headings = [step.heading for step in found.steps.values()]
    assert "(from one)" in headings
    assert "(from two)" in headings


def test_an_inner_build_may_copy_from_the_outer_one_whose_name_it_takes() -> None:
    found = plan(
        """((build x ((from one)))
            (build y ((build x ((from two) (copy (from (build x)) (src f) (dst /f))))
                      (from a) (copy (from (build x)) (src f) (dst /f))))
            (from a) (copy (from (build y)) (src f) (dst /f)))"""
    )
    headings = [step.heading for step in found.steps.values()]
    assert {"(from one)", "(from two)"} <= set(headings)


def test_windows_images_have_paths_users_and_a_shell_of_their_own() -> None:
    image = Base("w", "sha256:w", Platform("windows", "amd64"), (Layer("sha256:l"),))
    spec = parse(
        rb"""((from w) (run (cache (c (target /cache))) (shell dir))
             (workdir src) (run (shell dir)) (workdir D:\\a\..\b) (workdir c)
             (user (name ContainerUser)) (shell powershell -Command) (run (shell dir)))""",
        file="",
    ).spec
    _, first, second, third = lower(spec, Inputs(bases={"w": image}, copies={})).steps.values()
    assert (first.action.argv, first.action.cwd) == (("cmd", "/S", "/C", "dir"), "C:/")
    assert (first.action.user.name, first.action.env) == ("ContainerAdministrator", ())
    assert first.action.caches[0].target == "C:/cache"
    assert second.action.cwd == "C:/src"
    assert third.action.cwd == "D:/b/c"
    assert third.action.argv == ("powershell", "-Command", "dir")
    assert third.action.user.name == "ContainerUser"
    said = msgspec.structs.replace(image, config=ImageConfig(workdir=r"D:\app"))
    spec = parse(b"((from w) (inherit) (run (shell dir)))", file="").spec
    *_, last = lower(spec, Inputs(bases={"w": said}, copies={})).steps.values()
    assert (last.action.cwd, last.action.user.name) == ("D:/app", "ContainerAdministrator")
    assert last.action.argv == ("cmd", "/S", "/C", "dir")


def test_paths_are_normalised() -> None:
    assert normalise("/a//b/./../c/") == "/a/c"
    assert normalise("x", "/w") == "/w/x"
    assert normalise("../../..", "/w") == "/"
    assert normalise("", "/w") == "/w"
    assert normalise("C:/x", "/:/y") == "/:/y/C:/x", "no drive"


def test_a_chain_of_stages_may_be_as_long_as_it_likes() -> None:
    builds = "".join(
        f"(build b{n} ((from a) (copy (from (build b{n - 1})) (src x) (dst /y))))"
        for n in range(1, 3_000)
    )
    found = plan(
        f"((build b0 ((from a))) {builds} (from a) (copy (from (build b2999)) (src x) (dst /y)))"
    )
    assert len(found.steps) == 3_001
