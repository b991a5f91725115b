"""Spec to Dockerfile: the lines themselves."""

import pytest

from obuilder.spec.decode import parse
from obuilder.spec.to_dockerfile import to_dockerfile

SPEC = """((build dev ((from ocaml/opam:debian)
              (user (uid 1000) (gid 1000))
              (workdir /src)
              (env OPAMYES "a \\"b\\" $c")
              (copy (src "a b.opam") (dst ./))
              (run (cache (opam (target /home/opam/.opam))) (network host)
                   (secrets (tok (target /run/secrets/tok)))
                   (shell "opam install \\\\\\n  --deps-only"))
              (run (shell "make\\nmake test"))))
 (from scratch)
 (comment "two\\nlines")
 (shell /bin/sh "-c")
 (copy (from (build dev)) (src /src/x) (dst /usr/bin/x)))"""


def convert(**options: object) -> tuple[str, list[str]]:
    return to_dockerfile(parse(SPEC.encode(), file="t").spec, **options)  # type: ignore[arg-type]


def test_with_buildkit() -> None:
    text, warnings = convert(buildkit=True, escape="unix")
    assert (
        text
        == r"""FROM ocaml/opam:debian as dev
USER 1000:1000
WORKDIR /src
ENV OPAMYES="a \"b\" \$c"
COPY --chown=1000:1000 [ "a b.opam", "./" ]
RUN --mount=type=secret,id=tok,target=/run/secrets/tok,uid=1000 --mount=type=cache,id=opam,target=/home/opam/.opam,uid=1000 opam install \
  --deps-only
RUN [ "/bin/sh", "-c", "make\nmake test" ]

FROM scratch
# two
# lines
SHELL [ "/bin/sh", "-c" ]
COPY --from=dev /src/x /usr/bin/x
"""
    )
    assert warnings == [
        "of a directory, COPY puts what is in it into './', not itself; look what is one of: 'a b.opam'"
    ]


def test_without_buildkit_what_is_lost_is_said() -> None:
    text, warnings = convert(buildkit=False, escape="windows")
    assert text.startswith("#escape=`\nFROM ocaml/opam:debian as dev\n")
    assert "--mount" not in text
    assert len(warnings) == 2


def test_nothing_in_a_spec_can_add_a_line_to_the_dockerfile() -> None:
    evil = "x\\nRUN evil"
    for op in (
        f'(comment "{evil}")', f'(workdir "{evil}")', f'(env A "{evil}")', f'(user (name "{evil}"))',
        f'(copy (src "{evil}") (dst /x))', f'(run (cache ("{evil}" (target "/c"))) (shell y))',
    ):  # fmt: skip
        spec = parse(f"((from a) {op})".encode(), file="t").spec
        text, _ = to_dockerfile(spec, buildkit=True, escape="unix")
        assert not any(line.startswith("RUN evil") for line in text.splitlines()), op


def line_of(op: str) -> str:
    spec = parse(f"((from a) {op})".encode(), file="t").spec
    return to_dockerfile(spec, buildkit=True, escape="unix")[0].removeprefix("FROM a\n")[:-1]


@pytest.mark.parametrize(
    ("op", "line"),
    [
        (r'(run (shell "echo $X \\"))', r'RUN [ "/bin/sh", "-c", "echo $X \\" ]'),
        (r'(run (shell "[ -f x ] || y"))', "RUN [ -f x ] || y"),
        (r'(run (shell "[\"x\"]"))', r'RUN [ "/bin/sh", "-c", "[\"x\"]" ]'),
        (r'(run (shell " --mount=x"))', r'RUN [ "/bin/sh", "-c", " --mount=x" ]'),
        ('(copy (src "<<E") (dst --x))', 'COPY [ "<<E", "--x" ]'),
        ("(workdir --x)", 'WORKDIR "--x"'),
        (r'(run (shell "cat <<E > f"))', r'RUN [ "/bin/sh", "-c", "cat <<E > f" ]'),
        (r'(run (shell "a \\\n b \\\n c"))', "RUN a \\\n b \\\n c"),
        (r'(run (shell "a \\\n# b"))', r'RUN [ "/bin/sh", "-c", "a \\\n# b" ]'),
        (r'(run (shell ""))', r'RUN [ "/bin/sh", "-c", "" ]'),
        (r'(workdir "/a b")', 'WORKDIR "/a b"'),
        (r'(workdir "/a\\")', r'WORKDIR "/a\\"'),
        (r'(copy (src "a[1]*") (dst "/x y/"))', 'COPY [ "a[[]1][*]", "/x y/" ]'),
        (r'(copy (src "$a\"") (dst /x))', r'COPY [ "\\$a\\\"", "/x" ]'),
        (
            "(run (cache (c (target /c) (mode locked))) (shell x))",
            "RUN --mount=type=cache,id=c,target=/c,uid=0,sharing=locked x",
        ),
    ],
)
def test_what_docker_would_read_otherwise_is_written_otherwise(op: str, line: str) -> None:
    assert line_of(op) == line


def test_a_stage_is_not_taken_for_the_image_of_its_name() -> None:
    spec = parse(b"((build a ((from a))) (build A ((from b))) (from a))", file="t").spec
    text, _ = to_dockerfile(spec, buildkit=False, escape="unix")
    assert text == "FROM a as a-2\n\nFROM b as A-3\n\nFROM a\n"
