"""Tables that the page's script sorts and searches; without the script they are plain tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from report.markup import Content, Markup, element
from report.numbers import decimal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What a cell shows, and the number by which its column is sorted (None: by the text)."""

    content: Content
    sort: float | None = None
    class_: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row; with `shows` a click on it shows that case (its number there) in the viewer."""

    cells: tuple[Cell | str, ...]
    shows: int | None = None
    class_: str | None = None


def number_cell(value: float | None, digits: int = 3, class_: str | None = None) -> Cell:
    """A number; where there is none, the row comes last in either direction."""
    missing = value is None or math.isnan(value)
    words = " ".join(word for word in ("number", class_) if word)
    return Cell(content=decimal(value, digits), sort=None if missing else value, class_=words)


def table(headers: Sequence[str], rows: Sequence[Row], *, caption: str, search: bool | None = None) -> Markup:
    """A table with sortable columns; those in which nothing stands are left out.

    Args:
        headers: of the columns; the first one's cells name their rows.
        rows: in their first order.
        caption: what it shows, for those who do not see it, too.
        search: a field that hides the rows without its words; by default for more than ten rows.
    """
    empty = {index for index, column in enumerate(zip(*(row.cells for row in rows))) if not any(map(_says, column))}
    headers = [header for index, header in enumerate(headers) if index not in empty]
    rows = [
        dataclasses.replace(row, cells=tuple(cell for index, cell in enumerate(row.cells) if index not in empty))
        for row in rows
    ]
    numeric = [any("number" in ((cell.class_ or "") if isinstance(cell, Cell) else "") for cell in column)
               for column in zip(*(row.cells for row in rows))] or [False] * len(headers)  # fmt: skip
    heads = [element("th", element("button", header, type="button"), scope="col", class_="number" if right else None)
             for header, right in zip(headers, numeric)]  # fmt: skip
    body = element("table", element("caption", caption), element("thead", element("tr", heads)),
                   element("tbody", [_row(row) for row in rows]), class_="sortable")  # fmt: skip
    if not (len(rows) > 10 if search is None else search):
        return element("div", body, class_="scroll")
    field = element("label", "Search ", element("input", type="search", class_="search", autocomplete="off"),
                    element("span", class_="hits", role="status"))  # fmt: skip
    return element("div", field, element("div", body, class_="scroll"), class_="searchable")


def facts(pairs: Mapping[str, Content]) -> Markup:
    """Names and values, one below the other; those without a value are left out."""
    rows = [(element("dt", name), element("dd", value)) for name, value in pairs.items() if value not in (None, "")]
    return element("dl", rows, class_="facts")


def _says(cell: Cell | str) -> bool:
    return (cell.content if isinstance(cell, Cell) else cell) not in (None, "")


def _row(row: Row) -> Markup:
    first, *others = (cell if isinstance(cell, Cell) else Cell(content=cell) for cell in row.cells)
    head = first.content
    if row.shows is not None:
        head = element("button", head, type="button", class_="show", title="show in the viewer")
    cells = [_cell("th", dataclasses.replace(first, content=head), scope="row"), *(_cell("td", c) for c in others)]
    return element("tr", cells, data_shows=row.shows, class_=row.class_)


def _cell(name: str, cell: Cell, **more: str) -> Markup:
    return element(name, cell.content, data_sort=cell.sort, class_=cell.class_, **more)
