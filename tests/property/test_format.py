"""`fmt` keeps the spec and every comment, and has nothing left to do on what it laid out."""

import random

from obuilder.spec.decode import parse
from obuilder.spec.format import format_text
from obuilder.spec.sexp import Source, tokens

SEED = b"""((build dev ((from ocaml/opam:debian) (workdir /src) (user (uid 1000) (gid 1000))
  (run (cache (c (target /c) (mode append))) (network host) (shell "make \\"all\\"
 x"))))
 (from scratch) (env A "x\\nb") (copy (from (build dev)) (src a b) (dst /bin/)))"""
BETWEEN = (
    "; a line\n", ';"quoted\n', ";\n", "\n; on its own line\n", "\n\n; after an empty one\n",
    "#| a block |#", "#||#", "#| two\n  lines |#", '#| "|#" |#', "#| a #| nested |# one |#",
    "#;atom", "#; (x (y z))", "#;#; a (b)", '#;"str"', "#;(x ; deep\n y)",
    "\n", "\n\n", "\n\n\n", "\r\n", "\f", "\t",
)  # fmt: skip


def words(text: bytes) -> list[bytes]:
    return [text[token.start : token.end] for token in tokens(Source(text, ""))]


def comments(text: bytes) -> list[bytes]:
    return [word.rstrip() for word in words(text) if word.startswith((b";", b"#|"))]


def test_comments_anywhere_are_kept_and_change_nothing() -> None:
    spec = parse(SEED, file="t").spec
    for seed in range(300):
        chance = random.Random(seed)
        parts = []
        for word in [*words(SEED), b""]:
            count = chance.choice((0, 0, 0, 1, 2))
            parts += [chance.choice(BETWEEN).encode() for _ in range(count)]
            parts.append(word)
        text = b" ".join(parts)
        once = format_text(text)
        assert parse(once, file="t").spec == spec, seed
        assert comments(once) == comments(text), seed
        assert format_text(once) == once, seed
