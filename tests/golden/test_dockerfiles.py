"""Dockerfiles and the specs that they come to. RENEW_GOLDEN=1 writes these anew: look at the difference."""

import os
from pathlib import Path

import pytest

from obuilder.errors import ObuilderError
from obuilder.spec.decode import parse as parse_spec
from obuilder.spec.dockerfile import parse
from obuilder.spec.encode import print_spec
from obuilder.spec.from_dockerfile import Options, images, to_spec
from obuilder.spec.image import ImageConfig
from obuilder.spec.model import Spec
from obuilder.values import Platform

FOLDER = Path(__file__).parent / "dockerfiles"
FILES = sorted(FOLDER.glob("*.Dockerfile"))
CONFIG = ImageConfig(env=(("PATH", "/bin"),), workdir="/w")


def converted(text: str, **options: object) -> Spec:
    dockerfile = parse(text.encode("utf-8", "surrogateescape"), file="Dockerfile")
    told = Options(Platform("linux", "amd64"), **options)  # type: ignore[arg-type]
    return to_spec(dockerfile, told, dict.fromkeys(images(dockerfile, told), CONFIG)).spec


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_comes_to_that_spec(path: Path) -> None:
    spec = converted(path.read_text(), args=(("none_given", "x"),))
    printed = print_spec(spec)
    expected = path.with_suffix(".spec")
    if "RENEW_GOLDEN" in os.environ:
        expected.write_text(printed)
    assert printed == expected.read_text()
    assert parse_spec(printed.encode(), file="printed").spec == spec


REFUSED = [
    ("RUN x", "1:1", "RUN before FROM"),
    ("", "1:1", "no instructions"),
    ("# only\n", "1:1", "no instructions"),
    ("FROM a\nRUNN x", "2:1", "unknown instruction 'RUNN'"),
    ("FROM a b", "1:1", "FROM takes IMAGE"),
    ("FROM a AS 1x", "1:11", "can't name a stage"),
    ("FROM $nothing", "1:6", "name of the image is empty"),
    ("FROM --platform=linux/s390x a", "1:6", "a stage for linux/s390x"),
    (
        "FROM a AS one\nCOPY --from=later x y\nFROM b AS later\nFROM one",
        "2:13",
        "does not stand before",
    ),
    ("FROM a\nCOPY --from=3 x y", "2:13", "no stage 3"),
    ("FROM a\nCOPY --from=$x x y", "2:6", "--from takes no variable"),
    ("FROM a\nCOPY x", "2:1", "a source and a destination"),
    ("FROM a\nCOPY x y z", "2:10", "must end with /"),
    ("FROM a\nCOPY --chmod=888 x y", "2:6", "is no mode"),
    ("FROM a\nCOPY --chown=a:b:c x y", "2:6", "is no user"),
    ("FROM a\nCOPY --bad x y", "2:6", "COPY has no flag --bad"),
    ("FROM a\nCOPY --link --link x y", "2:13", "a second --link"),
    ("FROM a\nCOPY --link=maybe x y", "2:6", "true or false"),
    ("FROM a\nCOPY http://x/y z", "2:6", "COPY takes no URL"),
    ("FROM a\nCOPY x <<EOF\nEOF", "2:8", "can't be a here-document"),
    ("FROM a\nADD --keep-git-dir x y", "2:5", ".git is never kept"),
    ("FROM a\nADD --checksum=x http://a/b c", "2:18", "--checksum is sha256"),
    ("FROM a\nADD --checksum=x b c", "2:1", "--checksum is for one source"),
    ("FROM a\nRUN", "2:1", "RUN needs a command"),
    ("FROM a\nRUN []", "2:1", "RUN needs a command"),
    ("FROM a\nRUN [1]", "2:5", "only strings"),
    ("FROM a\nRUN <<EOF\nx", "2:1", "'EOF' is never closed"),
    ("FROM a\nRUN --mount=type=odd,target=/x y", "2:5", "no mount of the type 'odd'"),
    ("FROM a\nRUN --mount=type=cache y", "2:5", "needs a target"),
    ("FROM a\nRUN --mount=type=cache,target=/dev/x y", "2:5", "nothing can be mounted on /dev/x"),
    ("FROM a\nRUN --mount=type=cache,target=/x,from=b y", "2:5", "a cache begins empty"),
    ("FROM a\nRUN --mount=type=tmpfs,target=/x,id=b y", "2:5", "a tmpfs mount has no 'id'"),
    ("FROM a\nRUN --mount=type=cache,target=/x,sharing=so y", "2:5", "sharing is"),
    ("FROM a\nRUN --mount=type=cache,target=/x,mode=9 y", "2:5", "mode=9 is no such number"),
    ("FROM a\nRUN --mount=from=$x,target=/x y", "2:5", "from= takes no variable"),
    ("FROM a\nRUN --device=x y", "2:5", "no devices"),
    ("FROM a\nRUN --network=bridge y", "2:5", "no network 'bridge'"),
    ("FROM a\nRUN --security=odd y", "2:5", "security is"),
    ("FROM a\nENV A", "2:5", "needs NAME=VALUE"),
    ("FROM a\nENV A=b c", "2:9", "has no ="),
    ("FROM a\nENV A=${b", "2:7", "a } is missing"),
    ("FROM a\nENV A=${b:?no-b}", "2:7", "b: no-b"),
    ("FROM a\nENV A=${b!c}", "2:7", "no modifier !"),
    ("FROM a\nENV A='b", "2:7", "never closed"),
    ("FROM a\nLABEL =b", "2:7", "can't be empty"),
    ("FROM a\nEXPOSE 80:80", "2:8", "no port of a container"),
    ("FROM a\nEXPOSE 9-8", "2:8", "no range of ports"),
    ("FROM a\nSHELL bash", "2:1", "a list of words"),
    ("FROM a\nHEALTHCHECK x", "2:1", "takes CMD"),
    ("FROM a\nHEALTHCHECK --interval=1 CMD x", "2:13", "'1' is no time"),
    ("FROM a\nSTOPSIGNAL no such", "2:12", "is no signal"),
    ("FROM a\nVOLUME", "2:1", "VOLUME needs paths"),
    ("FROM a\nONBUILD FROM x", "2:1", "ONBUILD can't hold FROM"),
    ("FROM a\nUSER a:", "2:6", "is no user"),
    ('FROM a\nRUN "--x', "", ""),
    ("# syntax=example.org/other:1\nFROM a", "1:1", "can't be run here"),
    ("# escape=x\nFROM a", "1:1", "escape must be"),
    ("# escape=`\n# escape=`\nFROM a", "2:1", "a second directive escape"),
    ("# check=error=true\nFROM a", "1:1", "needs BuildKit's checks"),
    ("FROM a\nCOPY \u00e4\u00f6 --x y", "2:13", "must end with /"),
]


