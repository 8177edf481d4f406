"""An nnU-Net v2 model as a `Model`: folds, first stage and all; it predicts where it lies, without conversion."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from inference.configuration import FLAG, ConfigurationModel, FoldWeights
from inference.model import Model, check_fit, single_model
from inference.nnunet_v2.architecture import read_architecture
from inference.nnunet_v2.checkpoint import TrainedNetwork, read_checkpoint
from inference.nnunet_v2.plans import read_plan, resolve
from inference.nnunet_v2.pretrained import is_pretrained, pretrained_start
from inference.nnunet_v2.sources import (
    CHECKPOINT_SUFFIX,
    CHECKPOINTS,
    DATASET,
    PLANS,
    FolderFiles,
    ModelFiles,
    ZipFiles,
    fold_of_model,
    is_model_folder,
    model_folders,
    zip_folders,
)
from inference.nnunet_v2.weights import has_batch_norm, import_weights
from models.checkpoint import CheckpointContents
from models.unet import build_network
from utils.config import ModelConfig
from utils.errors import UserError
from utils.schema import Plan

OTHER_NETWORKS = re.compile(r"primus|mednext|swin|mamba|unetr|transformer|kan(?![a-z])", re.IGNORECASE)
"""Trainers that bring a network of their own along, of which the plans say nothing."""


def is_nnunet_v2(path: Path) -> bool:
    """Whether it is a model that nnU-Net v2 trained: a folder, a zip, or a fold or checkpoint of one."""
    if path.is_file():
        return path.suffix == CHECKPOINT_SUFFIX or bool(zip_folders(path))
    return bool(model_folders(path)) or (path.is_dir() and fold_of_model(path) is not None)


def nnunet_model(path: Path, folds: Sequence[int] | None = None, *, allow_unfinished: bool = False) -> Model:
    """The model of a folder `<trainer>__<plans>__<configuration>`, of a folder above it, or of an exported zip.

    A folder `fold_X`, or the `checkpoint_final.pth` in it, is that fold alone. A cascade's first stage is taken from
    the folder beside it.

    Raises:
        UserError: several models, no such fold, unfinished trainings, something that cannot be read here, or files
            that do not belong together.
    """
    models = single_model(_bundle(_only_model(path, FLAG), folds, allow_unfinished=allow_unfinished))
    check_fit(models)
    return models


def nnunet_start(path: Path, plan: Plan | None = None) -> CheckpointContents:
    """The network that a training may start from, with the heads of deep supervision.

    Args:
        path: a `checkpoint_final.pth`, whose plans lie in the folder above its own, or else in itself; or a model as
            `nnunet_model` takes it, of which the first fold counts.
        plan: of what is to be trained; an encoder of nnssl needs it.

    Raises:
        UserError: as `nnunet_model`, or (see `pretrained_start`) an encoder that does not fit.
    """
    if path.is_file() and not zip_folders(path):
        network, fold = read_checkpoint(path, str(path)), path
        if is_pretrained(network):
            if plan is None:
                raise UserError(f"{path} is an encoder that nnssl trained without labels; it holds no plan to follow")
            return pretrained_start(network, path, plan.stage, _parameter_names(plan, ModelConfig()))
        beside = FolderFiles(path.resolve().parent.parent)
        if is_model_folder(beside.path):
            plans, dataset, source = *_descriptions(beside), f"{beside.name} ({PLANS})"
        else:
            plans, dataset, source = *_own_descriptions(network, path), f"the plans in {path}"
        _require_readable(network, str(path))
    else:
        files = _only_model(path, "--ckpt_path")
        numbered = sorted(map(_number, files.folds().keys() - {"fold_all"}))
        [(name, network), *_] = _networks(files, numbered[:1] or None, allow_unfinished=True)
        fold, (plans, dataset), source = Path(files.name) / name, _descriptions(files), f"{files.name} ({PLANS})"
    theirs, model = _described(network, plans, dataset, source)
    # Whichever levels a training supervises; nnU-Net has a head for each.
    most_heads = len(theirs.stage.filters) - 2
    supervised = dataclasses.replace(model, deep_supervision=most_heads > 0, deep_supr_num=most_heads)
    return CheckpointContents(
        path=fold, plan=theirs, model=model,
        state_dict=import_weights(network.weights, _parameter_names(theirs, supervised), theirs.stage, str(fold)),
    )  # fmt: skip


def _only_model(path: Path, flag: str) -> ModelFiles:
    candidates: list[ModelFiles]
    inside = fold_of_model(path)
    if path.suffix == CHECKPOINT_SUFFIX and (inside is None or path.name != CHECKPOINTS["last"]):
        advice = "put it back into a fold of its model folder" if inside is None else f"give the fold, {path.parent}"
        raise UserError(f"{flag} {path} is a checkpoint of nnU-Net v2 by itself, and a model is wanted; {advice}")
    if inside is not None:
        candidates = [FolderFiles(inside[0], only=inside[1])]
    elif path.is_file():
        candidates = [ZipFiles(path, folder) for folder in zip_folders(path)]
    else:
        candidates = [FolderFiles(folder) for folder in model_folders(path)]
    bundles = _without_first_stages(candidates)
    if len(bundles) > 1:
        names = [_short(files) for files in bundles]
        raise UserError(f"{flag} {path} holds several models: {', '.join(names)}; give the folder of one of them")
    return bundles[0]


def _short(files: ModelFiles) -> str:
    return files.folder.rstrip("/") if isinstance(files, ZipFiles) else Path(files.name).name


def _without_first_stages(candidates: Sequence[ModelFiles]) -> list[ModelFiles]:
    """All but those that only come before another one."""
    if len(candidates) == 1:
        return list(candidates)
    names = {_short(files): files for files in candidates}
    before = set()
    for name, files in names.items():
        configuration = name.rpartition("__")[2]
        plans = files.read_json(PLANS)
        previous = resolve(plans, configuration, files.name).get("previous_stage") if _knows(plans, name) else None
        if previous is not None:
            before.add(name.removesuffix(configuration) + previous)
    return [files for name, files in names.items() if name not in before]


def _knows(plans: Any, name: str) -> bool:
    return isinstance(plans, dict) and name.rpartition("__")[2] in plans.get("configurations", {})


def _bundle(files: ModelFiles, folds: Sequence[int] | None, *, allow_unfinished: bool) -> ConfigurationModel:
    plans, dataset = _descriptions(files)
    networks = _networks(files, folds, allow_unfinished)
    first = networks[0][1]
    _require_alike(files, networks)
    source = f"{files.name} ({PLANS})"
    plan, model = _described(first, plans, dataset, source)
    names = _parameter_names(plan, model)
    weights = tuple(
        FoldWeights(
            name=fold, fold=None if fold == "fold_all" else int(fold.removeprefix("fold_")),
            state_dict=import_weights(network.weights, names, plan.stage, f"{files.name}, {fold}"),
        )
        for fold, network in networks
    )  # fmt: skip
    bundle = ConfigurationModel(source=Path(files.name), plan=plan, model=model, folds=weights)
    previous = resolve(plans, first.configuration, source).get("previous_stage")
    if previous is None:
        return bundle
    stage = files.sibling(previous)
    if stage is None:
        raise UserError(
            f"{files.name} is the second stage of a cascade, and the folder of its first stage, {previous}, does not "
            "lie beside it; copy it there"
        )
    return dataclasses.replace(bundle, previous=_bundle(stage, None, allow_unfinished=allow_unfinished))


def _descriptions(files: ModelFiles) -> tuple[dict[str, Any], dict[str, Any]]:
    """What lies in plans.json and dataset.json."""
    plans, dataset = files.read_json(PLANS), files.read_json(DATASET)
    if not isinstance(plans, dict) or not isinstance(dataset, dict):
        raise UserError(f"{files.name}: {PLANS} and {DATASET} must hold mappings")
    return plans, dataset


def _own_descriptions(network: TrainedNetwork, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same as a checkpoint has it inside."""
    started = network.content.get("init_args") or {}
    plans, dataset = started.get("plans"), started.get("dataset_json")
    if not (isinstance(plans, dict) and plans and isinstance(dataset, dict) and dataset):
        raise UserError(f"{path} holds no plans; put it back into its model folder, beside {PLANS}")
    return plans, dataset


