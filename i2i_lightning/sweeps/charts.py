"""Charts of a sweep as inline SVG: lines over epochs, where the variants ended, one figure against another.

Colours are those of the page's style: class ``c0`` to ``c7`` for the variants in focus, ``rest`` for others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from i2i_lightning.callbacks.drawing import number, ticks

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
LETTER = 6.6
"""Width of a letter, about."""
MAX_POINTS = 200
REST = "rest"

Points = Sequence[tuple[float, float]]


@dataclass
class Line:
    """One curve.

    Args:
        label: Shown when the pointer rests on it.
        colour: Its class.
        points: Where it goes.
        faint: Whether it only stands behind others: a seed behind the mean.
    """

    label: str
    colour: str
    points: Points
    faint: bool = False


@dataclass
class Mark:
    """One variant's end.

    Args:
        label: Name of the variant.
        colour: Its class.
        mean: Mean over seeds.
        deviation: Deviation over seeds; None of one.
        values: The value of each seed.
    """

    label: str
    colour: str
    mean: float
    deviation: float | None
    values: Sequence[float]


class Axis:
    """A range of numbers along a side of a chart.

    Args:
        values: What is to fit in.
        start: Where the range begins, in units of the drawing.
        end: Where it ends.
        log: Whether equal ratios are equal distances.
        cut: Share of the values at either end that may fall off: the wild ones of a curve.
    """

    def __init__(
        self, values: Sequence[float], start: float, end: float, log: bool = False, cut: float = 0.0
    ) -> None:
        self.start, self.end, self.log = start, end, log
        ordered = sorted(self._scaled(value) for value in values)
        skip = int(cut * len(ordered))
        low, high = ordered[skip], ordered[-1 - skip]
        margin = 0.07 * (high - low) or abs(high) * 0.1 or 0.5
        self.low, self.high = low - margin, high + margin
        if not log and 0 <= low < margin * 2:
            self.low = 0.0 if low > 0 else -0.3 * margin

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def place(self, value: float) -> float:
        """Return where a value lies; beyond the range, at its end."""
        level = (self._scaled(value) - self.low) / (self.high - self.low)
        return self.start + min(max(level, 0.0), 1.0) * (self.end - self.start)

    def labels(self) -> list[tuple[float, str]]:
        """Return round values, and each in as many digits as tell it from the others."""
        values = self.ticks()
        words = [number(value) for value in values]
        decimals = 3
        while len(set(words)) < len(words) and decimals < 9:
            words = [f"{value:.{decimals}f}" for value in values]
            decimals += 1
        return list(zip(values, words, strict=True))

    def ticks(self) -> list[float]:
        """Return round values."""
        if not self.log:
            return ticks(self.low, self.high)
        powers = range(math.ceil(self.low), math.floor(self.high) + 1)
        if len(powers) >= 2:
            return [10.0**power for power in powers][:: max(1, len(powers) // 4)]
        tens = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = [factor * 10.0**power for power in tens for factor in (1, 2, 5)]
        return [step for step in steps if self.low <= math.log10(step) <= self.high]


def thin(points: Points) -> list[tuple[float, float]]:
    """Return at most :data:`MAX_POINTS` points: means of as many neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    chunks = [points[start : start + size] for start in range(0, len(points), max(1, size))]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def line_chart(title: str, lines: Sequence[Line], level: float | None = None, across: str = "epoch") -> str:
    """Draw curves; the first are drawn last, on top.

    Args:
        title: Heading.
        lines: The curves.
        level: A value to compare with, drawn across.
        across: What the horizontal axis counts.
    """
    drawn = [(line, thin(line.points)) for line in lines if line.points]
    ys = [y for _, points in drawn for _, y in points] + ([] if level is None else [level])
    if not drawn:
        return ""
    last = max(x for _, points in drawn for x, _ in points)
    first = min(0.0, *(x for _, points in drawn for x, _ in points))
    horizontal = Axis([first, last or 1.0], LEFT, WIDTH - RIGHT)
    horizontal.low, horizontal.high = first, last or 1.0
    vertical = Axis(ys, HEIGHT - BOTTOM, TOP, cut=0.01)
    parts = _vertical_grid(vertical)
    parts.append(_text(LEFT, HEIGHT - 8, number(first)))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 8, f"{across} {number(last)}", "end"))
    if level is not None:
        y = vertical.place(level)
        parts.append(f"<line class='level' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
    for line, points in reversed(drawn):
        places = [(horizontal.place(x), vertical.place(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        classes = f"{line.colour}{' faint' if line.faint else ''}"
        parts.append(
            f"<g class='{classes}'><title>{escape(line.label)}</title><polyline points='{path}'/>"
            + ("" if line.faint else f"<circle cx='{places[-1][0]:.1f}' cy='{places[-1][1]:.1f}' r='2.6'/>")
            + "</g>"
        )
    return _figure(title, "".join(parts), HEIGHT)


def end_chart(
    title: str, marks: Sequence[Mark], references: Sequence[tuple[str, float]], target: float | None
) -> str:
    """Draw where the variants ended: a row for each, its mean, its deviation as a bar, its seeds as dots.

    Args:
        title: Heading.
        marks: The variants, from above.
        references: What to compare with: name and value, each drawn as a line.
        target: A value that would be perfect, drawn as a line.
    """
    if not marks:
        return ""
    row = 22
    longest = max(len(mark.label) for mark in marks)
    left = min(max(112.0, LETTER * longest + 14), WIDTH / 2)
    top = 24 if references else 8  # above the rows are the names of the references
    values = [value for mark in marks for value in mark.values]
    values += [mark.mean + sign * (mark.deviation or 0.0) for mark in marks for sign in (-1, 1)]
    near = [value for _, value in references] + ([] if target is None else [target])
    axis = Axis([*values, *near], left, WIDTH - 14)
    bottom = top + row * len(marks)
    height = bottom + 20
    parts = []
    for tick, text in axis.labels():
        x = axis.place(tick)
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{top}' y2='{bottom}'/>")
        parts.append(_text(x, bottom + 13, text, "middle"))
    if target is not None:
        x = axis.place(target)
        parts.append(f"<line class='level' x1='{x:.1f}' x2='{x:.1f}' y1='{top}' y2='{bottom}'/>")
    for name, value in references:
        x = axis.place(value)
        anchor = "end" if x > WIDTH - 80 else "middle"
        parts.append(f"<line class='level' x1='{x:.1f}' x2='{x:.1f}' y1='{top - 6}' y2='{bottom}'/>")
        parts.append(_text(min(x, WIDTH - 4), top - 11, name, anchor))
    for index, mark in enumerate(marks):
        y = top + row * (index + 0.5)
        said = escape(f"{mark.label}: {number(mark.mean)}")
        parts.append(f"<g class='{mark.colour}'><title>{said}</title>")
        if mark.deviation is not None:
            x1, x2 = axis.place(mark.mean - mark.deviation), axis.place(mark.mean + mark.deviation)
            parts.append(f"<line class='bar' x1='{x1:.1f}' x2='{x2:.1f}' y1='{y:.1f}' y2='{y:.1f}'/>")
        if len(mark.values) > 1:
            places = [axis.place(value) for value in mark.values]
            parts += [f"<circle class='seed' cx='{x:.1f}' cy='{y:.1f}' r='2'/>" for x in places]
        parts.append(f"<circle cx='{axis.place(mark.mean):.1f}' cy='{y:.1f}' r='4.2'/></g>")
        label = _short(mark.label, int((left - 10) / LETTER))
        parts.append(_text(left - 10, y + 4, label, "end", "name"))
    return _figure(title, "".join(parts), height)


def plane_chart(
    title: str,
    across: tuple[str, Sequence[Mark]],
    up: tuple[str, Sequence[Mark]],
    goal: tuple[str, float, float] | None = None,
) -> str:
    """Draw one figure against another: a point for each variant, with its deviations, beside its name.

    It is twice as wide as other charts. Where it is not, on a phone, the page's style doubles its letters.

    Args:
        title: Heading; also what the axes mean.
        across: Name of the horizontal figure, and each variant's.
        up: Name of the vertical figure, and that of the same variants.
        goal: A point to reach: its name and its place.
    """
    pairs = list(zip(across[1], up[1], strict=True))
    if not pairs:
        return ""
    width, height, left, right, top = 700, 430, 54, 24, 36
    bottom = height - 56
    reach = [
        [mark.mean + sign * (mark.deviation or 0.0) for mark in marks for sign in (-1, 1)]
        for marks in (across[1], up[1])
    ]
    xs, ys = reach
    horizontal = Axis([*xs, *([goal[1]] if goal else [])], left, width - right)
    vertical = Axis([*ys, *([goal[2]] if goal else [])], bottom, top)
    parts = []
    for tick, text in vertical.labels():
        y = vertical.place(tick)
        parts.append(f"<line x1='{left}' x2='{width - right}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(_text(left - 8, y + 4, text, "end"))
    for tick, text in horizontal.labels():
        x = horizontal.place(tick)
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{top}' y2='{bottom}'/>")
        parts.append(_text(x, bottom + 20, text, "middle"))
    parts.append(_text(width - right, height - 6, f"{across[0]} →", "end"))
    parts.append(_text(left, 18, f"↑ {up[0]}"))
    if goal:
        x, y = horizontal.place(goal[1]), vertical.place(goal[2])
        cross = f"M{x - 6:.1f} {y:.1f}H{x + 6:.1f}M{x:.1f} {y - 6:.1f}V{y + 6:.1f}"
        parts.append(f"<path class='goal' d='{cross}'/>")
        parts.append(_text(x + 10, y - 14, goal[0], "end"))
    taken: list[tuple[float, float]] = [] if not goal else [(x, y - 14)]
    names = []
    for mark, other in pairs:
        x, y = horizontal.place(mark.mean), vertical.place(other.mean)
        parts.append(f"<g class='{mark.colour}'><title>{escape(mark.label)}</title>")
        if mark.deviation is not None and other.deviation is not None:
            x1, x2 = (horizontal.place(mark.mean + sign * mark.deviation) for sign in (-1, 1))
            y1, y2 = (vertical.place(other.mean + sign * other.deviation) for sign in (-1, 1))
            parts.append(f"<path class='bar' d='M{x1:.1f} {y:.1f}H{x2:.1f}M{x:.1f} {y1:.1f}V{y2:.1f}'/>")
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5.5'/></g>")
        # Beside the point where there is room, else below or above its neighbours.
        anchor, dx = ("end", -12) if x > width - 130 else ("start", 12)
        shift = next((s for s in (4, 25, -17, 46, -38) if not _crowded(x + dx, y + s, taken)), 4)
        taken.append((x + dx, y + shift))
        names.append(_text(x + dx, y + shift, mark.label, anchor, "name"))
    return _figure(title, "".join([*parts, *names]), height, width, "chart plane")


def _crowded(x: float, y: float, taken: Sequence[tuple[float, float]]) -> bool:
    return any(abs(x - other_x) < 120 and abs(y - other_y) < 20 for other_x, other_y in taken)


def scatter_chart(title: str, points: Sequence[tuple[float, float, str, str]], log: bool = False) -> str:
    """Draw values against what was varied.

    Args:
        title: Heading.
        points: Place, value, class and name of each.
        log: Whether the horizontal axis is logarithmic.
    """
    if not points:
        return ""
    horizontal = Axis([x for x, *_ in points], LEFT + 6, WIDTH - RIGHT - 6, log=log)
    vertical = Axis([y for _, y, *_ in points], HEIGHT - BOTTOM, TOP, cut=0.02)
    parts = _vertical_grid(vertical)
    parts += [_text(horizontal.place(t), HEIGHT - 8, text, "middle") for t, text in horizontal.labels()]
    parts += [
        f"<g class='{colour}'><title>{escape(name)}: {number(y)}</title>"
        f"<circle cx='{horizontal.place(x):.1f}' cy='{vertical.place(y):.1f}' r='3.4'/></g>"
        for x, y, colour, name in points
    ]
    return _figure(title, "".join(parts), HEIGHT)


def _vertical_grid(axis: Axis) -> list[str]:
    parts = []
    for tick, text in axis.labels():
        y = axis.place(tick)
        parts.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(_text(LEFT - 6, y + 4, text, "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    kind = f" class='{kind}'" if kind else ""
    return f"<text{kind} x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(text)}</text>"


def _short(label: str, room: int) -> str:
    """Return a label in ``room`` letters; its end, which tells variants apart, stays."""
    if len(label) <= room:
        return label
    begin = room // 2
    return f"{label[:begin]}…{label[-(room - begin - 1) :]}"


def _figure(title: str, inside: str, height: float, width: float = WIDTH, classes: str = "chart") -> str:
    return (
        f"<figure class='{classes}'><figcaption><span>{escape(title)}</span></figcaption>"
        f"<svg viewBox='0 0 {width:g} {height:g}' role='img' aria-label='{escape(title)}'>{inside}</svg>"
        "</figure>"
    )
