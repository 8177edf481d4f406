"""A model that was trained here as a folder of nnU-Net v2, which nnUNetv2_predict_from_modelfolder predicts with.

What has no equivalent there is refused by its name. nnU-Net predicts by its own rules; where the plan's differ, what
becomes of that is said.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.configuration import ConfigurationModel
from inference.model import Model, configuration_name
from inference.nnunet_v2.architecture import EPSILON, PACKAGE, PLAIN, RESIDUAL, SLOPE
from inference.nnunet_v2.plans import NORMALIZATIONS, RESAMPLING, Z_SCORE
from inference.nnunet_v2.sources import CHECKPOINTS, DATASET, PLANS
from inference.nnunet_v2.weights import their_name
from utils.errors import list_problems
from utils.files import write_atomically, write_json
from utils.rules import NNUNET_V2
from utils.schema import LabelScheme, Plan, StagePlan
from utils.temporary import temporary_folder

PLANS_NAME, DATASET_NAME = "nnUNetPlans", "Dataset{:03d}_Exported"
SCHEMES = {scheme: (name, False) for name, scheme in NORMALIZATIONS.items()}
SCHEMES |= {"zscore_crop": (Z_SCORE, False), "zscore_mask": (Z_SCORE, True), "zscore": (Z_SCORE, True)}
"""nnU-Net's class for each scheme, and whether it looks at the mask of what is not zero."""


def export_folder(target: Path, models: Model) -> tuple[Path, list[str]]:
    """Write a model into `target`, whole or not at all: a folder for each stage.

    Returns:
        The folder to predict with, and what nnU-Net will do differently.

    Raises:
        UserError: it has something without an equivalent there; all of it is listed.
    """
    [bundle] = models.configurations if len(models.configurations) == 1 else [None]
    stages = [stage for stage in (bundle, None if bundle is None else bundle.previous) if stage is not None]
    problems = [problem for stage in stages for problem in _problems(stage)]
    if bundle is None:
        problems.append(f"an ensemble of {', '.join(models.names)}: export each configuration by itself")
    if not models.post_processing.does_nothing:
        problems.append("post-processing: export the checkpoints by themselves (nnU-Net keeps it in a file of its own)")
    if len({(stage.plan.axes, stage.plan.orientation, stage.plan.channels) for stage in stages}) > 1:
        problems.append("stages of a cascade that turn or normalise scans differently")
    if problems or bundle is None:
        raise list_problems(
            f"{models.source} has what nnU-Net v2 has no equivalent of:", list(dict.fromkeys(problems)),
            advice="It predicts here: inference.py --model.",
        )  # fmt: skip
    plans, dataset = make_plans(stages), make_dataset(bundle.plan)
    with temporary_folder(target) as temporary:
        for stage in stages:
            _write_stage(temporary / _folder_name(stage), stage, plans, dataset)
        temporary.rename(target)
    return target / _folder_name(bundle), list(dict.fromkeys(note for stage in stages for note in _notes(stage)))


def _folder_name(bundle: ConfigurationModel) -> str:
    return f"{_trainer(bundle)}__{PLANS_NAME}__{configuration_name(bundle.plan)}"


def _mirror_axes(bundle: ConfigurationModel) -> tuple[int, ...] | None:
    axes = tuple(range(bundle.plan.stage.dim)) if bundle.plan.mirror_axes is None else bundle.plan.mirror_axes
    return axes if bundle.mirrored and axes else None


def _trainer(bundle: ConfigurationModel) -> str:
    return "nnUNetTrainer" if bundle.mirrored else "nnUNetTrainerNoMirroring"


