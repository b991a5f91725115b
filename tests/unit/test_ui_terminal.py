"""What a step writes can't steer the terminal of whoever watches."""

import io
import re
import typing
from pathlib import Path

import pytest

from obuilder import events
from obuilder.errors import ObuilderError, SpecErrors, UsageError
from obuilder.spec.decode import parse
from obuilder.ui.jsonl import JsonSink
from obuilder.ui.messages import render
from obuilder.ui.plain import PlainSink
from obuilder.ui.terminal import Neutral, neutral
from obuilder.values import Key

KEY = Key("a" * 64)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (b"plain \xc3\xa9\ttab\r\n", b"plain \xc3\xa9\ttab\r\n"),
        (b"\x1b[31mred\x1b[0m", b"\x1b[31mred\x1b[0m"),
        (b"\x1b]0;title\x07", b"^[]0;title^G"),
        (b"\x1b[2J\x08\x7f", b"^[[2J^H^?"),
        (b"\xc2\x9b2J", b"\\x9b2J"),
    ],
)
def test_only_text_and_colours_pass(given: bytes, shown: bytes) -> None:
    assert neutral(given) == shown


def test_a_sequence_in_two_pieces_is_judged_whole() -> None:
    stream = Neutral()
    shown = [stream.feed(piece) for piece in (b"a\x1b", b"[3", b"1mb\x1b", b"[2Jc\xc2", b"\x9b")]
    assert b"".join([*shown, stream.end()]) == b"a\x1b[31mb^[[2Jc\\x9b"


def test_plain_output_is_raw_where_no_terminal_reads() -> None:
    out = io.BytesIO()
    sink = PlainSink(out, colour=False, guard=False)
    sink(
        events.StepStarted(key=KEY, stage="", heading="/: (run (shell x))", notes=("/: (env A b)",))
    )
    sink(events.Output(KEY, b"\x1b]0;t\x07no newline"))
    sink(events.StepDone(key=KEY, seconds=1.0))
    assert out.getvalue() == (
        b"/: (env A b)\n/: (run (shell x))\n\x1b]0;t\x07no newline\n"
        + f'---> saved as "{KEY}"\n'.encode()
    )


def test_json_is_a_line_for_each_event_whatever_the_bytes() -> None:
    import msgspec

    out = io.BytesIO()
    sink = JsonSink(out)
    sink(events.Output(KEY, b"\xff\n"))
    sink(events.Note(text="odd \udcff"))
    first, second, third = map(msgspec.json.decode, out.getvalue().splitlines())
    assert first == {"event": "schema", "version": events.SCHEMA_VERSION}
    assert second == {"event": "output", "key": KEY, "data": "/wo="}
    assert third["text"].startswith("odd ")


def test_a_spec_error_shows_its_place_under_a_caret() -> None:
    with pytest.raises(SpecErrors) as caught:
        parse(b"((from x)\n (rnu (shell y)))\n", file="f.spec")
    lines = render(caught.value).splitlines()
    assert lines[0].startswith("f.spec:2:")
    assert lines[1] == "   (rnu (shell y)))"
    assert lines[2].index("^") == lines[1].index("rnu")
    assert "hint: did you mean 'run'?" in lines


@pytest.mark.parametrize(
    ("text", "shown", "caret"),
    [
        ("\t(rn)", "  \t(rn)", "  \t ^^"),
        ('"日本é" (rn)', '  "日本é" (rn)', "           ^^"),
        ("\x1b[2J (rn)", "  ^[[2J (rn)", "         ^^"),
        ("\udcff (rn)", "  \\xff (rn)", "        ^^"),
        ("e\u0301 (rn)", "  e\u0301 (rn)", "     ^^"),
        ("\u202e (rn)", "  \\u202e (rn)", "          ^^"),
    ],
)
def test_the_caret_stands_right_whatever_stands_before_it(
    text: str, shown: str, caret: str
) -> None:
    with pytest.raises(SpecErrors) as caught:
        parse(f"((from x)\n{text})".encode("utf-8", "surrogateescape"), file="f.spec")
    lines = render(caught.value).splitlines()
    at = next(index for index, line in enumerate(lines) if "'rn'" in line)
    assert lines[at + 1 : at + 3] == [shown + ")", caret]


def test_a_message_can_not_steer_the_terminal() -> None:
    assert "\x1b" not in render(UsageError("\x1b[2J", hint="\x9b"))


def test_a_hint_stands_after_a_blank_line() -> None:
    assert render(UsageError("no", hint="yes")) == "error: no\n\nhint: yes\n"


def test_the_page_of_events_has_all_of_them() -> None:
    import msgspec

    page = (Path(__file__).parents[2] / "docs/reference/events.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|", page, re.MULTILINE))
    told = {name: set(re.findall(r"\w+", text)) for name, text in rows.items() if name != "event"}
    step = {field.name for field in msgspec.structs.fields(events.StepInfo)}
    kinds = typing.get_args(events.Event)
    assert set(told) == {kind.__struct_config__.tag for kind in kinds}
    for kind in kinds:
        fields = {field.name for field in msgspec.structs.fields(kind)}
        more = step if kind is events.BuildStarted else set()
        assert told[kind.__struct_config__.tag] == fields | more
    assert f"schema is version {events.SCHEMA_VERSION}" in page
    codes = {kind.code for kind in _errors(ObuilderError)} | {"cancelled"}
    assert set(re.findall(r"`([a-z-]+)`", page.partition("`code` is that")[2])) <= codes


def _errors(kind: type[ObuilderError]) -> list[type[ObuilderError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in _errors(below))]


def test_lines_of_stages_that_run_at_once_are_told_apart() -> None:
    out = io.BytesIO()
    sink = PlainSink(out, colour=False, guard=False)
    one, two = Key("1" * 64), Key("2" * 64)
    steps = tuple(
        events.StepInfo(key=key, stage=stage, heading="h", cached=False)
        for key, stage in ((one, "dev"), (two, ""))
    )
    sink(events.BuildStarted(steps=steps))
    sink(events.StepStarted(key=one, stage="dev", heading="a\nb", notes=("n",)))
    sink(events.StepStarted(key=two, stage="", heading="c"))
    sink(events.Output(one, b"half "))
    sink(events.Output(two, b"whole\nopen"))
    sink(events.Output(one, b"of it\n\nmore"))
    sink(events.StepDone(key=two, seconds=0.1))
    sink(events.StepEnded(key=one, code="step-failed", message="it failed", seconds=0.1))
    assert out.getvalue().decode() == (
        "[dev] n\n[dev] a\n[dev] b\nc\nwhole\n[dev] half of it\n[dev] \nopen\n"
        f'---> saved as "{two}"\n[dev] more\n[dev] ---> it failed\n'
    )
