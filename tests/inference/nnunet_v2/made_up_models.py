"""Small models of nnU-Net v2's kinds with made-up weights, and scans for them; for its own code and for ours.

Needs numpy, nibabel, torch and pillow only, so that record_masks.py runs where nnU-Net is installed.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

Axes = tuple[int, ...]
PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """A file of (x, y, z) voxels along the axes `codes`, zero in a margin around it, and in its first corner.

    A picture has neither axes nor margin, and one slice.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    codes: str = "RAS"
    margin: int = 2
    corner: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeUp:
    """A model: numbers of its network (level 0 first), its plans, and the scans that it predicts."""

    patch: Axes
    spacing_mm: tuple[float, ...]
    kernels: tuple[Axes, ...]
    strides: tuple[Axes, ...]
    scans: tuple[Scan, ...]
    filters: tuple[int, ...] = (4, 6, 8)
    residual: bool = False
    encoder_convs: tuple[int, ...] = (2, 2, 2)
    decoder_convs: tuple[int, ...] = (2, 2)
    """In nnU-Net's order, the coarsest first."""
    channels: tuple[str, ...] = ("ZScoreNormalization",)
    masked: bool = False
    labels: dict[str, Any] = dataclasses.field(default_factory=lambda: {"background": 0, "liver": 1, "tumour": 2})
    regions_class_order: tuple[int, ...] | None = None
    transpose: tuple[int, int, int] = (0, 1, 2)
    reader: str = "SimpleITKIO"
    ending: str = ".nii.gz"
    folds: int = 1
    mirror_axes: Axes | None = None
    old_format: bool = False
    first_stage: MadeUp | None = None

    @property
    def dim(self) -> int:
        return len(self.patch)

    @property
    def configuration(self) -> str:
        return "2d" if self.dim == 2 else "3d_fullres" if self.first_stage is None else "3d_cascade_fullres"

    @property
    def num_outputs(self) -> int:
        named = len(self.labels) - ("ignore" in self.labels)
        return named - 1 if self.regions_class_order else named

    @property
    def in_channels(self) -> int:
        return len(self.channels) + (len(self.labels) - 1 if self.first_stage else 0)