def _problems(bundle: ConfigurationModel) -> Iterator[str]:
    plan, stage, model = bundle.plan, bundle.plan.stage, bundle.model
    if model.norm != "instance":
        yield f"--norm {model.norm}: its U-Nets normalise each instance"
    if model.res_block:
        yield "--res_block: its residual blocks pool where they stride (--planner resenc_m has those)"
    if plan.mask_channel:
        yield "--ohe, the channel that marks what is not zero"
    if stage.step_kernels != stage.kernels[:-1]:
        yield "decoder steps that convolve with the kernel of the level below (plans of this program's presets)"
    if not plan.normalize_first:
        yield "a plan that resamples before it normalises (plans of earlier versions)"
    labels = plan.labels
    if not labels.regions and labels.values != tuple(range(labels.num_classes)):
        yield f"label values {', '.join(map(str, labels.values))}: its classes are numbered 0, 1, 2, ..."
    if labels.ignore_value not in (None, labels.values[-1] + 1):
        yield f"the ignored value {labels.ignore_value}: there it is the one after the last class"
    if labels.regions and all(len(region.classes) == 1 for region in labels.regions):
        yield "regions of one class each"


def _notes(bundle: ConfigurationModel) -> Iterator[str]:
    if any(channel.scheme == "zscore" for channel in bundle.plan.channels):
        yield (
            "a z-score over the non-zero voxels of each channel becomes one over those that any channel has, holes "
            "filled, and the zeros around are resampled with them"
        )
    rules = dataclasses.asdict(bundle.plan.rules)
    differing = [name for name, value in dataclasses.asdict(NNUNET_V2).items() if rules[name] != value]
    if differing:
        yield f"it predicts by its own rules: {', '.join(f'{n} = {getattr(NNUNET_V2, n)}' for n in differing)}"


def make_plans(stages: list[ConfigurationModel]) -> dict[str, Any]:
    """Content of plans.json for a model, or both stages of a cascade, the second one first."""
    plan = stages[0].plan
    backward = [plan.axes.index(axis) for axis in range(3)]
    return {
        "dataset_name": _dataset_name(plan), "plans_name": PLANS_NAME,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, 1, 1],
        "image_reader_writer": "SimpleITKIO" if plan.orientation == "stored" else "NibabelIOWithReorient",
        "transpose_forward": list(plan.axes), "transpose_backward": backward,
        "configurations": {configuration_name(stage.plan): _configuration(stage, stages) for stage in stages},
        "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(index): {
                "mean": channel.mean or 0.0, "std": channel.std or 1.0, "median": channel.mean or 0.0,
                "min": channel.lower or 0.0, "max": channel.upper or 1.0,
                "percentile_00_5": channel.lower or 0.0, "percentile_99_5": channel.upper or 1.0,
            }
            for index, channel in enumerate(plan.channels)
        },
    }  # fmt: skip


def _dataset_name(plan: Plan) -> str:
    if re.fullmatch(r"Dataset\d{3}_\w+", plan.dataset):
        return plan.dataset
    return DATASET_NAME.format(int(plan.task) if plan.task.isdecimal() else 0)


