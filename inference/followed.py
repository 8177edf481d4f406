"""A plan for another data set to follow: of nnU-Net v2, of this program, or of a model of either."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_preprocessing.planning.follow import FollowedPlan
from inference.nnunet_v2.plans import NORMALIZATIONS, read_plan, resolve
from inference.nnunet_v2.sources import PLANS, FolderFiles, fold_of_model, model_folders
from utils.configurations import FIRST_STAGE
from utils.errors import UserError
from utils.files import from_dict, read_json
from utils.schema import Plan

PLACEHOLDER = {"mean": 0.0, "std": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 1.0}
"""Of CT channels without statistics, until the data set has given its own."""
FLAG = "--plan"


def read_followed(path: Path, channels: Sequence[str], *, dim: int, lowres: bool = False) -> FollowedPlan:
    """The plan that `--plan PATH` means.

    Args:
        path: `nnUNetPlans.json`, a `plan.json` or a folder with one, or a model as `train --ckpt_path` takes it.
        channels: names of the channels of the data set that is to follow.
        dim: 2 or 3; of nnU-Net's configurations it takes `2d` or `3d_fullres`.
        lowres: take the low-resolution stage, `3d_lowres`.

    Raises:
        UserError: nothing there, not readable, a plan of another dimension or stage, or of another number of channels.
    """
    if not path.exists():
        raise UserError(f"{FLAG} must be auto, preset, or an existing plan or model, got {path}")
    if (path / "plan.json").is_file():
        path = path / "plan.json"
    inside = fold_of_model(path) if path.is_dir() else None
    folders = model_folders(path) if inside is None else [inside[0]]
    if folders:
        content, *others = [FolderFiles(folder).read_json(PLANS) for folder in folders]
        if any(other != content for other in others):
            raise UserError(f"{FLAG} {path} holds models of several plans; give the folder of one of them")
    elif path.suffix == ".json":
        content = read_json(dict, path)
    else:
        return _of_our_plan(_of_model(path), path, channels, dim=dim, lowres=lowres)
    if isinstance(content, dict) and "configurations" in content:
        return _of_nnunet(content, path, channels, dim=dim, lowres=lowres)
    return _of_our_plan(from_dict(Plan, content, source=str(path)), path, channels, dim=dim, lowres=lowres)


def _of_model(path: Path) -> Plan:
    # torch is needed for models only.
    from inference.start import read_start

    plan = read_start(path)[0].plan
    if plan is None:
        raise UserError(f"{FLAG} {path} is a checkpoint of the NVIDIA reference, which holds no plan")
    return plan


def _of_nnunet(plans: dict[str, Any], path: Path, channels: Sequence[str], *, dim: int, lowres: bool) -> FollowedPlan:
    name = "2d" if dim == 2 else FIRST_STAGE if lowres else "3d_fullres"
    key = "foreground_intensity_properties_per_channel"
    known = plans.get(key) or plans.get("foreground_intensity_properties_by_modality") or {}
    if not isinstance(known, dict):
        raise UserError(f"{path}: {key} must be a mapping")
    schemes = resolve(plans, name, str(path)).get("normalization_schemes") or ()
    lacking = [k for k, scheme in enumerate(schemes) if NORMALIZATIONS.get(scheme) == "ct" and str(k) not in known]
    statistics = known | {str(k): PLACEHOLDER for k in lacking}
    # Names and labels are those of the data set that follows.
    dataset = {"channel_names": dict(zip(map(str, range(len(channels))), channels)), "labels": {"background": 0, "": 1}}
    plan = read_plan(plans | {key: statistics}, dataset, name, mirror_axes=None, source=str(path))
    return _followed(plan, f"{path}, configuration {name}", dim=dim, lowres=lowres, lacking=tuple(lacking))


def _of_our_plan(plan: Plan, path: Path, channels: Sequence[str], *, dim: int, lowres: bool) -> FollowedPlan:
    here = f"--dim {dim}{' --lowres' if lowres else ''}"
    is_lowres = plan.stage.name == FIRST_STAGE
    if (plan.stage.dim, is_lowres) != (dim, lowres):
        there = f"--dim {plan.stage.dim}{' --lowres' if is_lowres else ''}"
        raise UserError(f"{FLAG} {path} is of {there}, and this is {here}")
    if plan.previous_stage is not None:
        raise UserError(f"{FLAG} {path} is of a cascade's second stage; give the plan of --dim 3, then use --cascade")
    if len(plan.channels) != len(channels):
        raise UserError(
            f"{FLAG} {path} is for {len(plan.channels)} channels ({', '.join(c.name for c in plan.channels)}), and "
            f"this data set has {len(channels)}: {', '.join(channels)}"
        )
    return _followed(plan, str(path), dim=dim, lowres=lowres)


def _followed(plan: Plan, source: str, *, dim: int, lowres: bool, lacking: tuple[int, ...] = ()) -> FollowedPlan:
    stage = dataclasses.replace(plan.stage, name=FIRST_STAGE if lowres else f"{dim}d")
    return FollowedPlan(plan=dataclasses.replace(plan, stage=stage), source=source, lacking=lacking)
