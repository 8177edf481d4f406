"""Doubt on the page of a prediction: which scans need a human, and what of them training never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from report.markup import Markup, element, join
from report.notices import note_damage
from report.numbers import plural
from report.tables import Cell, Row, number_cell, table
from report.views import Views
from utils.certainty import DOUBT_ENDING, DoubtRecord
from utils.errors import UserError
from utils.files import read_json

HEADERS = ("scan", "doubt", "verdict", "agreement of members", "remarks")
NO_DICE: Mapping[str, float] = MappingProxyType({})


def read_doubts(folder: Path) -> list[DoubtRecord]:
    """The records beside the masks of a folder, the most doubtful first; damaged ones are left out and noted."""
    found = []
    for path in sorted(folder.glob(f"*{DOUBT_ENDING}")):
        try:
            found.append(read_json(DoubtRecord, path))
        except (UserError, OSError, ValueError) as error:
            note_damage(path, error)
    return sorted(found, key=lambda record: (-record.score, record.case))


def doubt_order(records: Sequence[DoubtRecord]) -> list[str]:
    """Cases, the most doubtful first; of equal doubt those with something that training never saw."""
    return [each.case for each in sorted(records, key=lambda each: (-each.score, -len(each.remarks), each.case))]


def doubt_table(
    records: Sequence[DoubtRecord], views: Views | None = None, dice: Mapping[str, float] = NO_DICE
) -> Markup | None:
    """A row for each scan, the most doubtful first; None where nothing is known.

    Args:
        records: in that order.
        views: cases of the viewer, which rows open.
        dice: mean Dice of the scans that were scored.
    """
    if not records:
        return None
    rows = []
    for record in records:
        agreement = [v for each in record.certainties.values() for v in each.agreement if v is not None]
        mean = sum(agreement) / len(agreement) if agreement else None
        bad = "bad" if record.doubtful else None
        cells: tuple[Cell | str, ...] = (
            record.case, number_cell(record.score, 2, bad), Cell(content=record.words, class_=bad), number_cell(mean),
            *([number_cell(dice.get(record.case))] if dice else []), "; ".join(record.remarks),
        )  # fmt: skip
        rows.append(Row(cells=cells, shows=None if views is None else views.number_of(record.case)))
    verdicts = [record for record in records if record.doubtful is not None]
    counted = f"{sum(bool(record.doubtful) for record in verdicts)} of {plural(len(verdicts), 'scan')} doubtful"
    caption = counted if verdicts else f"{plural(len(records), 'scan')}; without a cross-validation there is no verdict"
    meaning = (
        "A doubt of 1 is where the worst tenth of the cross-validation begins, 0 is its median. It promises no Dice."
        if verdicts else "From 0 (all sure, all agree) to 1. It promises no Dice."
    )  # fmt: skip
    headers = [*HEADERS[:-1], *(["mean Dice"] if dice else []), HEADERS[-1]]
    return join(element("p", meaning), table(headers, rows, caption=caption))
