"""The plan as a picture (SVG): a column for each stage, a row for each place in the order."""

import html
import re

from obuilder.spec.encode import one_line
from obuilder.ui.terminal import cut, visible
from obuilder.web.logview import Step

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _HEAD = 284, 34, 56, 22, 8, 24
_LETTERS = 31
MOST = 400
"""Steps that are drawn; a plan of more is a picture that nobody can read."""
_SHELL = re.compile(r'\(run .*?\(shell "(.*)"\)\)', re.DOTALL)
"""A heading's command."""
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def plan(steps: list[Step]) -> str:
    """The picture. Its nodes are links to the steps, with ids that a script can mark them by."""
    if not steps or len(steps) > MOST:
        return ""
    place = _places(steps)
    stages = {place[step.id][0]: step.stage for step in steps}
    top = _MARGIN + (_HEAD if len(stages) > 1 else 0)
    rows = 1 + max(row for _, row in place.values())
    width = 2 * _MARGIN + len(stages) * (_WIDTH + _GAP_X) - _GAP_X
    height = top + _MARGIN + rows * (_HEIGHT + _GAP_Y) - _GAP_Y
    by_key = {step.key: step for step in steps}

    def corner(step: Step) -> tuple[int, int]:
        column, row = place[step.id]
        return _MARGIN + column * (_WIDTH + _GAP_X), top + row * (_HEIGHT + _GAP_Y)

    edges = [
        _edge(corner(by_key[need]), corner(step))
        for step in steps
        for need in step.needs
        if need in by_key
    ]
    heads = [
        f'<text class="stage" x="{_MARGIN + column * (_WIDTH + _GAP_X)}" y="{_MARGIN + 10}">'
        f"{html.escape(cut(visible(one_line(stage)) or 'result', _LETTERS))}</text>"
        for column, stage in stages.items()
        if len(stages) > 1
    ]
    return (
        f'<svg class="plan" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="group" aria-label="The plan: {len(steps)} steps">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        ' orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>'
        + "".join(heads)
        + "".join(edges)
        + "".join(_node(step, *corner(step)) for step in steps)
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


def _label(heading: str) -> str:
    """What a step does, in the few letters there are: without its directory, a command alone."""
    _, found, rest = heading.partition(": (")
    text = f"({rest}" if found and " " not in heading.partition(found)[0] else heading
    command = _SHELL.fullmatch(text)
    return _ESCAPED.sub(r"\1", command[1]) if command else text


def _node(step: Step, x: int, y: int) -> str:
    full = visible(one_line(step.heading)) or "output"
    label = visible(one_line(_label(step.heading))) or "output"
    stage = f"{visible(one_line(step.stage))}: " if step.stage else ""
    return (
        f'<a href="#{step.id}" id="g-{step.id}" class="{step.status}">'
        f"<title>{html.escape(stage + full)}</title>"
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<circle cx="{x + 15}" cy="{y + _HEIGHT / 2:g}" r="5"/>'
        f'<text x="{x + 28}" y="{y + 22}">{html.escape(cut(label, _LETTERS))}</text></a>'
    )


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    """From corner to corner: down within a stage, from side to side between stages."""
    (x1, y1), (x2, y2) = start, end
    half = _HEIGHT // 2
    if x1 == x2 and y2 - y1 == _HEIGHT + _GAP_Y:
        return f'<path class="edge" d="M{x1 + _WIDTH // 2} {y1 + _HEIGHT}V{y2 - 2}"/>'
    if x1 == x2:  # past the steps between
        side = x1 + _WIDTH
        return f'<path class="edge" d="M{side} {y1 + half}h14V{y2 + half}h-12"/>'
    right = x2 > x1
    x1, x2 = (x1 + _WIDTH, x2 - 2) if right else (x1, x2 + _WIDTH + 2)
    bend = _GAP_X if right else -_GAP_X
    y1, y2 = y1 + half, y2 + half
    return f'<path class="edge other" d="M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"/>'
