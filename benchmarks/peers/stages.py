"""The comparisons: which worker, which sides, how much work, and what is hoped for.

A stage has one or several cases; a case is named `stage/case`, and so are its results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

PEERS = ("torch", "nnunetv2", "batchgeneratorsv2", "monai", "scikit-image", "numpy", "nibabel", "SimpleITK")
"""Packages of the peers' environment whose versions are recorded."""
NEEDED = {
    "nnunet": ("nnunetv2",),
    "nnunet_sequential": ("nnunetv2",),
    "batchgenerators": ("batchgeneratorsv2",),
    "monai": ("monai",),
    "reference": ("scikit-image", "nibabel"),
}
"""Peer -> packages without which it counts as absent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The same work done by several sides, ours first. `job` goes to every worker, `quick` replaces parts of it."""

    name: str
    worker: str
    sides: tuple[str, ...]
    goal: str
    job: Mapping[str, Any]
    quick: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """The part of the name before the stroke."""
        return self.name.partition("/")[0]


STEPS = [
    Comparison(
        name=f"step/batch_{size}", worker="step", sides=("ours", "nnunet"), goal="CPU ratio >= 1.8",
        job={"batch_size": size, "warmup": 2, "count": 10 if size == 2 else 4}, quick={"warmup": 1, "count": 1},
    )
    for size in (2, 9)
]  # fmt: skip
SLIDING = [
    Comparison(
        name=f"sliding/{'tta' if tta else 'plain'}", worker="sliding", sides=("ours", "monai", "nnunet"),
        goal="CPU ratio >= 1.5", job={"shape": (160, 160, 128), "tta": tta}, quick={"shape": (48, 56, 48)},
    )
    for tta in (False, True)
]  # fmt: skip
SIZES = {"large": {"task": "01", "batch_size": 2, "count": 30}, "small": {"task": "04", "batch_size": 9, "count": 100}}
"""128 x 128 x 128 voxels of 4 channels, and 40 x 56 x 40 of one."""
LOADERS = [
    Comparison(
        name=f"{stage}/{size}", worker="loader", sides=("ours", *peers), goal=goal,
        job={"augment": augment, "warmup": 3, **numbers}, quick={"warmup": 1, "count": 2},
    )
    for stage, augment, peers, goal in (
        ("loader_nnunet", "nnunet", ("nnunet",), "CPU ratio >= 1.5"),
        ("loader_reference", "reference", ("batchgenerators", "monai"), "CPU ratio >= 2"),
    )
    for size, numbers in SIZES.items()
]  # fmt: skip
PREPROCESSING = [
    Comparison(
        name=f"preprocess/{kind}", worker="preprocessing", sides=("ours", "reference", "nnunet"),
        goal="CPU ratio >= 3, memory ratio >= 2", job={"kind": kind, **job}, quick=quick,
    )
    for kind, job, quick in (
        ("mr", {"scans": 0}, {"scans": 3}),
        ("ct", {"shape": (200, 512, 512)}, {"shape": (40, 96, 96)}),
    )
]  # fmt: skip
PREDICTING = [
    Comparison(
        name=f"predict/{'tta' if tta else 'plain'}", worker="predict", sides=("ours", "nnunet", "nnunet_sequential"),
        goal="CPU ratio >= 3", job={"scans": 0, "tta": tta}, quick={"scans": 2},
    )
    for tta in (False, True)
]  # fmt: skip
ACCURACY = [
    Comparison(
        name="accuracy/train", worker="accuracy", sides=("ours", "nnunet"),
        goal="Dice >= 0.86, and ahead by more than the spread of the seeds",
        job={"flags": "--filters 16 32 64 128 --deep_supervision --augment none --learning_rate 0.002 "
                      "--scheduler cosine"},
        quick={},
    )
]  # fmt: skip
COMPARISONS = (*PREPROCESSING, *LOADERS, *STEPS, *SLIDING, *PREDICTING, *ACCURACY)
LONG = ("accuracy",)
"""Stages that only run when they are asked for."""


def choose(names: Sequence[str]) -> list[Comparison]:
    """Comparisons by stage (`step`) or full name (`step/batch_2`); without names all but the long ones.

    Raises:
        ValueError: a name that is neither; the known ones are listed.
    """
    known = {c.name for c in COMPARISONS} | {c.stage for c in COMPARISONS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown stages {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if not names:
        return [c for c in COMPARISONS if c.stage not in LONG]
    return [c for c in COMPARISONS if c.name in names or c.stage in names]
