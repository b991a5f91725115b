"""The spec language, from its own words."""

import contextlib
import time

import pytest

from obuilder.errors import SpecError, SpecErrors
from obuilder.spec.decode import parse
from obuilder.spec.encode import heading, one_line, print_spec
from obuilder.spec.format import format_text
from obuilder.spec.model import (
    Cache,
    Comment,
    Copy,
    Env,
    Run,
    Secret,
    SetUser,
    Shell,
    Spec,
    Workdir,
)  # fmt: skip
from obuilder.spec.sexp import Atom, List, Source, quote, read
from obuilder.spec.to_dockerfile import to_dockerfile
from obuilder.values import Limits, NamedUser, UnixUser


def atoms(text: bytes) -> object:
    """Nested lists of texts."""

    def plain(node: object) -> object:
        if isinstance(node, Atom):
            return node.text
        assert isinstance(node, List)
        return [plain(item) for item in node.items]

    return plain(read(Source(text, "t")))


def spec(text: str) -> Spec:
    return parse(text.encode(), file="t").spec


def faults(text: bytes | str) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(SpecErrors) as caught:
        parse(data, file="t")
    return [error.message for error in caught.value.errors]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"(a b)", ["a", "b"]),
        (b"(a\tb\fc\r\nd)", ["a", "b", "c", "d"]),
        (b'(ab"cd"ef)', ["ab", "cd", "ef"]),
        (rb"(C:\foo\n)", ["C:\\foo\\n"]),
        (b"(# | ## a||b #foo |foo)", ["#", "|", "##", "a||b", "#foo", "|foo"]),
        (b"(foo;bar\n)", ["foo"]),
        (b"(a #| x #| y |# z |# b)", ["a", "b"]),
        (b'(a #| "|#" |# b)', ["a", "b"]),
        (b"(#; #; a b c)", ["c"]),
        (b"(a) ; the end", ["a"]),
        (b"\xef\xbb\xbf(a)", ["a"]),
        (b"#; (a) (b) #; c", ["b"]),
        (b"(a#;b\n)", ["a#"]),
        (b"(a\x0bb)", ["a\x0bb"]),
        (b"(a ; \r no end of line here\n b)", ["a", "b"]),
        (b'("a\rb" "a\r\nb")', ["a\rb", "a\r\nb"]),
        (b'(a "" "b""c")', ["a", "", "b", "c"]),
        (rb'("\n\t\r\b\\\"\'")', ["\n\t\r\b\\\"'"]),
        (rb'("\065\x41")', ["AA"]),
        (rb'("\255")', ["\udcff"]),
        (rb'("\d\& \ x")', ["\\d\\& \\ x"]),
        (b'("a\\\n   b")', ["ab"]),
        (b'("a\\\r\n\t b")', ["ab"]),
        (b'("a\nb")', ["a\nb"]),
        (b'(a "" b)', ["a", "", "b"]),
        (b"(\xff\x00x)", ["\udcff\0x"]),
        ("(é)".encode(), ["é"]),
    ],
)
def test_the_reader_reads(text: bytes, expected: object) -> None:
    assert atoms(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"", b"  ; nothing\n", b"(a", b"a)", b"(a) (b)", b"(a) b", b'("abc', b"(#; )", b"#; a",
        b"(a\rb)", b"(a#|b)", b"(a|#b)", b"(|# a)", b"(#| a)", b'(#| " |# a)', rb'("\25")',
        rb'("\256")', rb'("\xg0")', rb'("\x4")', b"(a \xef\xbb\xbf\r)", b"(a #; #; b)",
    ],
)  # fmt: skip
def test_the_reader_refuses(text: bytes) -> None:
    assert faults(text)


def test_depth_costs_no_stack() -> None:
    assert faults(b"(" * 100_000 + b")" * 100_000)


def cost(work, text: bytes) -> float:
    best = 1e9
    for _ in range(3):
        began = time.process_time()
        with contextlib.suppress(SpecErrors, SpecError):
            work(text)
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize(
    "piece",
    [
        b"(comment x)", b'(comment "a\\n") ; c\n', b"(bad)", b'"\\x41\\x41"', b'#| " |# " |#\n', b"#;",
        b"()", b"(run (limits (memory x)))", b"(copy (from (build no)) (src a) (dst b))",
    ],
)  # fmt: skip
def test_time_is_in_proportion_also_in_one_line(piece: bytes) -> None:
    def text(count: int) -> bytes:
        return b'((from a) (env A "' + b"\\n\\x41" * count + b'")' + piece * count + b")"

    for work in (lambda text: parse(text, file="t"), format_text):
        assert cost(work, text(2_400)) < 24 * max(cost(work, text(300)), 0.005)


