"""What works on a machine, as lines and as a table."""

import io

import pytest

from obuilder.engine.checkup import Finding
from obuilder.engine.survey import Chosen, Survey, Surveyed, SurveyedPair, SurveyedStore
from obuilder.ui.survey import lines, show_table

LINUX = ("linux",)


def survey(*, usable: bool = True, chosen: bool = True) -> Survey:
    room = Finding("space", "ok", "3.0 of 4.0 GiB free")
    made = Finding("snapshots", "ok", "two results made")
    found = (
        Finding("sandbox", "ok", "/usr/bin/run (1.0)"),
        Finding("identity", "warning", "one id", "get more"),
        Finding("step", "ok", "ran in 0.01 s"),
        Finding("limits", "ok", "all"),
    )
    return Survey(
        usable=usable,
        chosen=Chosen("plain:/var/lib/store\x1b[2J", "box", usable=chosen),
        stores=(
            SurveyedStore("plain", "", LINUX, "usable", (made, room), ground="/var", file_system="ext4"),
            SurveyedStore(
                "pool", "", LINUX, "missing", message="no pool\x1b]0;", hint="make one", ground="/p\udcff",
                file_system="zfs",
            ),
        ),
        sandboxes=(
            Surveyed("box", "", (*LINUX, "darwin"), "usable", found),
            Surveyed("window", "", ("win32",), "elsewhere", message="it is for Windows"),
        ),
        pairs=(
            SurveyedPair("plain", "box", "usable"),
            SurveyedPair("pool", "box", "failed", "it broke"),
        ),
    )  # fmt: skip


def test_lines_line_up_and_begin_with_what_programs_look_for() -> None:
    assert list(lines(survey())) == [
        "store    plain   usable     /var (ext4), 3.0 of 4.0 GiB free",
        "store    pool    missing    /p\\xff (zfs): no pool^[]0;",
        "                            to have it: make one",
        "sandbox  box     usable     /usr/bin/run (1.0)",
        "                            one id",
        "                            for more: get more",
        "                            the one for macOS can't be tried here",
        "sandbox  window  elsewhere  it is for Windows",
        "pair     plain   usable     with box",
        "pair     pool    failed     with box: it broke",
        "Builds here use plain with box: usable",
    ]


@pytest.mark.parametrize(
    ("usable", "said"),
    [
        (
            True,
            "Builds here use plain with box, which is not usable: choose another with --store, --sandbox",
        ),
        (False, "Nothing can build here"),
    ],
)
def test_what_is_in_force_may_not_work(usable: bool, said: str) -> None:
    assert list(lines(survey(usable=usable, chosen=False)))[-1] == said


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_a_table_that_nothing_steers(monkeypatch, colour: bool) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    show_table(survey(), out, colour=colour)
    text = out.getvalue()
    for word in ("plain", "missing", "to have it: make one", "no pool^[]0;", "it is for Windows"):
        assert word in text
    assert ("\x1b[32m" in text) is colour
    assert "\x1b]" not in text
    assert text.rstrip().endswith("Builds here use plain with box: usable")
