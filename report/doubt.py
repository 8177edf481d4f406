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

NO_DICE: Mapping[str, float] = MappingProxyType({})


def read_doubts(folder: Path) -> list[DoubtRecord]:
    """The records beside the masks of a folder, the most doubtful first; damaged ones are left out and noted."""
    found = []
    for path in sorted(folder.glob(f"*{DOUBT_ENDING}")):
        try:
            found.append(read_json(DoubtRecord, path))
        except (UserError, OSError, ValueError) as error:
            note_damage(path, error)
    return sorted(found, key=lambda record: record.rank)


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
    verdicts = [record.doubtful for record in records if record.doubtful is not None]
    calibrated = any(record.calibrated for record in records)
    agreements = {record.case: _agreement(record) for record in records}
    # Columns that would be empty are left out.
    columns = {
        "scan": True, "doubt": True, "verdict": calibrated, "mean Dice": bool(dice),
        "agreement": any(value is not None for value in agreements.values()),
        "remarks": any(record.remarks for record in records),
    }  # fmt: skip
    headers = [name for name, wanted in columns.items() if wanted]
    rows = []
    for record in records:
        bad = "bad" if record.doubtful else None
        cells: dict[str, Cell | str] = {
            "scan": record.case, "doubt": number_cell(record.score, 2, bad),
            "verdict": Cell(content=record.words, class_=bad), "mean Dice": number_cell(dice.get(record.case)),
            "agreement": number_cell(agreements[record.case]), "remarks": "; ".join(record.remarks),
        }  # fmt: skip
        shows = None if views is None else views.number_of(record.case)
        rows.append(Row(cells=tuple(cells[name] for name in headers), shows=shows))
    counted = f"{sum(verdicts)} of {plural(len(verdicts), 'scan')} doubtful"
    why = "edited masks have no verdict" if calibrated else "without a cross-validation there is no verdict"
    caption = counted if verdicts else f"{plural(len(records), 'scan')}; {why}"
    meaning = (
        "A doubt of 1 is where the worst tenth of the cross-validation begins, 0 is its median. It promises no Dice."
        if calibrated else "From 0 (all sure, all agree) to 1. It promises no Dice."
    )  # fmt: skip
    return join(element("p", meaning), table(headers, rows, caption=caption))


def _agreement(record: DoubtRecord) -> float | None:
    """Of members, or of the flips of a single one: mean over configurations and targets; None where nothing says."""
    found = [value for each in record.certainties.values() for value in each.agreement if value is not None]
    return sum(found) / len(found) if found else None
