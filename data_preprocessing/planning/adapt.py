"""A stored plan and stored folds, adapted to what the flags of one run ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from data_preprocessing.dataset.description_file import make_splits
from data_preprocessing.dataset.label_schemes import with_brats_regions
from data_preprocessing.planning.planners import fit_levels
from data_preprocessing.planning.splits import check_folds, read_splits, split_folds
from data_preprocessing.planning.topology import DEFAULT_MIN_FMAP, level_filters, plan_topology
from data_preprocessing.shards import list_cases
from utils.config import DEFAULT_FOLDS, FoldChoice, ModelConfig
from utils.errors import UserError
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
        num_levels = len(topology.strides)
        stage = dataclasses.replace(
            stage,
            strides=topology.strides,
            kernels=topology.kernels,
            filters=topology.filters,
            decoder_kernels=topology.kernels[:-1] if stage.decoder_kernels else (),
            encoder_convs=fit_levels(stage.encoder_convs, num_levels),
            decoder_convs=fit_levels(stage.decoder_convs, num_levels - 1),
        )
    elif model.filters is not None:
        filters = level_filters(model.filters, len(stage.strides), stage.dim)
        stage = dataclasses.replace(stage, filters=filters)
    if batch_size is not None:
        stage = dataclasses.replace(stage, batch_size=batch_size)
    if brats and not labels.regions:
        labels = with_brats_regions(labels)
    return dataclasses.replace(plan, stage=stage, labels=labels)


def mirror_along(plan: Plan, axes: Sequence[str]) -> Plan:
    """The plan with flips along some axes of a scan, S, A or R; another word is no axis, and all three change nothing.

    A 2D patch is flipped along those of its plane.

    Raises:
        UserError: some axes, for a plan that turns no scan: its patches have other axes in each.
    """
    if set("SAR") <= set(axes):
        return plan
    if plan.orientation == "stored" and set("SAR") & set(axes):
        raise UserError(
            f"--mirror_axes {' '.join(axes)}: patches of this plan lie as their scans are stored, and S, A and R may "
            "be other axes in each file; where all files are alike, write the axes of the patch, such as "
            '"mirror_axes": [0, 1], into plan.json instead'
        )
    in_patch = plan.axes[3 - plan.stage.dim :]
    return dataclasses.replace(
        plan, mirror_axes=tuple(index for index, axis in enumerate(in_patch) if "SAR"[axis] in axes)
    )  # fmt: skip


def read_fold(
    folder: Path,
    fold: FoldChoice,
    *,
    nfolds: int | None = None,
    splits: Path | None = None,
    group_by: str | None = None,
) -> Fold:
    """The cases of one fold of a shard folder; see `read_folds`. Of `all` every case is trained on.

    Then those of the first fold are validated on, though they are trained on as well: an epoch costs what it costs in a
    fold, and something says whether a training goes wrong. nnU-Net v2 validates on all cases that it trains on.

    Raises:
        UserError: there is no such fold, or the folds are faulty or cannot be made.
    """
    folds = read_folds(folder, nfolds=nfolds, splits=splits, group_by=group_by)
    if fold == "all":
        everyone = sorted({case for each in folds for case in (*each.train, *each.val)})
        return Fold(train=tuple(everyone), val=folds[0].val)
    if fold >= len(folds):
        raise UserError(f"--fold must lie in 0..{len(folds) - 1}, got {fold}: there are {len(folds)} folds")
    return folds[fold]


def read_folds(
    folder: Path, *, nfolds: int | None = None, splits: Path | None = None, group_by: str | None = None
) -> tuple[Fold, ...]:
    """All folds of a shard folder.

    These are the folds of `splits`, or those that `group_by` makes, or those of `splits.json`. Another number of folds
    than there is made anew by the plain rule, but only if `splits.json` was.

    Raises:
        UserError: the folds are faulty or cannot be made.
    """
    stored = read_json(Splits, folder / "splits.json")
    cases = sorted({case for each in stored.folds for case in (*each.train, *each.val)})
    if splits is not None:
        # The stored folds may leave cases out.
        chosen = read_splits(splits, {*cases, *list_cases(folder)})
    elif group_by is not None:
        chosen = split_folds(cases, nfolds or DEFAULT_FOLDS, group_by)
    elif nfolds in (None, len(stored.folds)):
        check_folds(stored, cases, source=str(folder / "splits.json"))
        chosen = stored
    elif stored != make_splits(cases, len(stored.folds)):
        raise UserError(
            f"{folder / 'splits.json'} holds {len(stored.folds)} folds that are not split by the plain rule; leave out "
            f"--nfolds {nfolds}, or say with --group_by or --splits how {nfolds} are made"
        )
    else:
        chosen = make_splits(cases, nfolds)
    return chosen.folds