def test_time_is_in_proportion_to_the_number_of_builds() -> None:
    def text(count: int) -> bytes:
        builds = (
            f"(build b{n} ((from a) (copy (from (build b{n - 1})) (src x) (dst y))))"
            for n in range(1, count)
        )
        return f"((build b0 ((from a))) {' '.join(builds)} (from a))".encode()

    def work(text: bytes) -> None:
        to_dockerfile(parse(text, file="t").spec, buildkit=True, escape="unix")

    assert cost(work, text(2_400)) < 24 * max(cost(work, text(300)), 0.005)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abc", "abc"), ("", '""'), ("a b", '"a b"'), ("é", '"\\195\\169"'), ("a\n", '"a\\n"'),
        ("a\\b", '"a\\\\b"'), ("a#|b", '"a#|b"'), ("\x7f", '"\\127"'), ("#;", '"#;"'),
    ],
)  # fmt: skip
def test_atoms_are_printed_as_obuilder_does(text: str, shown: str) -> None:
    assert quote(text) == shown


def test_every_op_is_read() -> None:
    found = spec(
        """((build dev ((from b)))
            (from base)
            (comment "a remark") (workdir /src) (shell /bin/sh -c) (env A "x y")
            (user (uid 1000) (gid 0x10)) (user (name root))
            (run (network host) (cache (c (target /c) (mode append) (buildkit_options ((k v)))))
                 (secrets (s (target /s)) (t)) (limits (memory 2G) (time 1.5m)) (shell "make"))
            (copy (from (build dev)) (src a b) (dst /d/) (exclude .git))
            (copy (src .) (dst x)))"""
    )
    assert found == Spec(
        base="base",
        children=(("dev", Spec(base="b")),),
        ops=(
            Comment("a remark"),
            Workdir("/src"),
            Shell(("/bin/sh", "-c")),
            Env("A", "x y"),
            SetUser(UnixUser(1000, 16)),
            SetUser(NamedUser("root")),
            Run(
                shell="make",
                cache=(Cache("c", "/c", "append", (("k", "v"),)),),
                network=("host",),
                secrets=(Secret("s", "/s"), Secret("t", "/run/secrets/t")),
                limits=Limits(memory=2 << 30, seconds=90),
            ),
            Copy(src=("a", "b"), dst="/d/", build="dev", exclude=(".git",)),
            Copy(src=(".",), dst="x"),
        ),
    )
    assert spec(print_spec(found)) == found


@pytest.mark.parametrize(
    ("capital", "small"),
    [
        ("(Run ((shell x)))", "(run (shell x))"),
        ("(Copy ((src a) (dst b)))", "(copy (src a) (dst b))"),
        ("(User ((uid 1) (gid 2)))", "(user (uid 1) (gid 2))"),
        ("(Env (K V))", "(env K V)"),
        ("(Workdir /x)", "(workdir /x)"),
    ],
)
def test_capitalised_forms(capital: str, small: str) -> None:
    assert spec(f"((from b) {capital})") == spec(f"((from b) {small})")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("((from a) (from b))", "second (from"),
        ("((run (shell x)))", "before (from"),
        ("((from a) (build x ((from b))))", "must stand before"),
        ("((from a) x)", "must be a list"),
        ("((from a) ())", "not ()"),
        ("((from a b))", "exactly one"),
        ("((From a))", "write (from …) in small letters"),
        ("((Build x ((from a))) (from b))", "write (build …) in small letters"),
        ("(from a)", "not one operation"),
        ("((build x (from a)) (from b))", "not one operation"),
        ("FROM debian\nRUN make", "a spec is a list, not the word 'FROM'"),
        ("((from a)) (run (shell x))", "here begins another"),
        ("((from a) (WORKDIR x))", "unknown operation"),
        ("((from a) (run ((shell x))))", "without more parentheses"),
        ("((from a) (copy ((src x) (dst y))))", "without more parentheses"),
        ("((from a) (Run (shell x)))", "must be a list"),
        ("((from a) (run))", "needs its command"),
        ("((from a) (run (shell a b)))", "one string"),
        ("((from a) (run (network (host)) (shell x)))", "not a list"),
        ("((from a) (run (shell x) (shell y)))", "a second (shell"),
        ("((from a) (run (cache (c)) (shell x)))", "needs its target"),
        ("((from a) (run (cache (c (target /proc/x))) (shell x)))", "can't be /proc/x"),
        ("((from a) (run (cache (c (target /a/../b))) (shell x)))", "can't hold .."),
        ("((from a) (env A))", "two arguments"),
        ("((from a) (env A=B c))", "can't be empty or hold ="),
        ("((from a) (user (gid 1)))", "a user is"),
        ("((from a) (user (uid -1) (gid 1)))", "from 0 to"),
        ("((from a) (user (uid 4294967295) (gid 1)))", "from 0 to 4294967294"),
        ("((from a) (user (uid 4611686018427387904) (gid 1)))", "from 0 to"),
        ("((from a) (user (uid _1) (gid 1)))", "whole number"),
        ("((from a) (user (uid 0_x1) (gid 1)))", "whole number"),
        ("((from a) (user (uid 0x) (gid 1)))", "whole number"),
        ("((from a) (user (uid 08_9a) (gid 1)))", "whole number"),
        ("((from a) (user (uid 1.0) (gid 1)))", "whole number"),
        ('((from a) (workdir "a\\000b"))', "can't hold NUL"),
        ("((from a) (copy (src) (dst x)))", "no source items"),
        ("((from a) (copy (src a b) (dst x)))", "must end with /"),
        ("((from a) (copy (src ../a) (dst x)))", "can't use .."),
        ("((from a) (copy (from (build b)) (src a) (dst x)))", "unknown build"),
        (
            "((build b ((from a) (copy (from (build b)) (src a) (dst x)))) (from c))",
            "unknown build",
        ),
    ],
)
def test_the_grammar_refuses(text: str, message: str) -> None:
    assert any(message in found for found in faults(text))


