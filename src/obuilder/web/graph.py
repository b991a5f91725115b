"""The plan as a picture (SVG): a column for each stage, a row for each place in the order."""

import html

from obuilder.spec.encode import one_line
from obuilder.ui.terminal import cut, visible
from obuilder.web.logview import Step

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 284, 34, 56, 22, 8
_LETTERS = 31
MOST = 400
"""Steps that are drawn; a plan of more is a picture that nobody can read."""


def plan(steps: list[Step]) -> str:
    """The picture. Its nodes are links to the steps, with ids that a script can mark them by."""
    if not steps or len(steps) > MOST:
        return ""
    place = _places(steps)
    columns = 1 + max(column for column, _ in place.values())
    rows = 1 + max(row for _, row in place.values())
    width = 2 * _MARGIN + columns * (_WIDTH + _GAP_X)
    height = 2 * _MARGIN + rows * (_HEIGHT + _GAP_Y) - _GAP_Y
    by_key = {step.key: step for step in steps}
    edges = [
        _edge(place[by_key[need].id], place[step.id])
        for step in steps
        for need in step.needs
        if need in by_key
    ]
    return (
        f'<svg class="plan" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="group" aria-label="The plan: {len(steps)} steps">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        ' orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>'
        + "".join(edges)
        + "".join(_node(step, *place[step.id]) for step in steps)
        + "</svg>"
    )


def _places(steps: list[Step]) -> dict[str, tuple[int, int]]:
    """The column and row of each step: below all that it needs, and alone there."""
    columns: dict[str, int] = {}
    rows: dict[str, int] = {}
    taken = set[tuple[int, int]]()
    found = {}
    for step in steps:
        column = columns.setdefault(step.stage, len(columns))
        row = max((rows[need] + 1 for need in step.needs if need in rows), default=0)
        while (column, row) in taken:
            row += 1
        taken.add((column, row))
        rows[step.key], found[step.id] = row, (column, row)
    return found


def _corner(column: int, row: int) -> tuple[int, int]:
    return _MARGIN + column * (_WIDTH + _GAP_X), _MARGIN + row * (_HEIGHT + _GAP_Y)


def _node(step: Step, column: int, row: int) -> str:
    x, y = _corner(column, row)
    full = visible(one_line(step.heading)) or "output"
    stage = f"{visible(one_line(step.stage))}: " if step.stage else ""
    status = step.status + (" planned" if step.planned else "")
    return (
        f'<a href="#{step.id}" id="g-{step.id}" class="{status}">'
        f"<title>{html.escape(stage + full)}</title>"
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<circle cx="{x + 15}" cy="{y + _HEIGHT / 2:g}" r="5"/>'
        f'<text x="{x + 28}" y="{y + 22}">{html.escape(cut(full, _LETTERS))}</text></a>'
    )


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = _corner(*start)
    x2, y2 = _corner(*end)
    x1, y1, x2 = x1 + _WIDTH // 2, y1 + _HEIGHT, x2 + _WIDTH // 2
    if start[0] == end[0] and end[1] == start[1] + 1:
        return f'<path class="edge" d="M{x1} {y1}V{y2 - 2}"/>'
    if start[0] == end[0]:  # past the steps between
        side, half = x1 + _WIDTH // 2, _HEIGHT // 2
        return f'<path class="edge" d="M{side} {y1 - half}h14V{y2 + half}h-12"/>'
    bend = max(_GAP_Y, (y2 - y1) // 2)
    return (
        f'<path class="edge other" d="M{x1} {y1}C{x1} {y1 + bend} {x2} {y2 - bend} {x2} {y2 - 2}"/>'
    )
