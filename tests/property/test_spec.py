"""No text makes the parser stumble, and printing loses nothing."""

import random

from hypothesis import given, settings, strategies as st

from obuilder.errors import SpecErrors
from obuilder.spec.decode import parse
from obuilder.spec.encode import print_spec
from obuilder.testing.specs import specs


@given(specs())
@settings(max_examples=200, deadline=None)
def test_what_is_printed_parses_to_the_same_spec(spec) -> None:
    text = print_spec(spec)
    found = parse(text.encode("utf-8", "surrogateescape"), file="t").spec
    assert found == spec
    assert print_spec(found) == text


@given(st.binary(max_size=300))
@settings(max_examples=1000, deadline=None)
def test_random_bytes_are_refused_politely(data: bytes) -> None:
    try:
        parse(data, file="t")
    except SpecErrors as error:
        assert error.errors


SEED = b"""((build dev ((from ocaml/opam:debian) (workdir /src) (user (uid 1000) (gid 1000))
  (run (cache (c (target /c) (mode append))) (network host) (shell "make \\"all\\""))))
 (from scratch) (env A "x\\nb") #| c |# (copy (from (build dev)) (src a b) (dst /bin/)))"""


def test_a_thousand_mutated_specs_are_read_or_refused_politely() -> None:
    chance = random.Random(7)
    for _ in range(1000):
        data = bytearray(SEED)
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.choice(b'()";#|\\ \n\xff\x00a0')
                case 1:
                    del data[at : at + chance.randint(1, 20)]
                case _:
                    data[at:at] = data[at : at + chance.randint(1, 20)]
        try:
            parse(bytes(data), file="t")
        except SpecErrors as error:
            assert error.errors
