"""Data sets and fingerprints without files, and the plan of them."""

from __future__ import annotations

from pathlib import Path

from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.planning.planner import PlanOptions, make_plan
from utils.schema import FORMAT_VERSION, ChannelStatistics, Fingerprint, LabelScheme

STATISTICS = ChannelStatistics(
    mean=40.0, std=20.0, percentile_00_5=-50.0, median=41.0, percentile_99_5=150.0, minimum=-90.0, maximum=300.0
)


def dataset(*, task="42", name="Task42_Own", channels=("MRI",)):
    labels = LabelScheme(names=("background", "organ"), values=(0, 1))
    return Dataset(
        task=task, name=name, folder=Path(name), channels=channels, labels=labels, training=(), test=()
    )  # fmt: skip


def fingerprint(*spacings_mm, shapes=((40, 40, 40),), foreground=(STATISTICS,)):
    return Fingerprint(
        version=FORMAT_VERSION,
        cases=tuple(f"case{i}" for i in range(len(spacings_mm))),
        spacings_mm=spacings_mm,
        shapes_after_crop=shapes * (len(spacings_mm) if len(shapes) == 1 else 1),
        foreground=foreground,
    )


def plan(data=None, numbers=None, *, dim=3, mask_channel=False, **options):
    numbers = numbers or fingerprint((1.0, 1.0, 1.0))
    return make_plan(data or dataset(), numbers, dim=dim, mask_channel=mask_channel, options=PlanOptions(**options))
