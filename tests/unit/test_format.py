"""`fmt` lays out and changes nothing else."""

from hypothesis import given, settings

from obuilder.spec.decode import parse
from obuilder.spec.encode import print_spec
from obuilder.spec.format import format_text
from obuilder.testing.specs import specs

TEXT = b"""; what this builds
((build dev ((from debian) (run (shell "make
  all")))) ; the tools
 #| the end
    result |#
 (from   scratch)

 (copy (from (build dev)) ; just one
       (src a) (dst /a))
 #; (run (shell "left out"))
 (env A b))
; bye
"""


def test_comments_are_kept_and_the_spec_stays_the_same() -> None:
    once = format_text(TEXT)
    for comment in (b"; what this builds", b"; the tools", b"#| the end", b"; just one", b"; bye"):
        assert comment in once
    assert b"#;" in once
    assert parse(once, file="t").spec == parse(TEXT, file="t").spec
    assert format_text(once) == once


@given(specs())
@settings(max_examples=100, deadline=None)
def test_formatting_what_is_printed_changes_no_meaning(spec) -> None:
    text = print_spec(spec).encode("utf-8", "surrogateescape")
    once = format_text(text)
    assert parse(once, file="t").spec == spec
    assert format_text(once) == once