@pytest.mark.parametrize(("text", "place", "message"), REFUSED)
def test_a_fault_is_told_with_its_place(text: str, place: str, message: str) -> None:
    if not message:
        converted(text)
        return
    with pytest.raises(ObuilderError) as caught:
        converted(text)
    error = caught.value
    assert message in error.message
    span = getattr(error, "span", None)
    assert span is not None
    assert f"{span.line}:{span.column}" == place


def test_what_the_target_does_not_need_is_not_looked_at() -> None:
    text = "FROM a AS one\nRUN x\nFROM b AS two\nRUN --network=odd y\nFROM a\nCOPY --from=one x y\n"
    assert converted(text).children[0][0] == "one"
    assert converted(text, target="ONE").ops == converted("FROM a\nRUN x\n").ops
    assert converted(text, target="0") == converted(text, target="one")
    with pytest.raises(ObuilderError, match="no stage called 'three'"):
        converted(text, target="three")
    with pytest.raises(ObuilderError, match="no network 'odd'"):
        converted(text, target="two")


def test_contexts_of_the_command_line_go_over_stages_and_images() -> None:
    text = "FROM img AS one\nFROM one\nCOPY --from=files a b\nRUN --mount=from=img,target=/i x\n"
    spec = converted(
        text,
        contexts=(("one", "docker-image://other"), ("files", "dir"), ("IMG", "oci-layout:///l:t")),
    )
    assert (
        print_spec(spec)
        == """((build files-0
        ((from scratch)
         (add (from (context files))
              (src /)
              (dst /))))
 (build image-1
        ((from oci:/l:t)))
 (from other)
 (inherit)
 (add (from (build files-0))
      (src a)
      (dst /w/b))
 (run (network host)
      (binds (image-1 (target /i)))
      (shell x)))
"""
    )


def test_a_trigger_of_a_base_image_runs_first_and_once() -> None:
    config = ImageConfig(onbuild=("ENV A=1", "RUN first $A"))
    dockerfile = parse(b"FROM a AS one\nRUN second\nFROM one\nRUN third\n", file="D")
    options = Options(Platform("linux", "amd64"))
    spec = to_spec(dockerfile, options, {"a": config}).spec
    assert print_spec(spec).count("first $A") == 1
    with pytest.raises(ObuilderError) as caught:
        to_spec(dockerfile, options, {"a": ImageConfig(onbuild=("COPY x",))})
    assert getattr(caught.value, "file", "") == "D: ONBUILD of a"
