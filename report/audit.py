"""The part of a cross-validation's page about labels that the out-of-fold predictions contradict."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from report.markup import Markup, element, join
from report.notices import newer_than, note
from report.numbers import plural
from report.records import read_mapping
from report.score_tables import not_in_viewer
from report.tables import Cell, Row, number_cell, table
from report.views import MOST_CASES, Room, Views
from utils.errors import UserError
from utils.files import file_digest
from utils.label_audit import AUDIT_DETAILS, AUDIT_TABLE, AuditRow, read_audit

SHOWN = 10
"""Cases in the table that are not suspicious by their score, so that a person sees where it begins."""


def read_suspicions(results: Path, task: str) -> tuple[AuditRow, ...]:
    """The lines of a task's audit that are still true.

    There are none where there was no audit, or one of earlier networks; and none about labels that were changed since,
    which is noted. A table that cannot be read is a warning.
    """
    path = results / f"{task}_audit" / AUDIT_TABLE
    if not path.is_file():
        return ()
    try:
        rows = read_audit(path)
    except UserError as error:
        print(f"warning: the page says nothing of the label audit: {error}", file=sys.stderr)
        return ()
    details = path.with_name(AUDIT_DETAILS)
    folds = results / f"{task}_{read_mapping(details).get('configuration')}"
    if newer_than(list(folds.glob("fold_*/done.json")), details):
        note(f"Folds ended after the labels were audited ({task}_audit), which is left out: run audit-labels again")
        return ()
    changed = {row.case: row.label for row in rows if row.scope == "case" and _is_changed(row)}
    if changed:
        note(f"Labels were changed after they were audited, which says nothing of them now: {', '.join(changed)}")
    return tuple(row for row in rows if row.case not in changed)


def _is_changed(row: AuditRow) -> bool:
    """Whether the file is there and another one; data may lie elsewhere."""
    try:
        return file_digest(Path(row.label)) != row.label_digest
    except OSError:
        return False


def with_suspects(names: Sequence[str], rows: Sequence[AuditRow], known: Sequence[str], room: Room) -> list[str]:
    """The viewer's cases with those that have a suspicious label in front.

    These may take three of four places, and where nobody has said how many there are, it is as many as they need. Where
    none is suspicious, the first three of the ranking come last.
    """
    ranked = [row for row in rows if row.scope == "case" and row.case in known]
    suspicious = [row.case for row in ranked if row.suspicious]
    places = max(room.places(4 * len(suspicious) // 3 + 1), len(names))
    first = suspicious[: max(1, places * 3 // 4)]
    last = [] if suspicious else [row.case for row in ranked[:3]]
    most = places if suspicious else room.places(MOST_CASES)
    return list(dict.fromkeys([*first, *names, *last]))[:most]


def _places(rows: Sequence[AuditRow]) -> Markup:
    """Each place once, one below the other."""
    words = dict.fromkeys(f"{each.kind} ({each.structure}) at {each.where}" for each in rows)
    return join([element("div", text, class_="whole") for text in words])


def suspect_titles(rows: Sequence[AuditRow], titles: Mapping[str, str]) -> dict[str, str]:
    """Titles of the viewer's cases that say what a suspicious label looks like."""
    looks = {row.case: row.kind for row in rows if row.scope == "case" and row.suspicious}
    return {case: f"{title}: label looks {looks[case]}" if case in looks else title for case, title in titles.items()}


def audit_in_words(rows: Sequence[AuditRow], views: Views) -> Markup | None:
    """How many labels are suspicious, and the head of the ranking; None where there was no audit."""
    cases = [row for row in rows if row.scope == "case"]
    if not cases:
        return None
    number = sum(row.suspicious for row in cases)
    shown = cases[: number + SHOWN]
    places: dict[str, list[AuditRow]] = {}
    for row in rows:
        if row.scope != "case":
            places.setdefault(row.case, []).append(row)
    lines = [
        Row(
            cells=(
                row.case, number_cell(float(row.rank), 0), number_cell(row.score, 1, "bad" if row.suspicious else None),
                Cell(content=row.kind), Cell(content=row.structure), Cell(content=row.where, class_="whole"),
                Cell(content=_places(places.get(row.case, ()))),
                Cell(content=row.suggestion), Cell(content=row.decision),
            ),
            shows=views.number_of(row.case),
        )
        for row in shown
    ]  # fmt: skip
    headers = ["case", "rank", "score", "looks like", "structure", "voxels x y z", "places", "suggestion", "decision"]
    return join(
        element("p", f"The out-of-fold predictions contradict the given label of {plural(number, 'case')} of "
                f"{len(cases)} so much that a person should look at it. A click shows a case in the viewer."),
        table(headers, lines, caption="labels by how much they are contradicted, most first"),
        not_in_viewer([row.case for row in cases if row.suspicious], "suspicious case", views),
    )  # fmt: skip
