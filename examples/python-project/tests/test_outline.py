from outline import headings, outline


def test_headings_of_both_styles() -> None:
    assert list(headings("# One\n\nTwo\n---\n")) == [(1, "One"), (2, "Two")]


def test_only_headings_count() -> None:
    assert outline("```\n# a comment in code\n```\n\n#no blank, no heading\n") == ""


def test_levels_are_counted_from_the_highest() -> None:
    assert outline("## A\n### B\n## `C` and *D*\n") == "- A\n  - B\n- C and D\n"


def test_a_text_without_headings() -> None:
    assert outline("no headings here\n") == ""
