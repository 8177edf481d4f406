"""What doubt means for a configuration, found out by its cross-validation: `doubt.json` beside its folds.

Every case was predicted by one network that had not seen it, which said how sure it was while it predicted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cross_validation.records import CaseRecord, FoldRecord, finished_records
from cross_validation.scored_folds import scored_with
from data_preprocessing.planning.plan_file import read_plan
from data_preprocessing.shards import read_meta, shard_paths
from inference.doubt import CALIBRATION_FILE, Calibration, calibrate
from inference.input_check import InputReference, look_at, reference_of
from utils.configurations import CONFIGURATIONS
from utils.files import write_json

LEAST_CASES = 3
"""With fewer nothing can be called unusual."""


def write_calibrations(task: str, data: Path, results: Path) -> None:
    """Write the calibration of every configuration of which folds are finished, and say what could not be done.

    Args:
        task: two digits.
        data: folder of the preprocessed data; without them there is no reference for new scans.
        results: folder of the configurations.
    """
    for name, shards in CONFIGURATIONS.items():
        folder = results / f"{task}_{name}"
        records = finished_records(folder)
        if not records:
            continue
        found = calibration_of(name, folder, records, data / f"{task}_{shards}")
        if found is None:
            (folder / CALIBRATION_FILE).unlink(missing_ok=True)
            print(f"{name}: no calibration of doubt: fewer than {LEAST_CASES} cases have labels and say how sure the "
                  "network was (predictions of an earlier version do not)")  # fmt: skip
            continue
        write_json(found, folder / CALIBRATION_FILE)
        print(f"{name}: doubt is calibrated on {found.cases} cases: {folder / CALIBRATION_FILE}")


def calibration_of(name: str, folder: Path, records: Sequence[FoldRecord], shards: Path) -> Calibration | None:
    """The calibration of the finished folds of a configuration; None where too few cases say anything."""
    cases = [case for record in records for case in record.cases]
    known = [
        # By the name that the fold has in a model.
        (dataclasses.replace(case.certainty, names=(f"fold_{record.fold}",)),
         [math.nan if value is None else value for value in case.dice])
        for record in records for case in record.cases if case.certainty is not None and case.dice
    ]  # fmt: skip
    if len(known) < LEAST_CASES:
        return None
    settings, inputs = scored_with([folder]), input_reference(shards, cases)
    return calibrate(name, records[0].targets, known, tta=settings.tta, overlap=settings.overlap, inputs=inputs)


def input_reference(shards: Path, cases: Sequence[CaseRecord]) -> InputReference | None:
    """What the scans of some cases looked like; None where their shards are not there any more."""
    there = [case for case in cases if shard_paths(shards, case.case).image.is_file()]
    if not there:
        return None
    plan, looks = read_plan(shards), []
    for case in there:
        image = np.load(shard_paths(shards, case.case).image, mmap_mode="r", allow_pickle=False)
        looks.append(look_at(image, read_meta(shards, case.case), plan))
    return reference_of(looks, [case.sides for case in there])
