"""Scores of cases as a table, and their spread as a chart; which structures were missed or invented."""

from __future__ import annotations

import math
from collections.abc import Sequence

from report.charts import Axis, Dot, dot_chart
from report.markup import Markup, element, join
from report.numbers import decimal, listed, mean, plural
from report.tables import Cell, Row, number_cell, table
from report.views import Views
from utils.lesions import LesionCounts
from utils.scores import CaseScores

POOR_DICE = 0.7
"""Below this Dice a number is marked."""


def case_mean(case: CaseScores) -> float:
    """Mean Dice over the targets of a case; NaN where none has a value."""
    return mean(list(case.dice))


def worst_first(cases: Sequence[CaseScores]) -> list[CaseScores]:
    """By mean Dice, lowest first; cases without one come last."""
    return sorted(cases, key=lambda case: (math.isnan(case_mean(case)), case_mean(case), case.case))


def absences(case: CaseScores, targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """Targets that the mask lacks altogether although the label has them, and those that only the mask has.

    By the voxel counts; where there are none nothing can be said.
    """
    rows = list(zip(targets, case.counts))
    missed = [target for target, (both, only_mask, only_label) in rows if both + only_mask == 0 < only_label]
    invented = [target for target, (both, only_mask, only_label) in rows if both + only_label == 0 < only_mask]
    return missed, invented


def score_table(
    cases: Sequence[CaseScores], targets: Sequence[str], views: Views, *, caption: str, search: bool | None = None
) -> Markup:
    """A row for each case with Dice, HD95, NSD and lesions as far as there are any; missed or invented structures."""
    kinds = [("Dice", "dice", 3), ("HD95 mm", "hd95_mm", 1), ("NSD", "nsd", 3)]
    kinds = [kind for kind in kinds if any(getattr(case, kind[1]) for case in cases)]
    counted = any(any(absences(case, targets)) for case in cases)
    headers = ["case"]
    if len(targets) > 1 and any(case.dice for case in cases):
        headers.append("mean Dice")
    headers += [f"{title} {target}" for title, *_ in kinds for target in targets]
    lesions = any(case.lesions for case in cases)
    if lesions:
        headers += [f"{title} {target}" for target in targets for title in ("lesions found", "false lesions")]
    rows = []
    for case in cases:
        cells: list[Cell | str] = [case.case]
        if "mean Dice" in headers:
            cells.append(_dice_cell(case_mean(case)))
        for title, name, digits in kinds:
            values = getattr(case, name) or (math.nan,) * len(targets)
            cells += [_dice_cell(value) if title == "Dice" else number_cell(value, digits) for value in values]
        if lesions:
            known = case.lesions or (None,) * len(targets)
            cells += [part for each in known for part in _lesion_cells(each)]
        if counted:
            cells.append(_absence_cell(case, targets))
        rows.append(Row(cells=tuple(cells), shows=views.number_of(case.case)))
    return table([*headers, *(["missed or invented"] if counted else [])], rows, caption=caption, search=search)


def _lesion_cells(counts: LesionCounts | None) -> tuple[Cell | str, Cell | str]:
    if counts is None:
        return "", ""
    sort = counts.sensitivity if counts.true else None
    return Cell(content=f"{counts.found} of {counts.true}", sort=sort, class_="number"), number_cell(counts.false, 0)


def absence_list(cases: Sequence[CaseScores], targets: Sequence[str]) -> Markup:
    """All missed and invented structures by name, or that there are none."""
    if not any(case.counts for case in cases):
        return Markup("")
    found: dict[str, dict[str, list[str]]] = {kind: {name: [] for name in targets} for kind in ("missed", "invented")}
    for case in cases:
        for kind, names in zip(found, absences(case, targets)):
            for name in names:
                found[kind][name].append(case.case)
    explained = {"missed": "in the label and nowhere in the mask", "invented": "in the mask and nowhere in the label"}
    items = [
        element("li", element("b", f"{name} {kind}"), f" ({explained[kind]}) in {len(names)}: {', '.join(names)}")
        for kind, by_name in found.items() for name, names in by_name.items() if names
    ]  # fmt: skip
    if not items:
        return element("p", "No structure was missed altogether, and none was invented.")
    return element("ul", items)


def spread_charts(cases: Sequence[CaseScores], targets: Sequence[str]) -> Markup:
    """Dice, HD95 and NSD of all cases as dots over their quartiles, by target."""

    def groups(name: str) -> list[tuple[str, list[Dot]]]:
        return [
            (target, [Dot(case=case.case, value=getattr(case, name)[number]) for case in cases if getattr(case, name)])
            for number, target in enumerate(targets)
        ]

    charts = [dot_chart(groups("dice"), value=Axis(title="Dice", high=1.0), title="Dice of each case")]
    if any(case.hd95_mm for case in cases):
        charts.append(dot_chart(groups("hd95_mm"), value=Axis(title="mm", low=0.0),
                                title="HD95 of each case (without those in which one mask is empty)"))  # fmt: skip
    if any(case.nsd for case in cases):
        charts.append(dot_chart(groups("nsd"), value=Axis(title="NSD", high=1.0), title="Surface Dice of each case"))
    return join(element("div", charts, class_="charts"), element("p", "Box: from the first to the third quartile; "
                "thick line: median. Point at a dot to read its case.", class_="note"))  # fmt: skip


def titles(cases: Sequence[CaseScores]) -> dict[str, str]:
    """Case -> its name with its Dice, for the viewer."""
    return {case.case: f"{case.case} (Dice {decimal(case_mean(case))})" for case in cases}


def not_in_viewer(urgent: Sequence[str], noun: str, views: Views) -> Markup | None:
    """Which of the cases that need a person found no place in the viewer; those that have a reason are `refusals`."""
    missing = [case for case in urgent if views.number_of(case) is None and case not in views.refused]
    if not missing or not views.shown:
        return None
    who = f"{plural(len(missing), noun)} {'is' if len(missing) == 1 else 'are'} not in the viewer"
    return element("p", f"{who}: {listed(missing)}. nnunet report --cases or --viewer_cases shows them.", class_="note")


def refusals(views: Views) -> Markup:
    """Which of the chosen cases the viewer lacks, and why."""
    if not views.refused:
        return Markup("")
    items = [element("li", element("b", case), f": {reason}") for case, reason in list(views.refused.items())[:20]]
    more = len(views.refused) - len(items)
    return element("details", element("summary", f"{len(views.refused)} not in the viewer"),
                   element("ul", items, element("li", f"and {more} more") if more else None))  # fmt: skip


def _dice_cell(value: float) -> Cell:
    return number_cell(value, 3, "bad" if value < POOR_DICE else None)


def _absence_cell(case: CaseScores, targets: Sequence[str]) -> Cell:
    missed, invented = absences(case, targets)
    words = [*(f"{name} missed" for name in missed), *(f"{name} invented" for name in invented)]
    return Cell(content=", ".join(words), class_="bad" if words else None)
