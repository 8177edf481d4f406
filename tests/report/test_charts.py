"""Charts as text: places of points, round ticks, and what stands there where there is nothing to draw."""

from __future__ import annotations

import math
import re

import pytest

from report.charts import Axis, Dot, Series, dot_chart, line_chart, nice_ticks
from report.palette import COLOURS
from report.tables import Cell, Row, number_cell, table

X, Y = Axis(title="epoch"), Axis(title="loss")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 33, [0, 10, 20, 30]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (2, 2, [2])],
)
def test_ticks_are_round_numbers_within_the_bounds(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_epochs_are_whole_numbers():
    assert nice_ticks(0, 14, whole=True) == [0, 5, 10]
    assert nice_ticks(0, 2, whole=True) == [0, 1, 2]


def test_a_curve_goes_from_the_lower_left_to_the_upper_right():
    chart = line_chart([Series(name="a", points=((0, 0), (1, 1)), number=0)], x=X, y=Axis(title="d", low=0, high=1),
                       title="T", width=580, height=250)  # fmt: skip
    points = re.search(r'points="([^"]*)"', chart)[1]
    left, bottom, right, top = map(float, re.split("[ ,]", points))
    assert (left, bottom, right, top) == (66, 210, 566, 10)


def test_curves_are_told_apart_without_colour():
    chart = line_chart(
        [Series(name=n, points=((0, k), (1, k)), number=k) for k, n in enumerate("ab")], x=X, y=Y, title="T"
    )
    strokes = re.findall(r'<polyline points="[^"]*" stroke="([^"]*)"( stroke-dasharray="[^"]*")?', chart)
    assert [stroke for stroke, _ in strokes] == list(COLOURS[:2]) and len({dash for _, dash in strokes}) == 2


def test_one_epoch_is_a_dot_and_none_is_a_sentence():
    assert "<circle" in line_chart([Series(name="a", points=((3, 0.5),))], x=X, y=Y, title="T")
    assert (
        line_chart([Series(name="a", points=())], x=X, y=Y, title="T") == '<p class="none">T: nothing was measured.</p>'
    )


def test_dots_have_the_colour_of_their_target_and_undefined_values_are_left_out():
    groups = [
        ("a", [Dot(case="x", value=math.nan)]),
        ("b", [Dot(case="y", value=math.inf), Dot(case="<z>", value=0.5)]),
    ]
    chart = dot_chart(groups, value=Axis(title="Dice"), title="T")
    assert re.findall(r'<circle[^>]*fill="([^"]*)"[^>]*><title>([^<]*)</title>', chart) == [
        (COLOURS[1], "&lt;z&gt;: 0.5000")
    ]


def test_a_row_of_the_viewer_has_a_button_and_a_number():
    rows = [Row(cells=("a<b", number_cell(0.5)), shows=3), Row(cells=("c", number_cell(None)))]
    markup = table(["case", "Dice"], rows, caption="all")
    assert '<tr data-shows="3"><th scope="row"><button type="button" class="show"' in markup
    assert '<tr><th scope="row">c</th><td class="number">–</td></tr>' in markup and "a&lt;b" in markup
    assert 'type="search"' not in markup


def test_many_rows_can_be_searched():
    markup = table(["case"], [Row(cells=(Cell(content=str(k)),)) for k in range(11)], caption="all")
    assert 'type="search"' in markup
