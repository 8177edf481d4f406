"""A plan of this program in nnU-Net v2's own words: plans.json, dataset.json, a network with the same weights.

Only the standard library is imported on top; torch and nnunetv2 come in where a function needs them, in the peers' own
environment. `plan` is the content of a plan.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATASET, PLANS, CONFIGURATION, TRAINER = "Dataset004_Compare", "nnUNetPlans", "3d_fullres", "nnUNetTrainer"
NORMALIZATIONS = {
    "ct": "CTNormalization",
    "zscore": "ZScoreNormalization",
    "none": "NoNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
"""nnU-Net's class for each scheme of a plan."""
PREPROCESS = (
    "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as run; "
    "run() if __name__ == '__main__' else None"
)
PREDICT = (
    "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as run; "
    "run() if __name__ == '__main__' else None"
)
"""Programs of nnU-Net's commands nnUNetv2_plan_and_preprocess and nnUNetv2_predict, for `python -c`."""


def set_folders(root: Path, results: Path | None = None) -> dict[str, Path]:
    """Tell nnU-Net where its three folders are; before its first import."""
    folders = {name: root / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    folders["nnUNet_results"] = results or folders["nnUNet_results"]
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder)
    return folders


def read_plan(folder: str | Path) -> dict[str, Any]:
    """The plan.json of a folder."""
    return json.loads((Path(folder) / "plan.json").read_text(encoding="utf-8"))


def plans_json(plan: Mapping[str, Any], *, batch_size: int | None = None) -> dict[str, Any]:
    """nnU-Net's plans.json with one configuration, as its default planner would write it for this network."""
    stage, channels = plan["stage"], plan["channels"]
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": f"{PLANS}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size or stage["batch_size"],
        "patch_size": list(stage["patch_size"]),
        "median_image_size_in_voxels": list(stage["patch_size"]),
        "spacing": list(stage["spacing_mm"]),
        "normalization_schemes": [NORMALIZATIONS[channel["scheme"]] for channel in channels],
        "use_mask_for_norm": [False] * len(channels),
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": architecture(stage),
        "batch_dice": bool(stage["batch_dice"]),
    }
    return {
        "dataset_name": DATASET,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": list(stage["spacing_mm"]),
        "original_median_shape_after_transp": list(stage["patch_size"]),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(number): {
                "mean": channel["mean"] or 0.0, "std": channel["std"] or 1.0, "median": channel["mean"] or 0.0,
                "min": channel["lower"] or 0.0, "max": channel["upper"] or 1.0,
                "percentile_00_5": channel["lower"] or 0.0, "percentile_99_5": channel["upper"] or 1.0,
            }
            for number, channel in enumerate(channels)
        },
    }  # fmt: skip


def architecture(stage: Mapping[str, Any]) -> dict[str, Any]:
    """The stage's network as nnU-Net's PlainConvUNet."""
    levels = len(stage["filters"])
    arguments = {
        "n_stages": levels,
        "features_per_stage": list(stage["filters"]),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [list(kernel) for kernel in stage["kernels"]],
        "strides": [list(stride) for stride in stage["strides"]],
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def dataset_json(plan: Mapping[str, Any], num_cases: int) -> dict[str, Any]:
    """nnU-Net's dataset.json."""
    labels = plan["labels"]
    return {
        "channel_names": {str(number): channel["name"] for number, channel in enumerate(plan["channels"])},
        "labels": dict(zip(["background", *labels["names"][1:]], labels["values"])),
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
    }


def make_trainer(plan: Mapping[str, Any], *, batch_size: int, trainer: type | None = None) -> Any:
    """nnU-Net's trainer for this plan on the CPU, not initialised yet; see `set_folders`."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = plans_json(plan, batch_size=batch_size) | {"continue_training": False}
    kind = trainer or nnUNetTrainer
    return kind(plans, CONFIGURATION, 0, dataset_json(plan, 1), device=torch.device("cpu"))


def make_network(plan: Mapping[str, Any], weights: Path, *, deep_supervision: bool = False) -> Any:
    """nnU-Net's network with the weights of ours, which gives the same outputs."""
    import numpy as np
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    described = architecture(plan["stage"])
    network = get_network_from_plans(
        described["network_class_name"], described["arch_kwargs"], described["_kw_requires_import"],
        len(plan["channels"]), len(plan["labels"]["names"]), deep_supervision=deep_supervision,
    )  # fmt: skip
    copy_weights(network, np.load(weights, allow_pickle=False))
    return network.eval()


def copy_weights(network: Any, ours: Mapping[str, Any]) -> None:
    """Fill a PlainConvUNet with the arrays of a DynamicUNet; convolutions before a normalisation get no bias.

    Heads of deep supervision stay as they are.
    """
    import torch

    def fill(parameter: Any, name: str) -> None:
        value = torch.from_numpy(ours[name])
        assert parameter.shape == value.shape, (name, parameter.shape, value.shape)
        parameter.copy_(value)

    def fill_convolutions(blocks: Any, name: str) -> None:
        for number, block in enumerate(blocks, start=1):
            fill(block.conv.weight, f"{name}.conv{number}.conv.weight")
            block.conv.bias.zero_()
            fill(block.norm.weight, f"{name}.norm{number}.weight")
            fill(block.norm.bias, f"{name}.norm{number}.bias")

    levels = len(network.encoder.stages)
    names = ["input_block", *(f"downsamples.{level}" for level in range(levels - 2)), "bottleneck"]
    with torch.no_grad():
        for stage, name in zip(network.encoder.stages, names):
            fill_convolutions(stage[-1].convs, name)
        for level, (up, stage) in enumerate(zip(network.decoder.transpconvs, network.decoder.stages)):
            fill(up.weight, f"upsamples.{level}.transp_conv.conv.weight")
            fill(up.bias, f"upsamples.{level}.transp_conv.conv.bias")
            fill_convolutions(stage.convs, f"upsamples.{level}.conv_block")
        fill(network.decoder.seg_layers[-1].weight, "output_block.conv.conv.weight")
        fill(network.decoder.seg_layers[-1].bias, "output_block.conv.conv.bias")


def write_model(folder: Path, results: Path) -> None:
    """Write what nnUNetv2_predict looks for: one fold with the weights of weights.npz, for the plan of plan.json."""
    import torch

    plan = read_plan(folder)
    model = results / DATASET / f"{TRAINER}__{PLANS}__{CONFIGURATION}"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans_json(plan)), encoding="utf-8")
    (model / "dataset.json").write_text(json.dumps(dataset_json(plan, 1)), encoding="utf-8")
    contents = {
        "network_weights": make_network(plan, folder / "weights.npz").state_dict(),
        "trainer_name": TRAINER,
        "init_args": {"configuration": CONFIGURATION},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(contents, model / "fold_0" / "checkpoint_final.pth")


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), Path(sys.argv[2]))
