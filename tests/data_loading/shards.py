"""Tiny shards on disk and the loaders over them, for the tests of this folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_loading.augment.presets import UNCHANGED, Preset, RandomChange, choose_preset
from data_loading.data_module import DataModule, LoadingSettings, ShardCases, ValidationSettings
from data_loading.sampling import CaseShard
from utils.config import LoaderConfig
from utils.schema import FORMAT_VERSION, ChannelPlan, LabelScheme, Plan, StagePlan


def preset_with(base: Preset = UNCHANGED, **values: float) -> Preset:
    """The preset with other probabilities; a change that it lacks gets nnU-Net's strength."""
    fields = {}
    for name, value in values.items():
        change = getattr(base, name)
        if isinstance(change, RandomChange):
            known = change if change.probability else getattr(choose_preset("nnunet", (8, 8, 8)), name)
            value = dataclasses.replace(known, probability=value)
        fields[name] = value
    return dataclasses.replace(base, **fields)


def changes_of(preset: Preset, probability: float) -> dict[str, float]:
    """That probability for each change that the preset makes, by name."""
    values = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
    return {n: probability for n, v in values.items() if n == "flip" or (isinstance(v, RandomChange) and v.probability)}


def make_plan(patch: tuple[int, ...], *, channels: int = 1, batch_size: int = 2) -> Plan:
    """A plan of two levels for that patch."""
    ones, twos = (1,) * len(patch), (2,) * len(patch)
    return Plan(
        version=FORMAT_VERSION, task="00", dataset="Task00_Tiny", origin="auto",
        channels=tuple(ChannelPlan(name=f"c{i}", scheme="zscore") for i in range(channels)),
        labels=LabelScheme(names=("background", "a"), values=(0, 1)), axes=(0, 1, 2), mask_channel=False, reasons={},
        stage=StagePlan(
            name="tiny", patch_size=patch, spacing_mm=(1.0,) * len(patch), batch_size=batch_size,
            strides=(ones, twos), kernels=((3,) * len(patch),) * 2, filters=(2, 4),
        ),
    )  # fmt: skip


def write_case(
    folder: Path, case: str, image: NDArray, label: NDArray | None = None, foreground: NDArray | None = None
) -> CaseShard:
    """Write one case: image (C, D, H, W); label (D, H, W), by default the first channel; any foreground positions."""
    label = image[0] if label is None else label
    foreground = np.argwhere(label > 0) if foreground is None else foreground
    foreground = foreground if len(foreground) else np.argwhere(label == 0)
    paths = [folder / f"{case}_{part}.npy" for part in ("x", "y", "fg")]
    np.save(paths[0], image.astype(np.float32))
    np.save(paths[1], label[None].astype(np.uint8))
    np.save(paths[2], np.resize(foreground, (1024, 3)).astype(np.int32))
    return CaseShard(case=case, image=paths[0], label=paths[1], foreground=paths[2], shape=image.shape[1:])


def constant_cases(folder: Path, count: int, shape: tuple[int, int, int] = (4, 4, 4)) -> list[CaseShard]:
    """Cases 0..count-1 whose voxels, image and label, all are the case's number."""
    return [write_case(folder, f"case{n}", np.full((1, *shape), n)) for n in range(count)]


def make_module(
    folder: Path, patch: tuple[int, ...], *, train: tuple[str, ...] = (), val: tuple[str, ...] = (),
    predict: tuple[str, ...] = (), channels: int = 1, loader: LoaderConfig | None = None,
    mirror_axes: tuple[int, ...] | None = None, validation: ValidationSettings | None = None, **settings: object,
) -> DataModule:  # fmt: skip
    """A data module on the CPU with seed 1 unless told otherwise."""
    return DataModule(
        cases=ShardCases(folder=folder, train=train, val=val, predict=predict),
        plan=dataclasses.replace(make_plan(patch, channels=channels), mirror_axes=mirror_axes),
        loader=loader or LoaderConfig(),
        settings=LoadingSettings(**{"seed": 1, "num_threads": 1, "on_gpu": False} | settings),
        validation=validation,
    )
