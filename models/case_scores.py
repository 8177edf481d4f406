"""Scores of single validation cases, of all processes: what the page about a training shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.nn_unet import NNUnet
from utils.figures import EpochRecord
from utils.files import write_json
from utils.schema import FORMAT_VERSION

CASE_SCORES = "validation.json"
"""Name of the file beside a training's log."""


def gather_counts(module: NNUnet, cases: Sequence[str]) -> dict[str, list[list[int]]]:
    """Case -> true positives, false positives and false negatives of each target; every process has to ask for it.

    Args:
        module: that has validated.
        cases: all validation cases, in one order in all processes, of which each has seen some.
    """
    shape = (len(module.plan.labels.target_names), 3)
    none = torch.zeros(shape, dtype=torch.int64)
    own: Mapping[str, Tensor] = module.case_counts
    counts = module.reduce_sum(torch.stack([own.get(case, none) for case in cases])).cpu()
    seen = module.reduce_sum(torch.tensor([case in own for case in cases], dtype=torch.int64)).tolist()
    return {case: rows for case, rows, there in zip(cases, counts.tolist(), seen) if there}


def is_best(record: EpochRecord, history: Sequence[EpochRecord]) -> bool:
    """Whether no epoch before has a higher mean Dice."""
    dice = [each.mean_dice for each in history if each.mean_dice is not None and each.mean_dice == each.mean_dice]
    return record.mean_dice is not None and record.mean_dice >= max(dice, default=0.0)


def write_case_scores(
    path: Path, record: EpochRecord, targets: Sequence[str], counts: Mapping[str, list[list[int]]]
) -> None:
    """Write the counts of an epoch, counted from 0, whole or not at all."""
    content = {"version": FORMAT_VERSION, "epoch": record.epoch, "mean_dice": record.mean_dice}
    write_json(content | {"targets": list(targets), "cases": dict(counts)}, path)
