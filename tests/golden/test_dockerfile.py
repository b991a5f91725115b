"""Spec to Dockerfile: the lines themselves."""

from obuilder.spec.decode import parse
from obuilder.spec.to_dockerfile import to_dockerfile

SPEC = """((build dev ((from ocaml/opam:debian)
              (user (uid 1000) (gid 1000))
              (workdir /src)
              (env OPAMYES "a \\"b\\" $c")
              (copy (src "a b.opam") (dst ./))
              (run (cache (opam (target /home/opam/.opam))) (network host)
                   (secrets (tok (target /run/secrets/tok)))
                   (shell "opam install \\\\\\n  --deps-only\\n\\nmake"))))
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
RUN --mount=type=secret,id=tok,target=/run/secrets/tok,uid=1000 --mount=type=cache,id=opam,target=/home/opam/.opam,uid=1000 opam install \ \
    --deps-only \
     \
    make

FROM scratch
# two
# lines
SHELL [ "/bin/sh", "-c" ]
COPY --from=dev /src/x /usr/bin/x
"""
    )
    assert warnings == []


def test_without_buildkit_what_is_lost_is_said() -> None:
    text, warnings = convert(buildkit=False, escape="windows")
    assert text.startswith("#escape=`\nFROM ocaml/opam:debian as dev\n")
    assert "--mount" not in text
    assert warnings == ["without BuildKit, caches and secrets are left out"]


def test_nothing_in_a_spec_can_add_a_line_to_the_dockerfile() -> None:
    evil = "x\\nRUN evil"
    for op in (
        f'(comment "{evil}")', f'(workdir "{evil}")', f'(env A "{evil}")', f'(user (name "{evil}"))',
        f'(copy (src "{evil}") (dst /x))', f'(run (cache ("{evil}" (target "/c"))) (shell y))',
    ):  # fmt: skip
        spec = parse(f"((from a) {op})".encode(), file="t").spec
        text, _ = to_dockerfile(spec, buildkit=True, escape="unix")
        assert not any(line.startswith("RUN evil") for line in text.splitlines()), op
