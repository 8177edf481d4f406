"""A stored plan and stored folds, adapted to what the flags of one run ask for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_preprocessing.dataset import make_splits
from data_preprocessing.labels import with_brats_regions
from data_preprocessing.topology import DEFAULT_MIN_FMAP, level_filters, plan_topology
from utils.config import ModelConfig
from utils.files import read_json
from utils.schema import Fold, Plan, Splits


def adapt_plan(plan: Plan, model: ModelConfig, *, batch_size: int | None, brats: bool) -> Plan:
    """The plan with another depth, smallest feature map, filters or batch size, or with the BraTS regions.

    Raises:
        UserError: `brats` with labels in which the three tumour parts cannot be told, or filters that do not match
            the number of levels.
    """
    stage, labels = plan.stage, plan.labels
    if (model.depth, model.min_fmap) != (None, None):
        topology = plan_topology(
            stage.patch_size,
            stage.spacing_mm,
            max_depth=model.depth,
            min_fmap=model.min_fmap or DEFAULT_MIN_FMAP,
            filters=model.filters,
            rule="reference" if plan.origin == "preset" else "nnunet",
        )
        stage = dataclasses.replace(stage, strides=topology.strides, kernels=topology.kernels, filters=topology.filters)
    elif model.filters is not None:
        filters = level_filters(model.filters, len(stage.strides), stage.dim)
        stage = dataclasses.replace(stage, filters=filters)
    if batch_size is not None:
        stage = dataclasses.replace(stage, batch_size=batch_size)
    if brats and not labels.regions:
        labels = with_brats_regions(labels)
    return dataclasses.replace(plan, stage=stage, labels=labels)


def read_fold(folder: Path, fold: int, nfolds: int) -> Fold:
    """The cases of one fold: those of `splits.json` where it has `nfolds` folds, else dealt anew by the same rule."""
    splits = read_json(Splits, folder / "splits.json")
    if len(splits.folds) != nfolds:
        splits = make_splits([case for each in splits.folds for case in each.val], nfolds)
    return splits.folds[fold]
