"""The page of a prediction: volumes of every scan with a picture, the unusual ones first in the viewer, failures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from report.charts import Axis, Dot, dot_chart
from report.doubt import doubt_table, read_doubts
from report.layers import Structure, structures_of, value_counts, volumes_ml
from report.markup import Markup, element, join
from report.notices import note
from report.numbers import plural, quantile, significant
from report.page import build_page, section
from report.records import RunFacts
from report.score_tables import refusals
from report.scored import find_files, plan_behind, predicting_run
from report.sources import CaseFiles, by_case
from report.tables import Cell, Row, table
from report.views import Room, Views, make_views
from report.words import run_record, tiles
from utils.errors import UserError
from utils.nifti import read_label
from utils.schema import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionFacts:
    """What lies in a folder of predicted masks."""

    folder: Path
    run: RunFacts | None
    plan: Plan | None
    structures: tuple[Structure, ...]
    files: Mapping[str, CaseFiles]
    volumes: Mapping[str, Mapping[str, float]]
    """Case -> structure -> ml."""
    failed: Mapping[str, str]
    """Case -> why it has no mask, or one that cannot be read."""


def read_prediction(folder: Path) -> PredictionFacts:
    """Gather what a prediction wrote.

    Raises:
        UserError: there are neither masks nor a record.
    """
    run, masks = predicting_run(folder), by_case(folder)
    if run is None and not masks:
        raise UserError(f"{folder} holds neither masks (.nii.gz, .nii) nor a run.json of a prediction")
    failed = dict(_failures(run))
    counted: dict[str, tuple[np.ndarray, tuple[float, float, float]]] = {}
    for case, path in masks.items():
        try:
            volume = read_label(path)
            counted[case] = value_counts(volume.array, path), volume.spacing_mm
        except UserError as error:
            failed[case] = str(error)
    values = sorted({int(value) for counts, _ in counted.values() for value in np.flatnonzero(counts)})
    plan = plan_behind(folder, run)
    structures = structures_of(plan.labels if plan else None, values)
    volumes = {case: volumes_ml(counts, spacing_mm, structures) for case, (counts, spacing_mm) in counted.items()}
    files = {case: find_files(case, run, masks[case], None) for case in counted}
    return PredictionFacts(
        folder=folder, run=run, plan=plan, structures=structures, files=files, volumes=volumes, failed=failed,
    )  # fmt: skip


def prediction_page(facts: PredictionFacts, views: Views) -> str:
    """The text of the page."""
    volumes = facts.volumes
    empty = [case for case, row in volumes.items() if row and not any(row.values())]
    numbers = {
        "scan predicted" if len(volumes) == 1 else "scans predicted": len(volumes),
        "failed": len(facts.failed) or None, "mask empty" if len(empty) == 1 else "masks empty": len(empty) or None,
    }  # fmt: skip
    charts = [
        dot_chart([(each.name, [Dot(case=case, value=row[each.name]) for case, row in volumes.items()])],
                  value=Axis(title="ml", low=0.0), title=f"Volume of {each.name}", first_number=number)
        for number, each in enumerate(facts.structures)
    ] if len(volumes) > 2 else []  # fmt: skip
    sections = [
        section("Result", tiles(numbers)),
        section("Failed scans", failures(facts.failed)),
        section("Scans", join(scan_table(facts, views), refusals(views))),
        section("Doubt", doubt_table(read_doubts(facts.folder))),
        section("Volumes", element("div", charts, class_="charts") if charts else None),
        section("Run", run_record(facts.run)),
    ]
    return build_page("Prediction", subtitle=str(facts.folder), sections=sections, views=views.shown,
                      structures=facts.structures, viewer_after="Scans")  # fmt: skip


def write_prediction_views(facts: PredictionFacts, room: Room) -> Views:
    """The most unusual scans for the viewer, and a picture of each scan."""
    order = unusual_first(facts.volumes)
    chosen = [facts.files[case] for case in room.choose(order)]
    pictured = [facts.files[case] for case in facts.volumes]
    return make_views(chosen, facts.structures, room, pictured=pictured, plan=facts.plan)


def unusual_first(volumes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Cases by how far a structure's volume is from the median over the cases, as a factor; empty ones come first."""
    names = list(dict.fromkeys(name for row in volumes.values() for name in row))
    medians = {name: quantile([row[name] for row in volumes.values()], 0.5) for name in names}

    def oddness(case: str) -> float:
        distances = [0.0]
        for name, volume in volumes[case].items():
            if medians[name] > 0:
                distances.append(abs(math.log(volume / medians[name])) if volume > 0 else math.inf)
        return max(distances)

    return sorted(volumes, key=lambda case: (-oddness(case), case))


def scan_table(facts: PredictionFacts, views: Views) -> Markup:
    """A row for each scan: volumes in ml, and its most telling slices."""
    if not facts.volumes:
        return element("p", "No scan was predicted.", class_="none")
    pictured = bool(views.pictures)
    rows = []
    for case, volumes in facts.volumes.items():
        cells: list[Cell | str] = [case]
        for structure in facts.structures:
            value = volumes[structure.name]
            words = "number" if value else "number bad"
            cells.append(Cell(content=significant(value) if value else "none", sort=value, class_=words))
        if pictured:
            picture = views.pictures.get(case)
            text = f"axial, coronal and sagittal slice of {case}"
            cells.append(Cell(content=element("img", src=picture, alt=text, loading="lazy") if picture else None))
        rows.append(Row(cells=tuple(cells), shows=views.number_of(case)))
    headers = [
        "scan",
        *(f"{each.name}, ml" for each in facts.structures),
        *(["most telling slices"] if pictured else []),
    ]
    chosen = f"; the viewer has {len(views.shown)}, unusual volumes first" if views.shown else ""
    return table(headers, rows, caption=plural(len(rows), "scan") + chosen)


def failures(failed: Mapping[str, str]) -> Markup | None:
    """The scans without a mask and the reason of each."""
    if not failed:
        return None
    rows = [Row(cells=(case, reason)) for case, reason in failed.items()]
    return table(["scan", "reason"], rows, caption=f"{plural(len(rows), 'scan')} without a mask that can be used")


def _failures(run: RunFacts | None) -> Mapping[str, str]:
    """Of a record of scripts/inference.py; one of main.py has their number, and the reasons of its first process."""
    failed = {} if run is None else run.outcome.get("failed")
    if run is not None and isinstance(failed, int):
        known = run.outcome.get("reasons")
        failed = known if isinstance(known, dict) else {}
        if len(failed) < run.outcome["failed"]:
            note(f"{run.outcome['failed']} scans failed; the record has the reasons of {len(failed)}, the others stand "
                 "in what the command printed")  # fmt: skip
    return {str(case): str(reason) for case, reason in failed.items()} if isinstance(failed, dict) else {}