def _described(
    network: TrainedNetwork, plans: dict[str, Any], dataset: dict[str, Any], source: str
) -> tuple[Plan, ModelConfig]:
    plan = read_plan(plans, dataset, network.configuration, mirror_axes=network.mirror_axes, source=source)
    config = resolve(plans, network.configuration, source)
    return plan, ModelConfig(
        norm="batch" if has_batch_norm(network.weights) else "instance",
        negative_slope=read_architecture(config, source).negative_slope,
    )


def _parameter_names(plan: Plan, model: ModelConfig) -> list[str]:
    with torch.device("meta"):
        network = build_network(
            plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=model
        )  # fmt: skip
    return list(network.state_dict())


def _networks(
    files: ModelFiles, folds: Sequence[int] | None, allow_unfinished: bool
) -> list[tuple[str, TrainedNetwork]]:
    """Name and network of each fold that is wanted: those with a number, or `fold_all` where there are none."""
    there = {fold: names & set(CHECKPOINTS.values()) for fold, names in files.folds().items()}
    numbered = sorted((fold for fold, names in there.items() if names and fold != "fold_all"), key=_number)
    if folds is not None:
        wanted = [f"fold_{fold}" for fold in sorted(set(folds))]
        missing = [fold for fold in wanted if not there.get(fold)]
        if missing or not wanted:
            known = ", ".join(numbered) or "none with a number"
            raise UserError(f"--folds: {files.name} has no {', '.join(missing) or 'fold to take'}; it has {known}")
    else:
        wanted = numbered or [fold for fold, names in there.items() if names]
        chosen = isinstance(files, FolderFiles) and files.only is not None
        gaps = [] if chosen else [f"fold_{n}" for n in range(_highest(numbered)) if f"fold_{n}" not in numbered]
        if numbered and gaps:
            print(f"warning: {FLAG} {files.name} has no {', '.join(gaps)}; the others predict", file=sys.stderr)
    if not wanted:
        raise UserError(
            f"{files.name} has no checkpoint: there is no fold_0/{CHECKPOINTS['last']} or like it; copy the folds, too"
        )
    names = {fold: CHECKPOINTS["last"] for fold in wanted}
    unfinished = [fold for fold in wanted if CHECKPOINTS["last"] not in there[fold]]
    if unfinished and not allow_unfinished:
        raise UserError(
            f"{files.name}: {', '.join(unfinished)} holds {CHECKPOINTS['best']} and no {CHECKPOINTS['last']}, so its "
            "training did not end; --allow_unfinished takes it as it is"
        )
    names |= {fold: CHECKPOINTS["best"] for fold in unfinished}
    networks = []
    for fold, name in names.items():
        with files.checkpoint(fold, name) as file:
            networks.append((fold, read_checkpoint(file, f"{files.name}, {fold}/{name}")))
    return networks


def _highest(folds: Sequence[str]) -> int:
    return max(map(_number, folds), default=0)


def _number(fold: str) -> int:
    return int(fold.removeprefix("fold_"))


def _require_alike(files: ModelFiles, networks: Sequence[tuple[str, TrainedNetwork]]) -> None:
    first_fold, first = networks[0]
    for fold, network in networks:
        _require_readable(network, f"{files.name}, {fold}")
        if (network.configuration, network.mirror_axes) != (first.configuration, first.mirror_axes):
            raise UserError(
                f"{files.name}: {first_fold} and {fold} were trained differently ({first.configuration}, flips along "
                f"{first.mirror_axes}; {network.configuration}, {network.mirror_axes}) and make no ensemble"
            )


def _require_readable(network: TrainedNetwork, source: str) -> None:
    if OTHER_NETWORKS.search(network.trainer):
        raise UserError(
            f"{source}: {network.trainer} trained a network of its own, which cannot be read; U-Nets, plain and with "
            "residual encoders, can"
        )
    if not network.configuration:
        raise UserError(f"{source}: it does not say which configuration was trained")
