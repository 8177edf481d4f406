"""Run nnU-Net v2's own planners and write nnunet_plans.json, which the tests compare with.

pip install nnunetv2==2.8.1
PYTHONPATH=. python tests/data_preprocessing/record_nnunet_plans.py
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import sys
import tempfile
import types
from pathlib import Path

from tests.data_preprocessing.nnunet_scans import PLANNERS, SCANS, Scans, describe_stage

RECORD = Path(__file__).with_name("nnunet_plans.json")
NAME = "Dataset001_X"


def write_dataset(folder: Path, scans: Scans) -> None:
    """The files that a planner reads."""
    raw, preprocessed = folder / "raw" / NAME, folder / "preprocessed" / NAME
    for path in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        path.mkdir(parents=True, exist_ok=True)
    description = {
        "channel_names": {str(index): name for index, name in enumerate(scans.channels)},
        "labels": {str(value) if value else "background": value for value in range(scans.num_classes)},
        "numTraining": len(scans.spacings),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    fingerprint = {
        "spacings": scans.spacings,
        "shapes_after_crop": scans.shapes,
        "median_relative_size_after_cropping": scans.relative_size,
        "foreground_intensity_properties_per_channel": {},
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def make_plans(planner: str, scans: Scans) -> dict:
    """nnU-Net's plans of the data set that was written."""
    import torch

    module, name = PLANNERS[planner]
    kind = getattr(importlib.import_module(f"nnunetv2.experiment_planning.experiment_planners.{module}"), name)
    memory = {} if scans.gpu_memory_gb is None else {"gpu_memory_target_in_gb": scans.gpu_memory_gb}
    made = kind(NAME, **memory)
    made.determine_reader_writer = lambda: types.SimpleNamespace(__name__="SimpleITKIO")
    # Networks are built for their sizes only.
    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        return made.plan_experiment()


def describe(plans: dict) -> dict[str, str]:
    """A line for each configuration."""
    found = {}
    for name, each in plans["configurations"].items():
        if "inherits_from" in each:
            continue
        kwargs = each["architecture"]["arch_kwargs"]
        found[name.removesuffix("_fullres")] = describe_stage(
            spacing_mm=each["spacing"],
            patch=list(map(int, each["patch_size"])),
            batch=int(each["batch_size"]),
            batch_dice=each["batch_dice"],
            network={"PlainConvUNet": "plain", "ResidualEncoderUNet": "residual"}[
                each["architecture"]["network_class_name"].rpartition(".")[2]
            ],
            strides=kwargs["strides"],
            kernels=kwargs["kernel_sizes"],
            filters=kwargs["features_per_stage"],
            encoder=kwargs.get("n_blocks_per_stage", kwargs.get("n_conv_per_stage")),
            decoder=kwargs["n_conv_per_stage_decoder"],
        )
    return found


def describe_scans(plans: dict) -> dict[str, object]:
    """What all planners say alike of a data set."""
    full = plans["configurations"]["3d_fullres"]
    return {
        "axes": plans["transpose_forward"],
        "normalization": full["normalization_schemes"],
        "mask": full["use_mask_for_norm"],
    }


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({f"nnUNet_{part}": str(Path(folder) / part) for part in ("raw", "preprocessed", "results")})
        found: dict[str, dict] = {}
        for name, scans in SCANS.items():
            write_dataset(Path(folder), scans)
            for planner in PLANNERS:
                # A planner keeps configurations that an older file of its name has.
                for stale in (Path(folder) / "preprocessed" / NAME).glob("*Plans.json"):
                    stale.unlink()
                plans = make_plans(planner, scans)
                found.setdefault(name, {"scans": describe_scans(plans)})[planner] = describe(plans)
                print(name, planner, file=sys.stderr, flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("nnunetv2", "dynamic-network-architectures")}
    RECORD.write_text(json.dumps({"versions": versions, "plans": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
