"""Scaling on paper: bytes of gradients, all-reduce against step time, reading large scans from a shared file system.

python -m benchmarks.scaling

Networks are counted from plans that the planner makes; speeds are published or assumed figures, named as such in
docs/explanation/scaling.md, which holds what this prints.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.planning.planner import PlanOptions, make_plan
from data_preprocessing.planning.presets import MSD_TASKS
from models.flop_count import network_flops
from models.unet import build_network
from utils.config import ModelConfig
from utils.schema import FORMAT_VERSION, Fingerprint, LabelScheme, Plan

MODEL = ModelConfig(deep_supervision=True)
BUCKET_BYTES = 25 * 2**20
"""DDP's buckets; all but the last are sent while the backward pass goes on."""
A100_PATCHES_S = {"training": 27.48, "inference": 76.39}
"""Published by NVIDIA's reference: BraTS 3D, AMP, one A100, batch 2 (training) and 4 (inference)."""
LINKS = {
    "NVLink, 1 node": (8, 200e9),
    "InfiniBand 8 x 200 Gb/s, 8 nodes": (64, 120e9),
    "1 x 100 Gb/s, 8 nodes": (64, 8e9),
}
"""Number of GPUs and assumed bus bandwidth of an all-reduce, in bytes a second."""
SCAN = (600, 512, 512)
NUM_SCANS = 1000
PAGE_BYTES = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A data set that is made up, and the plan that the planner makes of it."""

    name: str
    plan: Plan

    @property
    def num_parameters(self) -> int:
        """Of the network with deep supervision."""
        plan = self.plan
        with torch.device("meta"):
            network = build_network(
                plan.stage, in_channels=plan.in_channels, num_outputs=plan.labels.num_outputs, model=MODEL
            )
        return sum(each.numel() for each in network.parameters())

    @property
    def step_flops(self) -> int:
        """Of a training step over a batch, forward and backward."""
        return network_flops(self.plan, MODEL, batch_size=self.plan.stage.batch_size, training=True)


def planned(name: str, task: str, shape: tuple[int, int, int], channels: int, classes: int) -> Planned:
    """A plan by the presets of the Decathlon, of a made-up data set of 20 scans."""
    values = tuple(range(classes))
    labels = LabelScheme(names=tuple(f"class {value}" for value in values), values=values)
    folder = MSD_TASKS[task].folder
    dataset = Dataset(
        task=task, name=folder, folder=Path(folder), channels=("MRI",) * channels, labels=labels, training=(), test=()
    )  # fmt: skip
    fingerprint = Fingerprint(
        version=FORMAT_VERSION, cases=tuple(f"case{i}" for i in range(20)), spacings_mm=((1.0, 1.0, 1.0),) * 20,
        shapes_after_crop=(shape,) * 20, foreground=(),
    )  # fmt: skip
    plan = make_plan(dataset, fingerprint, dim=3, mask_channel=False, options=PlanOptions(source="preset"))
    stage = dataclasses.replace(plan.stage, batch_size=2)
    return Planned(name=name, plan=dataclasses.replace(plan, stage=stage))


def all_reduce_s(num_bytes: int, gpus: int, bytes_s: float) -> float:
    """Time of a ring all-reduce: each GPU sends and receives 2 (n - 1) / n of the bytes."""
    return 2 * (gpus - 1) / gpus * num_bytes / bytes_s


def gradient_table(networks: Sequence[Planned]) -> list[str]:
    """A row for each network."""
    brats = networks[-1]
    # What the published speed means in operations a second; small maps get less of it.
    flops_s = brats.step_flops / brats.plan.stage.batch_size * A100_PATCHES_S["training"]
    lines = [
        f"| network | parameters | gradients, fp32 | step on an A100 | {' | '.join(LINKS)} |",
        "|" + "---|" * 7,
    ]
    for each in networks:
        num_bytes, step_s = 4 * each.num_parameters, each.step_flops / flops_s
        cells = []
        for gpus, bytes_s in LINKS.values():
            whole_s = all_reduce_s(num_bytes, gpus, bytes_s)
            shown_s = all_reduce_s(min(BUCKET_BYTES, num_bytes), gpus, bytes_s)
            # What is sent earlier is hidden where the backward pass, two thirds of a step, is long enough.
            best_s = max(shown_s, whole_s - 2 / 3 * step_s)
            share = [step_s / (step_s + lost_s) for lost_s in (whole_s, best_s)]
            cells.append(f"{1e3 * whole_s:.1f} ms: {share[0]:.0%} to {share[1]:.0%}")
        lines.append(
            f"| {each.name} | {each.num_parameters:,} | {num_bytes / 1e6:.1f} MB | {1e3 * step_s:.1f} ms | "
            f"{' | '.join(cells)} |"
        )
    return lines


def touched_bytes(patch: Sequence[int], scan: Sequence[int], item_bytes: int) -> int:
    """Bytes of the pages that a patch of a C-order array touches: rows lie apart, pages hold more than a row's part."""
    row, between = patch[2] * item_bytes, scan[2] * item_bytes
    if between > PAGE_BYTES:
        return patch[0] * patch[1] * PAGE_BYTES * (row // PAGE_BYTES + 1)
    return patch[0] * (patch[1] * between + PAGE_BYTES)


def reading_table(patch: Sequence[int]) -> list[str]:
    """What a large data set makes a shared file system carry."""
    voxels = math.prod(SCAN)
    read = touched_bytes(patch, SCAN, 4) + touched_bytes(patch, SCAN, 1)
    windows = math.prod(math.ceil((n - p) / (p // 2)) + 1 for n, p in zip(SCAN, patch))
    predict_s = windows / A100_PATCHES_S["inference"]
    needed, patches_s = math.prod(patch) * 5, A100_PATCHES_S["training"]
    rows = [
        ("scan as int16", f"{2 * voxels / 1e6:.0f} MB", f"{NUM_SCANS * 2 * voxels / 1e9:.0f} GB"),
        ("the same in .nii.gz (half, assumed)", f"{voxels / 1e6:.0f} MB", f"{NUM_SCANS * voxels / 1e9:.0f} GB"),
        ("shard on the same grid: float32 image, uint8 label", f"{5 * voxels / 1e6:.0f} MB",
         f"{NUM_SCANS * 5 * voxels / 1e9:.0f} GB"),
        ("a patch of 128 x 128 x 128 with its label", f"{needed / 1e6:.1f} MB",
         f"{NUM_SCANS * needed / 1e9:.1f} GB an epoch"),
        ("pages of 4 KB that it touches", f"{read / 1e6:.1f} MB", f"{NUM_SCANS * read / 1e9:.1f} GB an epoch"),
        ("training on an A100, nothing cached", f"{patches_s * read / 1e9:.2f} GB/s a GPU",
         f"{8 * patches_s * read / 1e9:.1f} GB/s for 8, {64 * patches_s * read / 1e9:.0f} for 64"),
        ("windows of a scan in prediction, half overlapping", f"{windows}", f"{predict_s:.1f} s on an A100"),
        ("reading .nii.gz in prediction", f"{voxels / 1e6 / predict_s:.0f} MB/s a GPU",
         f"{8 * voxels / 1e9 / predict_s:.2f} GB/s for 8, {64 * voxels / 1e9 / predict_s:.1f} for 64"),
    ]  # fmt: skip
    return ["| | one scan | 1,000 scans, or a cluster |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]


def tables() -> list[str]:
    """Everything that the page holds."""
    hippocampus = planned("hippocampus, 40x56x40", "04", (40, 56, 40), 1, 3)
    brats = planned("BraTS, 128x128x128", "01", (155, 240, 240), 4, 4)
    return [*gradient_table([hippocampus, brats]), "", *reading_table(brats.plan.stage.patch_size)]


def main() -> int:
    """Print the tables."""
    print("\n".join(tables()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