def _configuration(bundle: ConfigurationModel, stages: list[ConfigurationModel]) -> dict[str, Any]:
    plan, stage, name = bundle.plan, bundle.plan.stage, configuration_name(bundle.plan)
    schemes = [SCHEMES[channel.scheme] for channel in plan.channels]
    resampling: dict[str, Any] = {}
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        resampling[f"resampling_fn_{kind}"] = RESAMPLING
        options = {"is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        resampling[f"resampling_fn_{kind}_kwargs"] = options
    links: dict[str, Any] = {}
    if bundle.previous is not None:
        links["previous_stage"] = configuration_name(bundle.previous.plan)
    elif len(stages) > 1:
        links["next_stage"] = configuration_name(stages[0].plan)
    return {
        "data_identifier": f"{PLANS_NAME}_{name}", "preprocessor_name": "DefaultPreprocessor",
        "batch_size": stage.batch_size, "patch_size": list(stage.patch_size),
        "median_image_size_in_voxels": list(stage.patch_size), "spacing": list(stage.spacing_mm),
        "normalization_schemes": [scheme for scheme, _ in schemes], "use_mask_for_norm": [mask for _, mask in schemes],
        **resampling, "architecture": _architecture(stage, bundle.model.negative_slope),
        "batch_dice": stage.batch_dice, **links,
    }  # fmt: skip


def _architecture(stage: StagePlan, negative_slope: float) -> dict[str, Any]:
    residual, layer = stage.block == "residual", f"torch.nn.modules.{{}}{stage.dim}d"
    slope = {} if negative_slope == SLOPE else {"negative_slope": negative_slope}
    settings = {
        "n_stages": len(stage.filters), "features_per_stage": list(stage.filters), "conv_op": layer.format("conv.Conv"),
        "kernel_sizes": [list(kernel) for kernel in stage.kernels],
        "strides": [list(stride) for stride in stage.strides],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": list(stage.level_convs),
        "n_conv_per_stage_decoder": list(reversed(stage.step_convs)), "conv_bias": True,
        "norm_op": layer.format("instancenorm.InstanceNorm"), "norm_op_kwargs": {"eps": EPSILON, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True, **slope},
    }  # fmt: skip
    return {
        "network_class_name": f"{PACKAGE}.unet.{RESIDUAL if residual else PLAIN}", "arch_kwargs": settings,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip


def make_dataset(plan: Plan) -> dict[str, Any]:
    """Content of dataset.json."""
    labels: LabelScheme = plan.labels
    entries: dict[str, Any] = {"background": 0}
    more: dict[str, Any] = {}
    if labels.regions:
        entries |= {region.name: [labels.values[k] for k in region.classes] for region in labels.regions}
        more["regions_class_order"] = [labels.values[region.write_class] for region in labels.regions]
    else:
        entries |= dict(zip(labels.names[1:], labels.values[1:]))
    if labels.ignore_value is not None:
        entries["ignore"] = labels.ignore_value
    names = {str(index): channel.name for index, channel in enumerate(plan.channels)}
    return {"channel_names": names, "labels": entries, "numTraining": 0, "file_ending": ".nii.gz", **more}


def _write_stage(
    folder: Path, bundle: ConfigurationModel, plans: Mapping[str, Any], dataset: Mapping[str, Any]
) -> None:
    name = configuration_name(bundle.plan)
    for number, fold in enumerate(bundle.folds):
        place = folder / f"fold_{number if fold.fold is None else fold.fold}"
        place.mkdir(parents=True)
        content = {
            "network_weights": export_weights(fold.state_dict, bundle.plan),
            "optimizer_state": None, "grad_scaler_state": None, "logging": {}, "_best_ema": None, "current_epoch": 0,
            "init_args": {"plans": plans, "configuration": name, "fold": fold.fold or 0, "dataset_json": dataset},
            "trainer_name": _trainer(bundle), "inference_allowed_mirroring_axes": _mirror_axes(bundle),
        }  # fmt: skip
        write_atomically(place / CHECKPOINTS["last"], functools.partial(torch.save, content))
    write_json(dict(plans), folder / PLANS)
    write_json(dict(dataset), folder / DATASET)


def export_weights(weights: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """A network's parameters by all of their names there; what it has besides, and does not need, is 0."""
    stage, outputs = plan.stage, plan.labels.num_outputs
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith("deep_supervision_heads."):
            continue
        there = their_name(name, stage)
        found[there] = value.detach().cpu().float().contiguous()
        if there.endswith(".conv.weight") and ".skip." not in there:
            found[there.removesuffix("weight") + "bias"] = torch.zeros(len(value))
    ones = (1,) * stage.dim
    for step, features in enumerate(reversed(stage.filters[1:-1])):
        found[f"decoder.seg_layers.{step}.weight"] = torch.zeros(outputs, features, *ones)
        found[f"decoder.seg_layers.{step}.bias"] = torch.zeros(outputs)
    for name, value in list(found.items()):
        # Each layer once more in a sequence; the activation in there has no parameters.
        block, kind, end = name.rpartition(".")[0].rpartition(".")[0], name.split(".")[-2], name.split(".")[-1]
        if kind in ("conv", "norm"):
            found[f"{block}.all_modules.{('conv', 'norm').index(kind)}.{end}"] = value
    found |= {f"decoder.{name}": value for name, value in found.items() if name.startswith("encoder.")}
    return found
