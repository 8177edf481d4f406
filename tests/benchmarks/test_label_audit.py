"""What the benchmark of the label audit counts."""

from __future__ import annotations

import json
import math

import nibabel as nib
import numpy as np

from benchmarks.label_audit import count_found, outcome_table
from benchmarks.wrong_labels import KINDS, Planting, plant_errors
from tests.tiny_task import make_task
from utils.label_audit import AuditRow


def row(rank: int, case: str, kind: str, *, suspicious: bool, scope: str = "case") -> AuditRow:
    return AuditRow(
        rank=rank, case=case, scope=scope, score=1.0, suspicious=suspicious, kind=kind, structure="", where="",
        suggestion="", decision="", label="", label_digest="",
    )  # fmt: skip


def test_head_threshold_and_names_are_counted():
    rows = [row(1, "a", "shifted", suspicious=True), row(1, "a", "too large", suspicious=True, scope="place"),
            row(2, "b", "unclear", suspicious=True), row(3, "c", "unclear", suspicious=False),
            row(4, "d", "unclear", suspicious=False)]  # fmt: skip
    outcome = count_found(rows, {"a": "shift", "c": "dilation"})
    assert (outcome["cases"], outcome["planted"], outcome["head"], outcome["clean_suspicious"]) == (4, 2, 1, 1)
    assert outcome["auroc"] == 0.75
    shift = outcome["kinds"][0]
    assert (shift["planted"], shift["head"], shift["suspicious"], shift["named"]) == (1, 1, 1, 1)
    assert "in the first 2 of 4: 1 of 2 (50%)" in (text := outcome_table(outcome))
    assert "clean labels above the threshold: 1 of 2 (50.0%)" in text
    assert math.isnan(count_found(rows, {})["auroc"])


def test_errors_are_planted_in_a_copy_by_the_seed(tmp_path):
    task = make_task(tmp_path, num_cases=6)
    planting = Planting(cases=5, share=0.4, seed=3)
    planted = plant_errors(task.folder, tmp_path / "a/Task77_Tiny", planting)
    assert plant_errors(task.folder, tmp_path / "b/Task77_Tiny", planting) == planted
    assert len(planted) == 2 and set(planted.values()) == set(KINDS[:2])
    content = json.loads((tmp_path / "a/Task77_Tiny/dataset.json").read_text())
    assert len(content["training"]) == content["numTraining"] == 5 and content["test"] == []
    for entry in content["training"]:
        given, before = (np.asanyarray(nib.load(folder / entry["label"]).dataobj)
                         for folder in (tmp_path / "a/Task77_Tiny", task.folder))  # fmt: skip
        case = entry["label"].rpartition("/")[2].removesuffix(".nii.gz")
        assert np.array_equal(given, before) == (case not in planted)
