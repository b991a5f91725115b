"""A log's state: steps, numbered lines, what is new."""

from collections import deque
from itertools import count

from obuilder import events
from obuilder.values import Key
from obuilder.web.graph import plan
from obuilder.web.logview import LogView, Note, Step

A, B, C = Key("a" * 64), Key("b" * 64), Key("c" * 64)
STEPS = (
    events.StepInfo(A, "", "(from debian)", cached=True),
    events.StepInfo(B, "dev", "(run <b>make</b>)", cached=False, needs=(A,)),
    events.StepInfo(C, "", "(copy …)", cached=False, needs=(A, B)),
)


def fed(*stream: events.Event, view: LogView | None = None) -> LogView:
    view = view or LogView(following=True)
    for at, event in zip(count(100.0), stream):
        view.feed(event, at)
    return view


def text(view: LogView) -> list[tuple[str, int, str]]:
    return [(step.heading, n, line) for step in view.steps for n, line in step.lines]


def test_lines_are_numbered_over_the_whole_log_in_the_order_they_came() -> None:
    view = fed(
        events.BuildStarted(STEPS),
        events.StepStarted(A, "", "(from debian)"), events.StepCached(A),
        events.StepStarted(B, "dev", "(run <b>make</b>)"), events.Output(B, b"one\ntw"),
        events.StepStarted(C, "", "(copy …)"), events.Output(C, b"copied\n"),
        events.Output(B, b"o\nno end"), events.StepDone(B, 2.5),
        events.StepEnded(C, "step-failed", "it ended with 1", 0.5),
        events.BuildEnded("step-failed", "it ended with 1", 3.0),
    )  # fmt: skip
    assert text(view) == [
        ("(run <b>make</b>)", 1, "one"), ("(run <b>make</b>)", 3, "two"),
        ("(run <b>make</b>)", 4, "no end"), ("(copy …)", 2, "copied"),
    ]  # fmt: skip
    assert [(s.status, s.is_open) for s in view.steps] == [
        ("cached", False),
        ("done", True),
        ("failed", True),
    ]
    assert view.steps[2].message == "it ended with 1"
    assert (view.total, view.first, view.at_end) == (4, 1, True)
    assert (view.began, view.length) == (101.0, 4.5)
    assert view.items == view.steps


def test_of_a_long_log_the_last_lines_are_kept_or_those_around_one() -> None:
    stream = [
        events.StepStarted(A, "", "a"), events.Output(A, b"x\n" * 70), events.StepDone(A, 1),
        events.StepStarted(B, "", "b"), events.Output(B, b"y\n" * 50),
    ]  # fmt: skip
    last = fed(*stream, view=LogView(window=100))
    assert (last.first, last.total, last.at_end) == (21, 120, True)
    assert last.steps[0].left_out == 20
    around = fed(*stream, view=LogView(window=20, around=75))
    assert (around.first, around.at_end, len(text(around))) == (73, False, 20)
    assert around.steps[0].lines == around.steps[0].lines.__class__()
    for line in (1, 119, 500):
        assert len(text(fed(*stream, view=LogView(window=20, around=line)))) <= 20


def test_what_is_new_is_told_once() -> None:
    view = fed(events.BuildStarted(STEPS))
    assert view.fresh().planned
    assert not view.fresh()
    fed(events.StepStarted(B, "dev", "h"), events.Output(B, b"1\n2"), view=view)
    fresh = view.fresh()
    step = view.steps[1]
    assert (fresh.items, fresh.lines, list(fresh.open)) == (
        [step],
        {step: deque([(1, "1")])},
        [step],
    )
    assert step.text.open == "2"
    fed(events.Output(B, b"\n"), events.StepDone(B, 1), events.Note("all", warning=True), view=view)
    fresh = view.fresh()
    assert fresh.lines == {step: deque([(2, "2")])}
    assert list(fresh.heads) == [step]
    assert [(n.text, n.warning) for n in fresh.items if isinstance(n, Note)] == [("all", True)]
    view.anew()
    assert view.fresh().anew
    assert (view.steps, view.total) == ([], 0)


def test_a_step_that_starts_again_begins_its_lines_again() -> None:
    view = fed(
        events.BuildStarted(STEPS), events.StepStarted(B, "dev", "h"), events.Output(B, b"lost\nlost"),
        events.StepStarted(B, "dev", "h"), events.Output(B, b"kept\n"),
    )  # fmt: skip
    assert text(view) == [("h", 2, "kept")]
    assert view.fresh().items == [view.steps[1]]


def test_a_result_found_under_another_key_is_the_planned_step() -> None:
    other = Key("d" * 64)
    view = fed(
        events.BuildStarted(STEPS), events.StepStarted(other, "", "(copy …)"),
        events.Output(other, b"old\n"), events.StepCached(other),
    )  # fmt: skip
    assert [step.status for step in view.steps] == ["cached", "waiting", "cached"]
    assert text(view) == [("(copy …)", 1, "old")]


def test_events_of_something_without_a_plan_are_shown_too() -> None:
    view = fed(events.Output(A, b"custom\n"), events.Progress(A, 1, 2))
    assert text(view) == [("", 1, "custom")]
    assert view.steps[0].progress == (1, 2)


def test_a_stream_of_notes_does_not_fill_the_memory() -> None:
    view = fed(*(events.Note("n") for _ in range(1000)))
    assert len(view.items) <= 200


def test_the_plan_is_drawn_with_links_and_marks_and_nothing_of_the_text_is_markup() -> None:
    view = fed(events.BuildStarted(STEPS))
    drawn = plan(view.steps)
    assert drawn.count("<a ") == 3
    assert drawn.count('class="edge') == 3
    assert '<a href="#s0" id="g-s0" class="cached">' in drawn
    assert "<title>dev: (run &lt;b&gt;make&lt;/b&gt;)</title>" in drawn
    assert '<text class="stage" x="348" y="18">dev</text>' in drawn
    assert "<b>" not in drawn
    assert plan([]) == ""


def test_no_two_steps_are_drawn_at_one_place() -> None:
    infos = [
        events.StepInfo(Key(f"{n:064}"), f"stage{n % 3}", f"step {n}", False) for n in range(30)
    ]
    steps = [Step(n, info) for n, info in enumerate(infos)]
    drawn = plan(steps)
    places = [part.split('width="284"')[0] for part in drawn.split("<rect ")[1:]]
    assert len(set(places)) == 30
