"""Charts as SVG text: curves over epochs, and the values of all cases as dots over their quartiles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from report.markup import Markup, element, join
from report.numbers import quantile, significant
from report.palette import DASHES, colour

LEFT, RIGHT, TOP, BOTTOM = 66, 14, 10, 40
DARK = "#222"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One curve; points are (x, y) with finite y, in the order of x. `number` chooses colour and dashes, None black."""

    name: str
    points: tuple[tuple[float, float], ...]
    number: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dot:
    """The value of one case."""

    case: str
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows: its text, and bounds where they do not follow from the values."""

    title: str
    low: float | None = None
    high: float | None = None
    whole: bool = False
    """Ticks are whole numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where values lie on the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int
    height: int

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(LEFT + share * (self.width - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(self.height - BOTTOM - share * (self.height - TOP - BOTTOM), 1)


def nice_ticks(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) from `low` to `high`, at most that many and one."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if whole:
        step = 5.0 if step == 2.5 else max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def line_chart(
    series: Sequence[Series], *, x: Axis, y: Axis, title: str, width: int = 560, height: int = 250
) -> Markup:
    """Curves with a legend; those without a point are left out, and a chart without any says so."""
    shown = [each for each in series if each.points]
    if not shown:
        return element("p", f"{title}: nothing was measured.", class_="none")
    xs = [point[0] for each in shown for point in each.points]
    ys = [point[1] for each in shown for point in each.points]
    frame = _Frame(
        **dict(zip(("x_low", "x_high"), _bounds(xs, x))), **dict(zip(("y_low", "y_high"), _bounds(ys, y, margin=0.05))),
        width=width, height=height,
    )  # fmt: skip
    curves = [_curve(frame, each) for each in shown]
    picture = _svg(frame, title, [*_axes(frame, x, y.title), *curves])
    return _figure(title, picture, _legend(shown) if len(shown) > 1 else None)


def dot_chart(groups: Sequence[tuple[str, Sequence[Dot]]], *, value: Axis, title: str, first_number: int = 0) -> Markup:
    """For each group a row of dots, one a case, over a box from the first to the third quartile with the median.

    Values that are not finite are left out; a dot says its case when pointed at. Colours are those of the targets with
    the numbers from `first_number` on.
    """
    numbered = [(colour(number), name, [dot for dot in dots if math.isfinite(dot.value)])
                for number, (name, dots) in enumerate(groups, start=first_number)]  # fmt: skip
    rows = [row for row in numbered if row[2]]
    if not rows:
        return element("p", f"{title}: no case has a value.", class_="none")
    low, high = _bounds([dot.value for _, _, dots in rows for dot in dots], value, margin=0.03)
    width, row_height = 560, 46
    frame = _Frame(x_low=low, x_high=high, y_low=0, y_high=1, width=width, height=TOP + BOTTOM + row_height * len(rows))
    parts: list[Markup] = _ticks_below(frame, value)
    for number, (code, name, dots) in enumerate(rows):
        middle = TOP + row_height * number + row_height // 2
        parts += [*_box(frame, [dot.value for dot in dots], middle), *_dots(frame, dots, middle, code)]
        parts.append(_text(LEFT, middle - row_height // 2 + 8, name, anchor="start", class_="row"))
    return _figure(title, _svg(frame, title, parts), None)


def _bounds(values: Sequence[float], axis: Axis, *, margin: float = 0.0) -> tuple[float, float]:
    low, high = (edge(value for value in (*values, bound) if value is not None)
                 for edge, bound in ((min, axis.low), (max, axis.high)))  # fmt: skip
    extra = (high - low) * margin
    low, high = low - (axis.low is None) * extra, high + (axis.high is None) * extra
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _axes(frame: _Frame, x: Axis, y_title: str) -> list[Markup]:
    parts = []
    for tick in nice_ticks(frame.y_low, frame.y_high, 5):
        y = frame.y(tick)
        parts.append(element("line", x1=LEFT, x2=frame.width - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(_text(LEFT - 6, y + 4, _tick_text(tick), anchor="end"))
    middle = (TOP + frame.height - BOTTOM) // 2
    parts.append(_text(12, middle, y_title, anchor="middle", transform=f"rotate(-90 12 {middle})"))
    return [*parts, *_ticks_below(frame, x)]


def _ticks_below(frame: _Frame, axis: Axis) -> list[Markup]:
    bottom = frame.height - BOTTOM
    parts = []
    for tick in nice_ticks(frame.x_low, frame.x_high, whole=axis.whole):
        x = frame.x(tick)
        parts.append(element("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="grid"))
        parts.append(_text(x, bottom + 15, _tick_text(tick), anchor="middle"))
    parts.append(_text((LEFT + frame.width - RIGHT) // 2, frame.height - 6, axis.title, anchor="middle"))
    return parts


def _tick_text(value: float) -> str:
    return f"{value:g}" if 1e-4 <= abs(value) < 1e5 or value == 0 else f"{value:.0e}"


def _curve(frame: _Frame, series: Series) -> Markup:
    stroke = DARK if series.number is None else colour(series.number)
    dash = None if series.number is None else DASHES[series.number % len(DASHES)] or None
    points = [(frame.x(x), frame.y(y)) for x, y in series.points]
    line = element("polyline", points=" ".join(f"{x},{y}" for x, y in points), stroke=stroke, stroke_dasharray=dash,
                   stroke_width=2.5 if series.number is None else 1.8, fill="none")  # fmt: skip
    if len(points) > 40:
        return line
    named = ((place, x, y) for place, (x, y) in zip(points, series.points))
    dots = [element("circle", element("title", f"{series.name}, {x:g}: {significant(y, 4)}"), cx=place[0], cy=place[1],
                    r=2.6, fill=stroke) for place, x, y in named]  # fmt: skip
    return join(line, dots)


def _box(frame: _Frame, values: list[float], middle: int) -> list[Markup]:
    low, median, high = (frame.x(quantile(values, share)) for share in (0.25, 0.5, 0.75))
    return [
        element("rect", x=low, y=middle - 9, width=max(1.0, round(high - low, 1)), height=18, class_="box"),
        element("line", x1=median, x2=median, y1=middle - 12, y2=middle + 12, class_="median"),
    ]


def _dots(frame: _Frame, dots: Sequence[Dot], middle: int, fill: str) -> list[Markup]:
    """Shifted up and down in turn, so that equal values do not hide each other; the same for the same input."""
    shifts = (0, -5, 5, -9, 9, -2, 2, -7, 7)
    ordered = sorted(dots, key=lambda dot: dot.value)
    return [
        element("circle", element("title", f"{dot.case}: {significant(dot.value, 4)}"), cx=frame.x(dot.value),
                cy=middle + shifts[number % len(shifts)], r=3, fill=fill, fill_opacity=0.85, class_="dot")
        for number, dot in enumerate(ordered)
    ]  # fmt: skip


def _text(x: float, y: float, content: str, *, anchor: str, **more: str) -> Markup:
    return element("text", content, x=x, y=y, text_anchor=anchor, **more)


def _svg(frame: _Frame, title: str, parts: Sequence[Markup]) -> Markup:
    border = element("rect", x=LEFT, y=TOP, width=frame.width - LEFT - RIGHT, height=frame.height - TOP - BOTTOM,
                     class_="frame")  # fmt: skip
    return element("svg", border, parts, viewBox=f"0 0 {frame.width} {frame.height}", role="img", aria_label=title)


def _legend(series: Sequence[Series]) -> Markup:
    items = []
    for each in series:
        stroke = DARK if each.number is None else colour(each.number)
        dash = None if each.number is None else DASHES[each.number % len(DASHES)] or None
        sample = element("line", x1=0, x2=26, y1=5, y2=5, stroke=stroke, stroke_width=3, stroke_dasharray=dash)
        items.append(element("li", element("svg", sample, viewBox="0 0 26 10", class_="sample", aria_hidden="true"),
                             " ", each.name))  # fmt: skip
    return element("ul", items, class_="legend")


def _figure(title: str, picture: Markup, legend: Markup | None) -> Markup:
    return element("figure", element("figcaption", title), picture, legend)
