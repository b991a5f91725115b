"""What works on this machine, for people: a table for a terminal, lines that line up for the rest."""

import sys
from collections.abc import Iterator
from typing import TextIO

from obuilder.engine.checkup import Finding
from obuilder.engine.survey import Status, Survey, Surveyed, SurveyedStore, system_name
from obuilder.ui.terminal import visible

_MARKS: dict[Status, str] = {
    "usable": "green",
    "missing": "yellow",
    "failed": "red",
    "elsewhere": "dim",
}


def lines(survey: Survey) -> Iterator[str]:
    """One line for each back end, with what follows from it below."""
    sections = (("store", survey.stores), ("sandbox", survey.sandboxes))
    width = max(len(row.kind) for _, rows in sections for row in rows)
    for what, rows in sections:
        for row in rows:
            first, *more = _told(row)
            yield f"{what:7}  {row.kind:{width}}  {row.status:9}  {first}"
            yield from (f"{'':{width + 22}}{text}" for text in more)
    for store, status, text in _pairs(survey):
        yield f"{'pair':7}  {store:{width}}  {status:9}  with {text}"
    yield _verdict(survey)


def show_table(survey: Survey, stream: TextIO, *, colour: bool) -> None:
    """The same on a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, no_color=not colour, highlight=False)
    for what, rows in (("store", survey.stores), ("sandbox", survey.sandboxes)):
        table = Table(what, "", "", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for row in rows:
            table.add_row(
                Text(row.kind),
                Text(row.status, style=_MARKS[row.status]),
                Text("\n".join(_told(row))),
            )
        console.print(table)
        console.print()
    table = Table("store", "", "with", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for store, status, text in _pairs(survey):
        table.add_row(Text(store), Text(status, style=_MARKS[status]), Text(text))
    console.print(table)
    console.print()
    console.print(Text(_verdict(survey)))


def _told(row: Surveyed) -> list[str]:
    """What there is to say of a back end, the first things first."""
    where = ""
    if isinstance(row, SurveyedStore) and row.ground:
        where = f"{row.ground} ({row.file_system})"
    if row.status == "usable":
        found = [finding.detail for finding in row.findings if _is_told(finding)]
        found += [f"for more: {finding.hint}" for finding in row.findings if finding.hint]
        if where:
            found = [", ".join((where, *found))]
    else:
        found = [": ".join(filter(None, (where, row.message)))]
        if row.hint:
            found.append(f"to have it: {row.hint}")
    if others := [system_name(name) for name in row.systems if name != sys.platform]:
        if row.status != "elsewhere":
            found.append(f"the one for {' and '.join(others)} can't be tried here")
    return [visible(text) for text in found]


def _is_told(finding: Finding) -> bool:
    """Whether it is of interest where there are so many."""
    return finding.check in ("space", "sandbox", "identity", "isolation") or finding.status != "ok"


def _pairs(survey: Survey) -> list[tuple[str, Status, str]]:
    """Every usable store with the sandboxes that work on it; then what should, and does not."""
    together: dict[str, list[str]] = {}
    for pair in survey.pairs:
        if pair.status == "usable":
            together.setdefault(pair.store, []).append(pair.sandbox)
    found: list[tuple[str, Status, str]] = [
        (store, "usable", ", ".join(names)) for store, names in together.items()
    ]
    usable = {row.kind for row in survey.sandboxes if row.status == "usable"}
    found += [
        (pair.store, pair.status, visible(f"{pair.sandbox}: {pair.message}"))
        for pair in survey.pairs
        if pair.status != "usable" and pair.sandbox in usable
    ]
    return found


def _verdict(survey: Survey) -> str:
    chosen = survey.chosen
    kind = visible(chosen.store).partition(":")[0]
    pair = f"{kind} with {chosen.sandbox}" if chosen.sandbox else kind
    if chosen.usable:
        return f"Builds here use {pair}: usable"
    if survey.usable:
        return (
            f"Builds here use {pair}, which is not usable: choose another with --store, --sandbox"
        )
    return "Nothing can build here"
