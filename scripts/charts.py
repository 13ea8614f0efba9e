"""Two kinds of charts as SVG: bars in groups, lines over logarithmic axes.

So little is drawn that no library is needed for it. Colours suit colour-blind eyes; every bar also
bears its name and number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

_WIDTH = 960
_FONT = "font-family='system-ui, sans-serif' font-size='12'"
_TEXT, _FAINT = "#222222", "#dddddd"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: as many values as there are panels."""

    label: str
    colour: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Group:
    """Bars under a title; `marks` are limits, one for each panel, drawn across all of them."""

    title: str
    bars: Sequence[Bar]
    marks: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of points (x, y)."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines in a frame, both axes logarithmic."""

    title: str
    x: str
    y: str
    lines: Sequence[Line] = field(default_factory=list)


def bars(title: str, panels: Sequence[str], groups: Sequence[Group], footnote: str) -> str:
    """Draw horizontal bars, one panel beside the other."""
    left, gap, bar, step, head = 190, 50, 13, 17, 70
    panel = (_WIDTH - left - gap * len(panels)) / len(panels)
    tops = [
        max((value or 0 for group in groups for value in _all(group, number)), default=0) or 1
        for number in range(len(panels))
    ]
    body = []
    for number, name in enumerate(panels):
        body.append(_text(left + number * (panel + gap), head - 20, name, weight="bold"))
    y = float(head)
    for group in groups:
        body.append(_text(10, y + 2, group.title, weight="bold"))
        y += 10
        begun = y
        for one in group.bars:
            body.append(_text(left - 8, y + 10, one.label, anchor="end"))
            for number, value in enumerate(one.values):
                x = left + number * (panel + gap)
                if value is None:
                    body.append(_text(x + 4, y + 10, "failed"))
                    continue
                width = panel * value / tops[number]
                body.append(
                    f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{bar}' "
                    f"fill='{one.colour}'><title>{escape(one.label)}: {value:.2f}</title></rect>"
                )
                body.append(_text(x + width + 4, y + 10, f"{value:.2f}"))
            y += step
        for number, mark in enumerate(group.marks):
            if mark is not None:
                x = left + number * (panel + gap) + panel * mark / tops[number]
                body.append(_stroke([(x, begun - 3), (x, y)], "#d55e00", "2", "4 3"))
        y += 22
    body.append(_text(10, y, footnote))
    return _document(title, _WIDTH, y + 14, body)


def lines(title: str, plots: Sequence[Plot], columns: int = 2) -> str:
    """Draw plots side by side, with one legend for all."""
    height, head = 300, 76
    width = _WIDTH / columns
    body = []
    x = 10.0
    for line in plots[0].lines if plots else []:
        body.append(f"<rect x='{x:.0f}' y='42' width='18' height='6' fill='{line.colour}'/>")
        body.append(_text(x + 24, 50, line.label))
        x += 40 + 7 * len(line.label)
    for number, plot in enumerate(plots):
        corner = (number % columns * width, head + number // columns * height)
        body += _plot(plot, *corner, width, height)
    return _document(title, _WIDTH, head + -(-len(plots) // columns) * height, body)


def _plot(plot: Plot, left: float, top: float, width: float, height: float) -> Iterable[str]:
    x0, x1, y0, y1 = left + 60, left + width - 20, top + height - 50, top + 20
    points = [point for line in plot.lines for point in line.points]
    xs, ys = _decades(x for x, _ in points), _decades(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            x0 + (x1 - x0) * (math.log10(x) - xs[0]) / (xs[-1] - xs[0]),
            y0 + (y1 - y0) * (math.log10(y) - ys[0]) / (ys[-1] - ys[0]),
        )

    yield _text(x0, top + 8, plot.title, weight="bold")
    for power in xs:
        x, _ = place(10.0**power, 10.0 ** ys[0])
        yield _stroke([(x, y0), (x, y1)], _FAINT)
        yield _text(x, y0 + 16, _number(10.0**power), anchor="middle")
    for power in ys:
        _, y = place(10.0 ** xs[0], 10.0**power)
        yield _stroke([(x0, y), (x1, y)], _FAINT)
        yield _text(x0 - 6, y + 4, _number(10.0**power), anchor="end")
    yield _text((x0 + x1) / 2, y0 + 34, plot.x, anchor="middle")
    yield _text(left + 6, top + 8, plot.y)
    for line in plot.lines:
        placed = [place(*point) for point in sorted(line.points)]
        yield _stroke(placed, line.colour, "2")
        for (x, y), (_, value) in zip(placed, sorted(line.points), strict=True):
            yield (
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{line.colour}'>"
                f"<title>{escape(line.label)}: {value:.3g}</title></circle>"
            )


def _all(group: Group, panel: int) -> list[float | None]:
    return [*(bar.values[panel] for bar in group.bars), group.marks[panel]]


def _decades(values: Iterable[float]) -> list[int]:
    """Return the powers of ten that hold all values, two at least."""
    found = [math.log10(value) for value in values if value > 0] or [0.0]
    first = math.floor(min(found))
    return list(range(first, max(first + 1, math.ceil(max(found))) + 1))


def _number(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' fill='{_TEXT}' text-anchor='{anchor}' "
        f"font-weight='{weight}'>{escape(text)}</text>"
    )


def _stroke(
    points: Sequence[tuple[float, float]], colour: str, width: str = "1", dashes: str = "none"
) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{width}' "
        f"stroke-dasharray='{dashes}'/>"
    )


def _document(title: str, width: float, height: float, body: Iterable[str]) -> str:
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' "
            f"width='{width:.0f}' height='{height:.0f}' role='img' {_FONT}>",
            f"<title>{escape(title)}</title>",
            "<rect width='100%' height='100%' fill='#ffffff'/>",
            _text(10, 22, title, weight="bold"),
            *body,
            "</svg>\n",
        ]
    )