CUBE = {"kernels": ((3, 3, 3),) * 3, "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2))}
FLAT = {"kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)), "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))}
SQUARE = {"kernels": ((3, 3),) * 3, "strides": ((1, 1), (2, 2), (2, 2))}
SLICES = (Scan(shape=(61, 47, 1), spacing_mm=(1, 1, 1)), Scan(shape=(20, 70, 1), spacing_mm=(1, 1, 1)))
ROUND = (
    Scan(shape=(26, 30, 22), spacing_mm=(1.3, 1.0, 1.1)),
    Scan(shape=(25, 24, 28), spacing_mm=(1, 0.9, 1.2), codes="PIR"),
)
THICK = (Scan(shape=(30, 26, 9), spacing_mm=(1, 1.1, 4)), Scan(shape=(11, 27, 29), spacing_mm=(5, 1, 1), codes="SLP"))
LOWRES = MadeUp(patch=(12, 12, 12), spacing_mm=(2.1, 2.0, 1.9), scans=ROUND, **CUBE)
HOLLOW = (Scan(shape=(26, 24, 28), spacing_mm=(1, 1.4, 1.1), corner=16),)
MODELS = {
    "isotropic": MadeUp(
        patch=(16, 20, 16), spacing_mm=(1.1, 1.0, 1.05), scans=ROUND, folds=2, mirror_axes=(0, 2), **CUBE
    ),
    "anisotropic": MadeUp(
        patch=(8, 20, 24), spacing_mm=(4.5, 1.0, 1.05), scans=THICK, channels=("CTNormalization",), **FLAT
    ),
    "residual": MadeUp(
        patch=(8, 20, 24), spacing_mm=(4.5, 1.0, 1.05), scans=THICK, channels=("CTNormalization",), residual=True,
        encoder_convs=(1, 3, 2), decoder_convs=(1, 1), **FLAT,
    ),
    "2d": MadeUp(
        patch=(20, 16), spacing_mm=(1.0, 1.1), scans=ROUND, transpose=(1, 2, 0), mirror_axes=(0, 1),
        channels=("RescaleTo01Normalization",), **SQUARE,
    ),
    "regions": MadeUp(
        patch=(16, 16, 16), spacing_mm=(1.2, 1.2, 1.2), masked=True,
        channels=("ZScoreNormalization", "NoNormalization"),
        scans=(Scan(shape=(26, 24, 28), spacing_mm=(1, 1.4, 1.1), margin=7),), reader="NibabelIOWithReorient",
        labels={"background": 0, "whole": [1, 3], "core": [3], "ignore": 4}, regions_class_order=(1, 3), **CUBE,
    ),
    "old": MadeUp(
        patch=(16, 16, 12), spacing_mm=(1.2, 1.0, 1.1), scans=ROUND[1:], transpose=(2, 0, 1), filters=(4, 8, 12),
        old_format=True, **CUBE,
    ),
    "cascade": MadeUp(patch=(16, 16, 16), spacing_mm=(1.1, 1.0, 1.05), scans=ROUND, first_stage=LOWRES, **CUBE),
    "masked cascade": MadeUp(
        patch=(16, 16, 16), spacing_mm=(1.1, 1.0, 1.05), scans=HOLLOW, masked=True,
        first_stage=dataclasses.replace(LOWRES, scans=HOLLOW, masked=True), **CUBE,
    ),
    "colours": MadeUp(
        patch=(24, 32), spacing_mm=(1, 1), scans=SLICES, channels=("RGBTo01Normalization",) * 3, mirror_axes=(0, 1),
        reader="NaturalImage2DIO", ending=".png", **SQUARE,
    ),
    "grey": MadeUp(
        patch=(32, 24), spacing_mm=(1, 1), scans=SLICES[:1], reader="NaturalImage2DIO", ending=".tif", **SQUARE
    ),
}  # fmt: skip


def scan_files(folder: Path, model: MadeUp, index: int) -> list[Path]:
    """One for each channel; a picture holds all of them."""
    channels = 1 if model.reader == "NaturalImage2DIO" else len(model.channels)
    return [folder / f"scan{index}_{channel:04d}{model.ending}" for channel in range(channels)]