def test_all_faults_are_told_at_once_each_with_its_place() -> None:
    text = b"((from a)\n (rn (shell x))\n (run (shel x)))"
    with pytest.raises(SpecErrors) as caught:
        parse(text, file="t.spec")
    first, second = caught.value.errors
    assert first.span is not None
    assert (first.span.line, first.span.column) == (2, 3)
    assert first.hint == "did you mean 'run'?"
    assert first.excerpt == (" (", "rn", " (shell x))")
    assert second.span is not None
    assert (second.span.line, second.span.column) == (3, 8)


def test_what_hides_no_other_fault_is_told_with_it() -> None:
    assert faults(
        """((from a b)
            (user (uid x) (gid y))
            (run (cache (c (target rel)) (d (target /proc))) (limits (cpus no) (time 1y)) (shell a b))
            (copy (from (build q)) (src ../a b) (dst x)))"""
    ) == [
        "(from …) takes exactly one argument, here are 2",
        "the uid must be a whole number, not 'x'",
        "the gid must be a whole number, not 'y'",
        "the target of a cache must be an absolute path",
        "the target of a cache can't be /proc",
        "the limit cpus must be a positive number",
        "the limit time must be a positive number, with a unit if you like: s, m, h, d",
        "the command of run is one string, here are 2",
        "unknown build 'q'",
        "can't use .. in source paths, as in '../a'",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("+10", 10), ("0x1F", 31), ("0X1f", 31), ("0o17", 15), ("0b101", 5), ("0u9", 9),
     ("1_000", 1000), ("1__0_", 10), ("4294967294", 4294967294)],
)  # fmt: skip
def test_numbers_are_read_as_ocaml_does(text: str, value: int) -> None:
    assert spec(f"((from a) (user (uid {text}) (gid 0)))").ops == (SetUser(UnixUser(value, 0)),)


def test_places_count_characters_however_long_the_line() -> None:
    for text, column in (
        ("((from a) (comment é) (rn))", 24),
        ("((from a) (comment " + "日本" * 5_000 + ") (rn))", 10_023),
        ("((from a) " + "(comment é) " * 9_000 + "(rn))", 108_012),
    ):
        with pytest.raises(SpecErrors) as caught:
            parse(text.encode(), file="t")
        assert caught.value.span is not None
        assert caught.value.span.column == column
        assert caught.value.excerpt[1] == "rn"
        assert sum(map(len, caught.value.excerpt)) < 200


def test_builds_see_what_stands_before_them() -> None:
    found = spec(
        """((build a ((from x)))
            (build b ((build c ((from z) (copy (from (build a)) (src f) (dst g))))
                      (from y) (copy (from (build c)) (src f) (dst g))))
            (from w) (copy (from (build b)) (src f) (dst g)))"""
    )
    assert [name for name, _ in found.children] == ["a", "b"]


def test_a_heading_shows_a_long_command_line_by_line_and_parses_again() -> None:
    op = spec(r'((from a) (run (network host) (shell "set -e\n\n  \"make\" é\n")))').ops[0]
    shown = heading(op)
    assert shown.splitlines() == [
        "(run (network host)",
        r'     (shell "set -e\ '.rstrip(),
        r"           \n\ ".rstrip(),
        r'           \n  \"make\" \195\169\n"))',
    ]
    assert one_line(shown) == r'(run (network host) (shell "set -e\n\n  \"make\" \195\169\n"))'
    assert spec(f"((from a) {shown})").ops == (op,)
