"""What a prediction left in a folder of masks: volumes of every scan with a picture, doubt, failures."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from report.charts import Axis, Dot, dot_chart
from report.doubt import read_doubts
from report.layers import Structure, structures_of, value_counts, volumes_ml
from report.markup import Markup, element
from report.notices import note
from report.numbers import listed, plural, quantile, significant
from report.records import RunFacts
from report.scored import find_files, plan_behind, predicting_run
from report.sources import FILES_ALONE, CaseFiles, Readers, by_case
from report.tables import Cell, Row, number_cell, table
from report.views import Views
from utils.certainty import DoubtRecord
from utils.errors import UserError
from utils.nifti import read_label
from utils.schema import Plan

DICOM_SEG = ".dcm"


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
    doubts: tuple[DoubtRecord, ...] = ()
    """The most doubtful first."""

    @property
    def doubtful(self) -> list[str]:
        """Cases that need a person, the most doubtful first."""
        return [record.case for record in self.doubts if record.doubtful and record.case in self.volumes]


def read_prediction(folder: Path, readers: Readers = FILES_ALONE) -> PredictionFacts:
    """Gather what a prediction wrote.

    Args:
        folder: of the masks.
        readers: of scans that are more than files.

    Raises:
        UserError: there are neither masks nor a record.
    """
    run, masks = predicting_run(folder), by_case(folder)
    if run is None and not masks:
        raise UserError(f"{folder} holds neither masks (.nii.gz, .nii) nor a run.json of a prediction")
    if run is not None and run.options.get("anonymous") and not readers:
        note("This page has no scans: where those of an anonymous prediction (--anonymous) came from is not recorded; "
             "the page that the prediction itself writes shows them")  # fmt: skip
    if segmentations := sorted(folder.glob(f"*{DICOM_SEG}")):
        note(f"{plural(len(segmentations), 'mask')} as DICOM-SEG ({listed([path.name for path in segmentations])}), "
             "which a page does not read: their volumes and pictures are missing")  # fmt: skip
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
    files = {case: find_files(case, run, masks[case], None, readers) for case in counted}
    return PredictionFacts(
        folder=folder, run=run, plan=plan, structures=structures, files=files, volumes=volumes, failed=failed,
        doubts=tuple(read_doubts(folder)),
    )  # fmt: skip


def prediction_numbers(facts: PredictionFacts) -> dict[str, int | None]:
    """How many scans were predicted, failed, are doubtful, or have an empty mask."""
    volumes = facts.volumes
    empty = [case for case, row in volumes.items() if row and not any(row.values())]
    return {
        "scan predicted" if len(volumes) == 1 else "scans predicted": len(volumes), "failed": len(facts.failed) or None,
        "doubtful": len(facts.doubtful) or None, "mask empty" if len(empty) == 1 else "masks empty": len(empty) or None,
    }  # fmt: skip


def volume_charts(facts: PredictionFacts) -> Markup | None:
    """The volumes of all scans, a chart for each structure; nothing for one or two scans."""
    volumes = facts.volumes
    charts = [
        dot_chart([(each.name, [Dot(case=case, value=row[each.name]) for case, row in volumes.items()])],
                  value=Axis(title="ml", low=0.0), title=f"Volume of {each.name}", first_number=number)
        for number, each in enumerate(facts.structures)
    ]  # fmt: skip
    return element("div", charts, class_="charts") if charts and len(volumes) > 2 else None


def doubtful_first(facts: PredictionFacts) -> list[str]:
    """Cases in the order in which a person should see them: the doubtful ones, then by doubt and volume in turn."""
    unusual = unusual_first(facts.volumes)
    by_doubt = [record.case for record in facts.doubts if record.case in facts.volumes]
    return list(dict.fromkeys([*facts.doubtful, *in_turn(by_doubt, unusual)]))


def in_turn(*orders: Sequence[str]) -> list[str]:
    """The first of each order, the second of each and so on, each name once."""
    mixed = (name for names in itertools.zip_longest(*orders) for name in names if name is not None)
    return list(dict.fromkeys(mixed))


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


def scan_table(facts: PredictionFacts, views: Views, *, alone: bool = True) -> Markup:
    """A row for each scan: volumes in ml, doubt, and its most telling slices; `alone`: there are no scores."""
    if not facts.volumes:
        return element("p", "No scan was predicted.", class_="none")
    pictured = bool(views.pictures)
    doubts = {record.case: record for record in facts.doubts}
    rows = []
    for case, volumes in facts.volumes.items():
        cells: list[Cell | str] = [case]
        for structure in facts.structures:
            value = volumes[structure.name]
            words = "number" if value else "number bad"
            cells.append(Cell(content=significant(value) if value else "none", sort=value, class_=words))
        if doubts:
            found = doubts.get(case)
            score, bad = (None, False) if found is None else (found.score, bool(found.doubtful))
            cells.append(number_cell(score, 2, "bad" if bad else None))
        if pictured:
            picture = views.pictures.get(case)
            text = f"axial, coronal and sagittal slice of {case}"
            cells.append(Cell(content=element("img", src=picture, alt=text, loading="lazy") if picture else None))
        rows.append(Row(cells=tuple(cells), shows=views.number_of(case)))
    headers = [
        "scan",
        *(f"{each.name}, ml" for each in facts.structures),
        *(["doubt"] if doubts else []),
        *(["most telling slices"] if pictured else []),
    ]
    first = "doubtful scans and unusual volumes" if doubts else "unusual volumes"
    chosen = f"; the viewer has {len(views.shown)}, {first} first" if views.shown and alone else ""
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
