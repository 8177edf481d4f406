"""Shards of noise in the shape of a Medical Segmentation Decathlon task: what a benchmark needs, without its data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from data_preprocessing.dataset.description_file import Dataset, make_splits
from data_preprocessing.planning.planner import make_plan
from data_preprocessing.planning.presets import MSD_TASKS
from data_preprocessing.planning.topology import plan_topology
from data_preprocessing.preprocessor import PreprocessedCase
from data_preprocessing.shards import stamp_plan, write_shard
from utils.axes import triple
from utils.errors import UserError
from utils.files import write_json
from utils.schema import FORMAT_VERSION, CaseMeta, Fingerprint, Geometry, LabelScheme, Plan

CHANNELS = {"01": 4, "05": 2}
"""Tasks with more than one image channel."""
CLASSES = {"01": 4, "03": 3, "04": 3, "05": 3, "07": 3, "08": 3}
"""Tasks with more than one foreground class; background included."""
NUM_CASES = 10
MARGIN = 1.25
"""Volumes are this many times as long as the patch, so that cropping has something to choose."""
SLICES = 32
"""Depth of the volumes of a 2D benchmark."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseShape:
    """How noise differs from the shape of its task."""

    patch_size: tuple[int, ...] | None = None
    """(D, H, W) or (H, W); None takes the task's."""
    channels: int | None = None
    """Image channels; None takes the task's."""
    scale: int = 1
    """Voxels of a volume, in units of the usual number: a power of two. The patch stays as it is."""

    def __post_init__(self) -> None:
        if self.scale < 1 or self.scale & (self.scale - 1):
            raise UserError(f"--scale must be 1, 2, 4, 8 or another power of two, got {self.scale}")
        if min(self.patch_size or (1,)) < 1 or (self.channels is not None and self.channels < 1):
            raise UserError("--patch_size and --channels must be at least 1")


TASK_SHAPE = NoiseShape()


def write_benchmark_shards(
    folder: Path, *, task: str, dim: int, seed: int = 0, noise: NoiseShape = TASK_SHAPE
) -> Path:  # fmt: skip
    """Write `<task>_<dim>d` with random volumes, plan and splits; the same seed writes the same bytes.

    Raises:
        UserError: as `benchmark_plan`.

    Returns:
        The folder of the shards.
    """
    plan = benchmark_plan(task, dim, noise)
    target = folder / f"{task}_{dim}d"
    target.mkdir(parents=True, exist_ok=True)
    cases = tuple(f"noise_{index}" for index in range(NUM_CASES))
    rng = np.random.default_rng(seed)
    for case in cases:
        write_shard(target, _noise_case(case, plan, volume_shape(plan, noise.scale), rng))
    write_json(make_splits(cases, 5), target / "splits.json")
    write_json(plan, target / "plan.json")
    return target


def benchmark_plan(task: str, dim: int, noise: NoiseShape = TASK_SHAPE) -> Plan:
    """The preset plan of a task, with the number of channels and classes that its data have.

    Raises:
        UserError: the task is none of the ten, or the patch does not suit the network's dimension or levels.
    """
    if task not in MSD_TASKS:
        raise UserError(f"--task {task} has no known shape; use 01 to 10, or --data")
    preset = MSD_TASKS[task]
    num_classes = CLASSES.get(task, 2)
    channel = "MRI" if preset.ct is None else "CT"
    dataset = Dataset(
        task=task,
        name=preset.folder,
        folder=Path(preset.folder),
        channels=(channel,) * (noise.channels or CHANNELS.get(task, 1)),
        labels=LabelScheme(
            names=("background", *(f"class_{k}" for k in range(1, num_classes))), values=tuple(range(num_classes))
        ),
        training=(),
        test=(),
    )
    fingerprint = Fingerprint(
        version=FORMAT_VERSION,
        cases=("noise",),
        spacings_mm=(preset.spacing_mm_3d,),
        shapes_after_crop=(preset.patch_size_3d,),
        foreground=(),
    )
    plan = make_plan(dataset, fingerprint, dim=dim, mask_channel=False)
    if noise.patch_size is None:
        return plan
    if len(noise.patch_size) != dim:
        raise UserError(f"--patch_size needs {dim} numbers for --dim {dim}, got {noise.patch_size}")
    topology = plan_topology(noise.patch_size, plan.stage.spacing_mm)
    stage = dataclasses.replace(plan.stage, patch_size=noise.patch_size, **vars(topology))
    return dataclasses.replace(plan, stage=stage)


def volume_shape(plan: Plan, scale: int = 1) -> tuple[int, int, int]:
    """(D, H, W) of a volume of noise: somewhat more than a patch, the axes doubled in turn to have more voxels."""
    in_plane = tuple(int(n * MARGIN) for n in plan.stage.patch_size)
    shape = list(in_plane if plan.stage.dim == 3 else (SLICES, *in_plane))
    for doubling in range(scale.bit_length() - 1):
        shape[doubling % 3] *= 2
    return triple(shape)


def _noise_case(case: str, plan: Plan, shape: tuple[int, int, int], rng: np.random.Generator) -> PreprocessedCase:
    image = rng.standard_normal((plan.image_channels, *shape), dtype=np.float32)
    label = boxes(shape, plan.labels.num_classes, rng)[None]
    spacing = plan.stage.spacing_mm if plan.stage.dim == 3 else (1.0, *plan.stage.spacing_mm)
    meta = CaseMeta(
        version=FORMAT_VERSION, case=case, image=f"{case}.nii.gz", label=f"{case}.nii.gz",
        geometry=Geometry(
            shape_xyz=shape[::-1], affine=tuple(map(tuple, np.diag([*spacing[::-1], 1.0]).tolist())),
            qform_code=1, sform_code=1, xyzt_units=2,
        ),
        axes=(0, 1, 2), spacing_mm=triple(spacing), original_shape=shape, crop_box=triple((0, n) for n in shape),
        resampled_shape=shape, pad_low=(0, 0, 0), padded_shape=shape, stage=plan.stage.name,
        source_stamp="noise", plan_stamp=stamp_plan(plan),
    )  # fmt: skip
    return PreprocessedCase(image=image, label=label, ignore_index=None, meta=meta)


def boxes(shape: tuple[int, int, int], num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """A label (D, H, W) uint8 with a box of each foreground class, somewhere in the volume."""
    label = np.zeros(shape, np.uint8)
    for k in range(1, num_classes):
        corner = [int(rng.integers(0, max(1, n - n // 4))) for n in shape]
        label[tuple(slice(a, a + max(1, n // 4)) for a, n in zip(corner, shape))] = k
    return label
