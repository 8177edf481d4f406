"""Text in a page: escaped everywhere, and data that cannot end their element."""

from __future__ import annotations

import json
import math

import pytest

from report.markup import Markup, element, escape, join, json_block
from report.numbers import decimal, duration, plural, quantile, significant
from report.tables import Cell, Row, number_cell, table

EVIL = '</script><b>"it\'s" & </b>'


def test_text_is_escaped_in_content_and_attributes():
    assert element("td", EVIL, title=EVIL) == (
        '<td title="&lt;/script&gt;&lt;b&gt;&quot;it&#x27;s&quot; &amp; &lt;/b&gt;">'
        "&lt;/script&gt;&lt;b&gt;&quot;it&#x27;s&quot; &amp; &lt;/b&gt;</td>"
    )


def test_markup_is_taken_as_it_is_and_lists_are_joined():
    assert element("p", Markup("<i>x</i>"), ["<", None, 3]) == "<p><i>x</i>&lt;3</p>"
    assert join(element("br"), "a") == "<br>a"


def test_columns_in_which_nothing_stands_are_left_out():
    rows = [Row(cells=("a", Cell(content=None), number_cell(None), "")), Row(cells=("b", "x", number_cell(1.0), ""))]
    text = table(["name", "word", "number", "nothing"], rows, caption="c")
    assert [name in text for name in ("name", "word", "number", "nothing")] == [True, True, True, False]


def test_attributes_without_a_value_are_left_out():
    assert element("input", checked=True, value=None, hidden=False, data_case=0) == '<input checked data-case="0">'


def test_a_file_name_that_is_no_text_is_shown_by_its_codes():
    assert escape("a\udcffb\0") == "a\\udcffb\\x00"


def test_data_for_the_script_hold_no_sign_of_html_and_come_back_as_they_were():
    block = json_block("d", {"case": EVIL, "bytes": "\udcff"})
    inside = block.removeprefix('<script type="application/json" id="d">').removesuffix("</script>")
    assert not set("<>&") & set(inside)
    assert json.loads(inside) == {"case": EVIL, "bytes": "\udcff"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (math.nan, "–"), (math.inf, "∞"), (0.12345, "0.123")],
)
def test_numbers_that_are_none_have_a_sign(value, expected):
    assert decimal(value) == expected


def test_numbers_for_people():
    assert [significant(v) for v in (0, 0.01234, 8.214, 792.4, 1.5e-7)] == ["0", "0.0123", "8.21", "792", "1.50e-07"]
    assert [duration(v) for v in (9.34, 600, 7200, None)] == ["9.3 s", "10.0 min", "2.0 h", "–"]
    assert (plural(1, "case"), plural(2, "case")) == ("1 case", "2 cases")
    assert quantile([4, 1, 3, 2], 0.5) == 2.5
