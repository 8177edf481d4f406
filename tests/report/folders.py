"""Small folders as the commands leave them behind: a training, a cross-validation, scored masks, predicted masks."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np

from utils.certainty import Certainty, DoubtRecord
from utils.files import write_json as write_record

EVIL = "a<b>&\"'"
"""A case whose name is markup; a file name cannot hold the slash of an end tag."""
SHAPE = (20, 24, 16)
AFFINE = np.diag([2.0, 1.0, 1.0, 1.0])


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_volume(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def block(x: slice, value: int = 1) -> np.ndarray:
    """A mask (x, y, z) with one box."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[x, 4:18, 4:12] = value
    return mask


def scan(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 110, SHAPE).astype(np.int16)


def run_record(folder: Path, options: dict, outcome: dict, name: str = "run.json") -> None:
    record = {
        "time": "2026-11-28T21:00:00+00:00", "command": ["main.py", "--task", "77"], "working_folder": str(folder),
        "options": options, "environment": {"cpu": "C", "cpu_cores": 2, "commit": "abc", "versions": {"torch": "2"}},
        "outcome": outcome,
    }  # fmt: skip
    write_json(folder / name, record)


def log_lines(epochs: list[dict]) -> str:
    """As utils/logger.py writes them, with a line that was cut off."""
    asked = {"run": {"exec_mode": "train", "data": "gone", "results": "results", "fold": 3}}
    lines = [{"type": "LOG", "step": "PARAMETER", "data": asked}]
    lines += [{"type": "LOG", "step": epoch, "data": data} for epoch, data in enumerate(epochs)]
    return "".join(f"DLLL {json.dumps(line)}\n" for line in lines) + 'DLLL {"type": "LO'


def make_training(folder: Path, *, finished: bool = True) -> Path:
    options = {"run": {"exec_mode": "train", "data": "gone", "task": "77", "dim": 3, "fold": 0, "logname": "logs.json"}}
    outcome = {"best_dice": 0.75, "best_epoch": 1, "train_s": 600.0, "best_dice_organ": 0.75}
    folder.mkdir(parents=True)
    if finished:
        run_record(folder, options, outcome)
    rows = [{"train_loss": 2.0, "learning_rate": 0.1, "epoch_s": 9.0},
            {"train_loss": 1.0, "val_loss": 1.2, "dice": 0.75, "dice_organ": 0.75, "learning_rate": 0.05, "epoch_s": 8},
            ]  # fmt: skip
    (folder / "logs.json").write_text(log_lines(rows))
    state = {"version": 1, "fold": 0, "epochs": 2, "max_epochs": 2 if finished else 9, "finished": finished}
    write_json(folder / "checkpoints" / "training.json", state)
    return folder


def make_scored(root: Path) -> Path:
    """Masks of two cases beside scans and labels: one is shifted, of the other a structure is missing."""
    masks = {EVIL: block(slice(4, 10)), "plain": np.zeros(SHAPE, np.uint8)}
    labels = {EVIL: block(slice(6, 12)), "plain": block(slice(8, 14))}
    folder = root / "masks"
    for number, case in enumerate(masks):
        write_volume(folder / f"{case}.nii.gz", masks[case])
        write_volume(root / "data" / "labelsTr" / f"{case}.nii.gz", labels[case])
        write_volume(root / "data" / "imagesTr" / f"{case}_0000.nii.gz", scan(number))
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("case", "target", "dice", "tp", "fp", "fn", "hd95_mm", "nsd"))
        writer.writerow((EVIL, "organ", 0.6667, 448, 224, 224, 4.0, 0.5))
        writer.writerow(("plain", "organ", 0.0, 0, 0, 672, "inf", 0.0))
    summary = {"version": 1, "preds": str(folder), "lbls": str(root / "data" / "labelsTr"), "dice": [0.33335],
               "mean_dice": 0.33335, "hd95_mm": [4.0], "mean_hd95_mm": 4.0, "unbounded": [1], "nsd": [0.25],
               "mean_nsd": 0.25}  # fmt: skip
    write_json(folder / "summary.json", summary)
    return folder


def make_predicted(root: Path) -> Path:
    """Masks of three scans, one of them empty, and one scan that failed."""
    folder = root / "masks"
    masks = {EVIL: block(slice(4, 10)), "empty": block(slice(0, 0)), "large": block(slice(2, 18))}
    for number, (case, mask) in enumerate(masks.items()):
        write_volume(folder / f"{case}.nii.gz", mask)
        write_volume(root / "scans" / f"{case}.nii.gz", scan(number))
    options = {"input": "../scans", "output": "masks", "model": "gone"}
    run_record(folder, options, {"scans": 4, "failed": {"broken": "</script> is truncated"}})
    return folder


def make_cross_validation(root: Path) -> Path:
    """Two configurations of two folds with two cases each, and what was decided."""
    for name, dice in (("2d", 0.4), ("3d_fullres", 0.8)):
        for fold in (0, 1):
            cases = [{"case": f"case_{fold}{k}", "mask": "x", "dice": [dice + 0.05 * k, None]} for k in (0, 1)]
            record = {
                "version": 1, "request": "x", "configuration": name, "fold": fold, "num_folds": 3,
                "targets": ["organ", "rare"], "epochs": 2, "train_s": 60.0, "seconds": 70.0, "cases": cases,
            }  # fmt: skip
            write_json(root / f"77_{name}" / f"fold_{fold}" / "done.json", record)
    (root / "77_2d" / "fold_2").mkdir()
    decision = {"version": 1, "task": "77", "members": [{"configuration": "3d_fullres", "folder": "../77_3d_fullres"}],
                "post_processing": {"foreground": False, "classes": ["organ"]},
                "scores": {"2d": 0.425, "3d_fullres": 0.825}, "command": "python scripts/inference.py"}  # fmt: skip
    write_json(root / "77_best" / "decision.json", decision)
    scores = {"best": "3d_fullres", "dice": {"3d_fullres": {"mean": 0.825, "organ": 0.825}},
              "dice_after_post_processing": {"mean": 0.85}}  # fmt: skip
    write_json(root / "77_best" / "scores.json", scores)
    write_json(root / "77_cross_validation.json", {})
    return root


def write_doubt(folder: Path, case: str, score: float, doubtful: bool | None, *remarks: str) -> None:
    """What is said of a predicted scan, beside its mask."""
    said = Certainty(members=2, voxels=(1.0,), confidence=(0.5,), overlap=(0.5,), agreement=(0.625,))
    record = DoubtRecord(
        version=1, case=case, score=score, calibrated=doubtful is not None, doubtful=doubtful, words=f"words of {case}",
        remarks=remarks, targets=("organ",), certainties={"2d": said},
    )  # fmt: skip
    write_record(record, folder / f"{case}.doubt.json")


def viewer_titles(text: str) -> list[str]:
    """What the viewer of a page calls its cases."""
    found = re.search(r'<select id="view-case">(.*?)</select>', text)
    return re.findall(r"<option[^>]*>([^<]*)</option>", found[1]) if found else []
