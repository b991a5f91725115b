"""Charts (SVG) of what happened over time, and the figures they are drawn from. Pure."""

import html
import math
import time
from collections.abc import Iterable, Sequence

from msgspec import Struct

from obuilder.web.views import JobRow, duration

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 200, 64, 24, 12


class Bucket(Struct, frozen=True):
    """What happened in a piece of time that begins at `start`, in seconds since 1970."""

    start: float
    done: int
    failed: int
    cancelled: int
    waiting: tuple[float, float] | None
    """Of the jobs that began: the median and the 90th percentile, in seconds."""
    running: tuple[float, float] | None
    """Of those that were done or failed."""

    @property
    def ended(self) -> int:
        """Jobs that ended."""
        return self.done + self.failed + self.cancelled


def percentile(values: Sequence[float], part: float) -> float:
    """Of at least one value, by the nearest rank."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def history(
    rows: Iterable[JobRow], now: float, seconds: float, *, pieces: int = 48
) -> list[Bucket]:
    """The last `seconds`, in that many pieces, the oldest first."""
    length = seconds / pieces
    first = now - seconds
    ends: list[list[str]] = [[] for _ in range(pieces)]
    waits: list[list[float]] = [[] for _ in range(pieces)]
    runs: list[list[float]] = [[] for _ in range(pieces)]

    def piece(at: float | None) -> int | None:
        if at is None or not first <= at <= now:
            return None
        return min(int((at - first) / length), pieces - 1)

    for row in rows:
        state = row.state
        if (index := piece(state.started)) is not None:
            waits[index].append(row.waited(now))
        if (index := piece(state.ended)) is not None:
            ends[index].append(state.phase)
            ran = row.ran(now)
            if ran is not None and state.phase != "cancelled":
                runs[index].append(ran)

    def both(values: list[float]) -> tuple[float, float] | None:
        return (percentile(values, 0.5), percentile(values, 0.9)) if values else None

    return [
        Bucket(
            start=first + index * length,
            done=ends[index].count("done"),
            failed=ends[index].count("failed"),
            cancelled=ends[index].count("cancelled"),
            waiting=both(waits[index]),
            running=both(runs[index]),
        )
        for index in range(pieces)
    ]


_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TIMES = (
    1, 2, 4, 8, 20, 40, _MINUTE, 2 * _MINUTE, 4 * _MINUTE, 8 * _MINUTE, 20 * _MINUTE, 40 * _MINUTE,
    _HOUR, 2 * _HOUR, 4 * _HOUR, 8 * _HOUR, _DAY, 2 * _DAY, 4 * _DAY, 8 * _DAY, 20 * _DAY, 40 * _DAY,
)  # fmt: skip
"""Seconds at the top of a chart of times: quarters of them can be said."""


def _whole(top: int) -> int:
    """The next greater of 4, 8, 20, 40, 80, 200 and so on."""
    scale = 4
    while scale < top:
        scale = scale * 5 // 2 if str(scale)[0] == "8" else scale * 2
    return scale


def _frame(title: str, top: float, unit: str, buckets: Sequence[Bucket], inside: str) -> str:
    """A chart around what is drawn in it."""
    lines = []
    for part in range(5):
        y = _y(top * part / 4, top)
        value = top * part / 4
        label = duration(value) if unit == "s" and value else f"{value:g}"
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:g}" y2="{y:g}"/>')
        lines.append(
            f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{label}</text>'
        )
    span = buckets[-1].start - buckets[0].start
    shape = "%H:%M" if span < 2 * 86400 else "%d %b"
    for index in range(0, len(buckets), max(1, len(buckets) // 6)):
        at = time.strftime(shape, time.gmtime(buckets[index].start))
        lines.append(
            f'<text class="axis" x="{_x(index, len(buckets)):g}" y="{_HEIGHT - 4}">{at}</text>'
        )
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{html.escape(title)}">'
        f"{''.join(lines)}{inside}</svg>"
    )


def _x(index: float, count: int) -> float:
    return round(_LEFT + index * (_WIDTH - _LEFT) / count, 1)


def _y(value: float, top: float) -> float:
    return round(_TOP + (_HEIGHT - _BOTTOM - _TOP) * (1 - value / top), 1)


def ends(buckets: Sequence[Bucket]) -> str:
    """How many jobs ended in each piece of time, and how, as bars."""
    top = _whole(max((bucket.ended for bucket in buckets), default=0))
    wide = (_WIDTH - _LEFT) / len(buckets)
    bars = []
    for index, bucket in enumerate(buckets):
        at = 0
        for kind, number in (
            ("done", bucket.done),
            ("failed", bucket.failed),
            ("cancelled", bucket.cancelled),
        ):
            if number:
                y = _y(at + number, top)
                bars.append(
                    f'<rect class="{kind}" x="{_x(index, len(buckets)) + 1:g}" y="{y:g}"'
                    f' width="{wide - 2:g}" height="{_y(at, top) - y:g}">'
                    f"<title>{number} {kind}</title></rect>"
                )
                at += number
    total = sum(bucket.ended for bucket in buckets)
    return _frame(f"Jobs that ended: {total}", top, "", buckets, "".join(bars))


def times(title: str, buckets: Sequence[Bucket], name: str) -> str:
    """The median and the 90th percentile of `waiting` or `running`, as lines with points."""
    found: list[tuple[float, float] | None] = [getattr(bucket, name) for bucket in buckets]
    longest = max((pair[1] for pair in found if pair), default=0.0)
    top = next((time for time in _TIMES if time >= longest), longest)
    drawn = []
    for which, kind in ((1, "p90"), (0, "median")):
        points: list[str] = []
        for index, pair in enumerate(found):
            if pair is None:
                continue
            x, y = _x(index + 0.5, len(buckets)), _y(pair[which], top)
            points.append(f"{x:g},{y:g}")
            drawn.append(
                f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="3">'
                f"<title>{kind}: {duration(pair[which])}</title></circle>"
            )
        drawn.append(f'<polyline class="{kind}" points="{" ".join(points)}"/>')
    return _frame(title, top, "s", buckets, "".join(drawn))


def bar(part: float, *, scarce: bool = False) -> str:
    """How full something is, from 0 to 1; that it is nearly full is bad if it is `scarce`.

    What it says stands beside it.
    """
    wide = round(100 * min(max(part, 0.0), 1.0))
    level = "high" if scarce and part >= 0.9 else "usual"
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="ground" width="100" height="8"/>'
        f'<rect class="{level}" width="{wide}" height="8"/></svg>'
    )


def span(start: float, length: float, whole: float) -> str:
    """A step's time within the whole build's."""
    whole = max(whole, 1e-9)
    x, wide = 100 * max(start, 0.0) / whole, max(100 * length / whole, 0.5)
    return (
        '<svg class="span" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="ground" width="100" height="8"/><rect class="usual" x="{x:.2f}"'
        f' width="{min(wide, 100 - min(x, 99.5)):.2f}" height="8"/></svg>'
    )
