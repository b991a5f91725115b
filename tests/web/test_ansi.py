"""Output of programs becomes HTML that does nothing but show it."""

import re

import pytest
from hypothesis import given, strategies as st

from obuilder.web import ansi
from obuilder.web.ansi import Lines


def shown(*pieces: bytes) -> list[str]:
    lines = Lines()
    return [line for piece in pieces for line in lines.feed(piece)] + lines.end()


@pytest.mark.parametrize(
    ("output", "html"),
    [
        (b"plain\n", "plain"),
        (b"<script>alert('1') & more</script>\n", "&lt;script&gt;alert(&#x27;1&#x27;) &amp; more&lt;/script&gt;"),
        (b"\x1b[31mred\x1b[0m rest\n", '<span class="f1">red</span> rest'),
        (b"\x1b[1;4;38;5;200mx\n", '<span class="f200 bold underlined">x</span>'),
        (b"\x1b[48:2::255:0:0my\n", '<span class="b196">y</span>'),
        (b"\x1b[38;2;255;255;255;7mz\n", '<span class="b231">z</span>'),
        (b"\x1b[91;102mq\x1b[39;49mr\n", '<span class="b10 f9">q</span>r'),
        (b"\x1b[7mq\x1b[27mr\n", '<span class="inverse">q</span>r'),
        (b"\x1b[2K\x1b[1Ga\x1b[?25l\x1b(B\x1b=b\n", "ab"),
        (b"\x1b]8;;http://e.example/\x1b\\link\x1b]8;;\x07 \x1b]0;title\x07x\n", "link x"),
        (b"\x1bPq#0;2\x1b\\sixel\n", "sixel"),
        (b"10 %\r50 %\r100 %\r\n", "100 %"),
        (b"\x1b[31m10 %\r50 %\n", '<span class="f1">50 %</span>'),
        (b"tab\there\x07\x08\n", "tab\there^G^H"),
        (b"\xff \xc3\xa9t\xc3\xa9 \xe2\x80\xae\n", "\\xff été \\u202e"),
        (b"\x1b[38;5m\x1b[38m\x1b[48;9m\x1b[999m\x1b[38;5;999mx\n", "x"),
        (b"", ""),
    ],
)  # fmt: skip
def test_a_line(output: bytes, html: str) -> None:
    assert "".join(shown(output)) == html


def test_a_colour_lasts_over_lines_and_pieces_until_another_comes() -> None:
    assert shown(b"\x1b[3", b"2mgreen\nst", b"ill\n\x1b[mnot\n") == [
        '<span class="f2">green</span>', '<span class="f2">still</span>', "not",
    ]  # fmt: skip


def test_a_line_without_end_is_open_and_written_over() -> None:
    lines = Lines()
    assert lines.feed(b"\x1b[33m10 %\r") == []
    assert lines.open == '<span class="f3">10 %</span>'
    lines.feed(b"20 %\r30")
    assert lines.open == '<span class="f3">30</span>'
    assert lines.feed(b" %\r\n") == ['<span class="f3">30 %</span>']
    assert (lines.open, lines.end()) == ("", [])


def test_a_line_that_never_ends_is_cut_and_its_length_told() -> None:
    (first, *rest) = shown(b"x" * 70_000, b"y\n")
    assert first == "x" * (1 << 14) + f"… ({70_000 - (1 << 14)} more characters in the raw log)"
    assert rest == ["y"]


@given(st.lists(st.binary(max_size=40)), st.binary(max_size=60))
def test_whatever_comes_only_spans_with_classes_are_made(pieces: list[bytes], esc: bytes) -> None:
    for line in shown(*pieces, b"\x1b[" + esc + b"<img src=x onerror=alert(1)>\n"):
        rest = re.sub(r'<span class="[a-z0-9 ]*">|</span>', "", line)
        assert not re.search(r"[<>\"'\x00-\x08\x0a-\x1f\x7f\u202a-\u202e]", rest)
        assert line.count("<span") == line.count("</span>")


@given(
    st.lists(
        st.sampled_from([b"a", b"\n", b"\r", b"\x1b[31m", b"\x1b[0m", b"\xc3\xa9"]), max_size=30
    )
)
def test_it_does_not_matter_where_output_is_cut(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    assert shown(whole) == shown(*(whole[at : at + 1] for at in range(len(whole))))


def test_every_colour_can_be_read_on_the_ground_and_on_every_colour_text_can() -> None:
    sheet = ansi.stylesheet()
    for number in range(256):
        assert ansi.contrast(ansi.legible(ansi.rgb(number)), ansi.GROUND) >= 4.5
        (ground, ink) = re.findall(rf"\.b{number}{{background:(#.{{6}});color:(#.{{6}})}}", sheet)[
            0
        ]
        assert ansi.contrast(*(rgb(colour) for colour in (ground, ink))) >= 4.5


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@pytest.mark.parametrize(
    ("colour", "number"),
    [((0, 0, 0), 16), ((255, 0, 0), 196), ((8, 8, 8), 232), ((128, 128, 128), 244)],
)
def test_the_nearest_colour(colour: tuple[int, int, int], number: int) -> None:
    assert ansi.nearest(*colour) == number
