"""The figures of the page on scaling are those that are computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scaling import all_reduce_s, tables, touched_bytes

PAGE = Path(__file__).resolve().parents[2] / "docs/explanation/scaling.md"


def test_an_all_reduce_moves_nearly_twice_the_bytes():
    assert all_reduce_s(100, 2, 10) == 10.0 and all_reduce_s(100, 4, 10) == 15.0


def test_pages_of_a_patch_are_counted():
    # Two planes of three rows, 2,048 bytes apart: the pages of a plane follow each other, and one more may begin.
    assert touched_bytes((2, 3, 128), (9, 9, 512), 4) == 2 * (3 * 2048 + 4096)
    # Rows further apart than pages: one page or two for each.
    assert touched_bytes((2, 3, 100), (9, 9, 5000), 4) == 2 * 3 * 4096


@pytest.mark.slow
def test_the_page_holds_what_is_computed():
    text = PAGE.read_text(encoding="utf-8")
    missing = [line for line in tables() if line not in text]
    assert not missing
