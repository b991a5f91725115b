"""Dockerfile to Spec to Dockerfile to Spec keeps all that a plan is made from; no text is a surprise."""

import random

import pytest
from hypothesis import given, settings, strategies as st

from dockerfile_cases import CASES
from obuilder.errors import ObuilderError, SpecErrors
from obuilder.plan.lower import lower, wanted
from obuilder.plan.model import Base, Inputs, Layer, Plan
from obuilder.spec.decode import parse as parse_spec
from obuilder.spec.dockerfile import parse
from obuilder.spec.encode import print_spec
from obuilder.spec.from_dockerfile import Options, images, to_spec
from obuilder.spec.image import ImageConfig
from obuilder.spec.model import Spec
from obuilder.spec.to_dockerfile import to_dockerfile
from obuilder.values import Platform

HERE = Platform("linux", "amd64")


def converted(text: bytes, **options: object) -> Spec:
    dockerfile = parse(text, file="Dockerfile")
    given_ = Options(HERE, **options)  # type: ignore[arg-type]
    config = ImageConfig(env=(("PATH", "/bin"), ("BASE", "b")), workdir="/w", user="app")
    return to_spec(dockerfile, given_, dict.fromkeys(images(dockerfile, given_), config)).spec


def plan(spec: Spec) -> Plan:
    needs = wanted(spec)
    bases = {
        name: Base(
            name, name, HERE, (Layer("sha256:" + name),),
            ImageConfig() if name == "scratch" else ImageConfig(env=(("BASE", "b"),), workdir="/w"),
        )
        for name in needs.bases
    }  # fmt: skip
    copies = {item.op: repr(item.src) for item in (*needs.copies, *needs.adds)}
    return lower(spec, Inputs(bases, copies))


def there_and_back(spec: Spec) -> tuple[Spec, str, list[str]]:
    text, warnings = to_dockerfile(spec, buildkit=True, escape="unix")
    return converted(text.encode("utf-8", "surrogateescape")), text, warnings


@pytest.mark.parametrize("name", CASES)
def test_the_judged_ones_keep_their_meaning(name: str) -> None:
    case = CASES[name]
    flags = dict(zip(case.options[::2], case.options[1::2], strict=True))
    args = tuple(
        tuple(value.split("=", 1))
        for key, value in zip(case.options[::2], case.options[1::2], strict=True)
        if key == "--build-arg"
    )
    spec = converted(case.text.encode(), args=args, target=flags.get("--target", ""))
    assert parse_spec(print_spec(spec).encode(), file="printed").spec == spec
    back, text, warnings = there_and_back(spec)
    assert warnings == [], text
    assert plan(back).result == plan(spec).result, text
    assert plan(back).contexts[plan(back).result] == plan(spec).contexts[plan(spec).result]


_word = st.text(st.characters(codec="ascii", exclude_characters="\n\r\0"), min_size=1, max_size=8)
_name = st.sampled_from(["A", "B_2", "path"])


def _quoted(text: str) -> str:
    for sign in '\\"$':
        text = text.replace(sign, "\\" + sign)
    return f'"{text}"'


_line = st.one_of(
    st.builds(lambda n, v: f"ENV {n}={_quoted(v)}", _name, _word),
    st.builds(lambda n, v: f"ARG {n}={_quoted(v)}", _name, _word),
    st.builds(lambda n, v: f"LABEL {n}={_quoted(v)} x.y=${{A:-none}}", _name, _word),
    st.builds("WORKDIR /{}/$A".format, _name),
    st.sampled_from([
        "USER 5", "USER app:team", "USER 1:2", 'SHELL ["/bin/ash", "-c"]', "CMD a b", 'CMD ["x"]',
        'ENTRYPOINT ["/e"]', "EXPOSE 1-3/udp", "VOLUME /v", "STOPSIGNAL 9", "HEALTHCHECK NONE",
        "HEALTHCHECK --interval=1.5s CMD x", "ONBUILD RUN x", "MAINTAINER m",
        "RUN --network=none x", "RUN <<E\nx\n\n y\nE", "RUN a <<E && b\nx\nE", "RUN x \\\n  y",
        "RUN --mount=type=cache,target=/c,sharing=locked,mode=0700 x",
        "RUN --mount=type=cache,target=/c,ro x",
        "RUN --mount=type=secret,id=s,required x", "RUN --mount=type=secret,id=s,env=S x",
        "RUN --mount=type=ssh,id=k --mount=type=tmpfs,target=/t,size=1k x",
        "RUN --mount=src=d,target=m,rw x", "RUN --mount=from=one,target=/o x",
        'RUN --security=insecure ["x", "$y"]', "COPY a b c/", "COPY --from=one /x /y",
        "COPY --from=0 --chown=5 x .", "COPY --chmod=u=rw,g+X --link --parents a/./b /p/",
        "COPY --exclude=*.o --exclude=y . /q", "COPY <<'F' <<G /h/\n$A\nF\n$A\nG", "ADD a.tar /t",
        "ADD http://h/f?q=1 /u/", f"ADD --checksum=sha256:{'a' * 64} http://h/f /u", "ADD --unpack=true http://h/f.tgz /u/",
        f"ADD --checksum={'b' * 40} https://h/r.git#v1:d /g", 'COPY ["a b", "/c $A"]',
    ]),
)  # fmt: skip


@given(st.lists(_line, min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_what_is_made_up_keeps_its_meaning(lines: list[str]) -> None:
    text = "FROM base AS one\nRUN x\nFROM one\n" + "\n".join(lines) + "\n"
    try:
        spec = converted(text.encode())
    except SpecErrors as error:
        assert "${A:-none}" in text or "empty" in error.message, text
        return
    back, again, warnings = there_and_back(spec)
    assert warnings == [], again
    assert plan(back).result == plan(spec).result, f"{text}\n{again}"
    assert plan(back).contexts[plan(back).result] == plan(spec).contexts[plan(spec).result], again


@given(st.binary(max_size=300).map(lambda data: b"FROM a\n" + data))
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_refused_politely(data: bytes) -> None:
    try:
        converted(data)
    except ObuilderError as error:
        assert error.message


def test_mutated_dockerfiles_are_read_or_refused_politely() -> None:
    chance = random.Random(3)
    seeds = [case.text.encode() for case in CASES.values()]
    for _ in range(1500):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.choice(b"$\\\"'{}<=-[]#\n\t\xff\x00 ")
                case 1:
                    del data[at : at + chance.randint(1, 9)]
                    data += b"\n"
                case _:
                    data[at:at] = data[at : at + chance.randint(1, 20)]
        try:
            converted(bytes(data))
        except ObuilderError as error:
            assert error.message