def write_pictures(folder: Path, model: MadeUp) -> None:
    """Colours of 8 bits, or grey values of 16."""
    for index, scan in enumerate(model.scans):
        random = np.random.RandomState(100 * index)
        width, height, _ = scan.shape
        coarse = random.randint(0, 200, (-(-height // 6), -(-width // 6), len(model.channels)))
        values = np.kron(coarse, np.ones((6, 6, 1), int))[:height, :width]
        values = values + random.randint(0, 55, values.shape)
        colours = len(model.channels) > 1
        picture = values.astype(np.uint8) if colours else (100 * values[..., 0]).astype(np.uint16)
        Image.fromarray(picture).save(*scan_files(folder, model, index))


def write_scans(folder: Path, model: MadeUp) -> None:
    """`scan<i>_<channel>.nii.gz` in a folder, or pictures."""
    if model.reader == "NaturalImage2DIO":
        write_pictures(folder, model)
        return
    for index, scan in enumerate(model.scans):
        for channel in range(len(model.channels)):
            random = np.random.RandomState(100 * index + channel)
            coarse = random.randint(0, 400, [-(-n // 6) for n in scan.shape])
            image = np.kron(coarse, np.ones((6, 6, 6), int))[tuple(slice(n) for n in scan.shape)]
            image = image + random.randint(1, 60, scan.shape)
            inside = np.zeros(scan.shape, bool)
            inside[tuple(slice(scan.margin, -scan.margin) for _ in range(3))] = True
            inside[: scan.corner, : scan.corner, : scan.corner] = False
            affine = np.zeros((4, 4))
            for axis, (code, size) in enumerate(zip(scan.codes, scan.spacing_mm)):
                world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair)
                affine[world, axis] = size if code in "RAS" else -size
            affine[:, 3] = (3, -5, 7, 1)
            stored = np.where(inside, image, 0).astype(np.int16)
            nib.save(nib.Nifti1Image(stored, affine), folder / f"scan{index}_{channel:04d}.nii.gz")


def make_weight(name: str, shape: tuple[int, ...], fold: int) -> torch.Tensor:
    """Values that depend on a parameter's name, shape and fold alone; scales of normalisations lie about 1."""
    random = np.random.RandomState(zlib.crc32(f"{name} {fold}".encode()))
    values = random.standard_normal(shape).astype(np.float32)
    if name.endswith("norm.weight"):
        values = 1 + np.float32(0.3) * values
    elif len(shape) == 1:
        values = np.float32(0.3) * values
    else:
        values = values / np.float32(np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(values)


def parameter_shapes(model: MadeUp) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all parameters as nnU-Net has them, each under its plainest name."""

    def convolution(name: str, inputs: int, outputs: int, kernel: Axes) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.conv.weight", (outputs, inputs, *kernel)
        if ".skip." not in name:
            yield f"{name}.conv.bias", (outputs,)
        yield from ((f"{name}.norm.{end}", (outputs,)) for end in ("weight", "bias"))

    ones = (1,) * model.dim
    inputs = model.in_channels
    if model.residual:
        yield from convolution("encoder.stem.convs.0", inputs, model.filters[0], model.kernels[0])
        inputs = model.filters[0]
    for level, (outputs, kernel, count) in enumerate(zip(model.filters, model.kernels, model.encoder_convs)):
        for index in range(count):
            if not model.residual:
                yield from convolution(f"encoder.stages.{level}.0.convs.{index}", inputs, outputs, kernel)
            else:
                block = f"encoder.stages.{level}.blocks.{index}"
                yield from convolution(f"{block}.conv1", inputs, outputs, kernel)
                yield from convolution(f"{block}.conv2", outputs, outputs, kernel)
                if inputs != outputs:
                    yield from convolution(f"{block}.skip.{int(model.strides[level] != ones)}", inputs, outputs, ones)
            inputs = outputs
    for step, count in enumerate(model.decoder_convs):
        level = len(model.filters) - 2 - step
        wide, narrow = model.filters[level + 1], model.filters[level]
        yield f"decoder.transpconvs.{step}.weight", (wide, narrow, *model.strides[level + 1])
        yield f"decoder.transpconvs.{step}.bias", (narrow,)
        for index in range(count):
            name = f"decoder.stages.{step}.convs.{index}"
            yield from convolution(name, narrow if index else 2 * narrow, narrow, model.kernels[level])
        yield f"decoder.seg_layers.{step}.weight", (model.num_outputs, narrow, *ones)
        yield f"decoder.seg_layers.{step}.bias", (model.num_outputs,)


def make_plans(model: MadeUp) -> dict[str, Any]:
    """Content of plans.json."""
    resampling = {
        f"resampling_fn_{kind}{end}": value
        for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1))
        for end, value in (
            ("", "resample_data_or_seg_to_shape"),
            ("_kwargs", {"is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None}),
        )
    }
    statistics = {"mean": 250.0, "std": 120.0, "median": 240.0, "min": 0.0, "max": 460.0}
    statistics |= {"percentile_00_5": 20.0, "percentile_99_5": 430.0}
    own = {
        "data_identifier": "made_up", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "batch_dice": False,
        "patch_size": list(model.patch), "spacing": list(model.spacing_mm),
        "normalization_schemes": list(model.channels), "use_mask_for_norm": [model.masked] * len(model.channels),
        **resampling, **(_older(model) if model.old_format else {"architecture": _newer(model)}),
    }  # fmt: skip
    configurations = {model.configuration: own}
    if model.first_stage is not None:
        first = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
        first |= {"spacing": list(model.first_stage.spacing_mm), "patch_size": list(model.first_stage.patch)}
        second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        configurations = {"3d_fullres": own, "3d_lowres": first, "3d_cascade_fullres": second}
    backward = [model.transpose.index(axis) for axis in range(3)]
    key = "foreground_intensity_properties_" + ("by_modality" if model.old_format else "per_channel")
    return {
        "dataset_name": "Dataset990_MadeUp", "plans_name": "nnUNetPlans", "image_reader_writer": model.reader,
        "transpose_forward": list(model.transpose), "transpose_backward": backward, "label_manager": "LabelManager",
        "configurations": configurations, key: {str(index): statistics for index in range(len(model.channels))},
    }  # fmt: skip


def _newer(model: MadeUp) -> dict[str, Any]:
    kind = "n_blocks_per_stage" if model.residual else "n_conv_per_stage"
    settings = {
        "n_stages": len(model.filters), "features_per_stage": list(model.filters),
        "conv_op": f"torch.nn.modules.conv.Conv{model.dim}d", "kernel_sizes": [list(k) for k in model.kernels],
        "strides": [list(s) for s in model.strides], kind: list(model.encoder_convs),
        "n_conv_per_stage_decoder": list(model.decoder_convs), "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{model.dim}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    names = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    network = RESIDUAL if model.residual else PLAIN
    return {"network_class_name": network, "arch_kwargs": settings, "_kw_requires_import": names}


def _older(model: MadeUp) -> dict[str, Any]:
    return {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": model.filters[0],
        "unet_max_num_features": model.filters[-1], "n_conv_per_stage_encoder": list(model.encoder_convs),
        "n_conv_per_stage_decoder": list(model.decoder_convs), "num_pool_per_axis": [2] * model.dim,
        "pool_op_kernel_sizes": [list(s) for s in model.strides], "conv_kernel_sizes": [list(k) for k in model.kernels],
    }  # fmt: skip


def make_dataset(model: MadeUp) -> dict[str, Any]:
    """Content of dataset.json."""
    names = {str(index): f"channel {index}" for index in range(len(model.channels))}
    order = {} if model.regions_class_order is None else {"regions_class_order": list(model.regions_class_order)}
    key = "modality" if model.old_format else "channel_names"
    return {key: names, "labels": model.labels, "numTraining": 1, "file_ending": model.ending, **order}


def make_checkpoint(model: MadeUp, weights: dict[str, torch.Tensor], fold: int, configuration: str) -> dict[str, Any]:
    """Content of checkpoint_final.pth; nnU-Net logs in numpy scalars."""
    return {
        "network_weights": OrderedDict(weights), "optimizer_state": {"state": {}}, "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float32(0.5)], "train_losses": [np.float64(0.1)]}, "_best_ema": np.float32(0.5),
        "current_epoch": 1, "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": model.mirror_axes,
        "init_args": {"configuration": configuration, "fold": fold, "plans": {}, "dataset_json": {}},
    }  # fmt: skip


def model_folder(root: Path, model: MadeUp, configuration: str) -> Path:
    """Where nnU-Net puts a trained configuration."""
    return root / f"nnUNetTrainer__nnUNetPlans__{configuration}"


def write_model(root: Path, model: MadeUp) -> Path:
    """Write a model, its first stage too, as nnU-Net lays it out; returns the folder."""
    stages = [(model, model.configuration)]
    if model.first_stage is not None:
        stages.append((model.first_stage, "3d_lowres"))
    for stage, configuration in stages:
        folder = model_folder(root, model, configuration)
        folder.mkdir(parents=True)
        (folder / "plans.json").write_text(json.dumps(make_plans(model)))
        (folder / "dataset.json").write_text(json.dumps(make_dataset(model)))
        for fold in range(stage.folds):
            (folder / f"fold_{fold}").mkdir()
            weights = {name: make_weight(name, shape, fold) for name, shape in parameter_shapes(stage)}
            content = make_checkpoint(stage, weights, fold, configuration)
            torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return model_folder(root, model, model.configuration)
