"""`--augment nnunet` beside nnU-Net v2's own transforms: every change as often and as strong as was measured there.

batchgeneratorsv2.json holds what record_batchgeneratorsv2.py measured; where batchgeneratorsv2 is installed it is
measured once more.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_loading.augment import cpu_intensity, gpu_intensity, spatial
from data_loading.augment.cpu_intensity import change_intensities
from data_loading.augment.gpu_graph import augment
from data_loading.augment.presets import NNUNET, UNCHANGED, choose_preset
from data_loading.sampling import BatchSpec, Place
from data_loading.train_loader import TrainLoader
from tests.data_loading.graph import run
from tests.data_loading.record_batchgeneratorsv2 import COUNT as RECORDED_COUNT
from tests.data_loading.record_batchgeneratorsv2 import PATCHES, RECORD, measure
from tests.data_loading.shards import write_case
from tests.data_loading.strengths import MEASURES, Patch, movement, ramps, summarise, summarise_movements

RECORDED = json.loads(RECORD.read_text())
COUNT, CHUNK = 1500, 250


def assert_alike(found: dict, recorded: dict) -> None:
    """Frequencies within four deviations of chance, quantiles within a seventh of what lies between the outer ones."""
    for name, expected in recorded.items():
        if name == "patches":
            continue
        if isinstance(expected, list):
            assert found[name] == pytest.approx(expected, abs=0.15 * (expected[-1] - expected[0])), name
        elif name.endswith("frequency"):
            smaller = found["patches"] * (found.get("frequency", 1) if name.startswith("channel") else 1)
            chance = 4 * np.sqrt(max(expected * (1 - expected), 1e-12) / smaller)
            assert found[name] == pytest.approx(expected, abs=chance + 0.005), name
        elif name == "mean":
            width = recorded["strength"][-1] - recorded["strength"][0]
            assert found[name] == pytest.approx(expected, abs=0.08 * width), name
        else:
            assert found[name] == pytest.approx(expected, abs=0.3), name


def on_cpu(name: str) -> Iterator[Patch]:
    preset = dataclasses.replace(UNCHANGED, **{name: getattr(NNUNET, name)})
    generator, before = torch.Generator().manual_seed(3), MEASURES[name][0]()
    for _ in range(COUNT // CHUNK):
        batch = torch.from_numpy(np.stack([before] * CHUNK))
        change_intensities(batch, preset, generator)
        yield from batch.numpy()


def in_graph(name: str) -> Iterator[Patch]:
    preset = dataclasses.replace(UNCHANGED, **{name: getattr(NNUNET, name)})
    image = MEASURES[name][0]()
    label = image[:1].astype(np.uint8)
    yield from run(
        lambda x, y: augment(x, y, drawn={}, shape=image.shape, preset=preset), image=image, label=label, count=COUNT
    )[0]


@pytest.mark.slow
@pytest.mark.parametrize("changed", [on_cpu, in_graph])
@pytest.mark.parametrize("name", MEASURES)
def test_every_change_of_intensities_is_as_often_and_as_strong_as_there(changed, name):
    assert_alike(summarise(name, changed(name)), RECORDED["intensities"][name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", PATCHES)
def test_patches_are_zoomed_and_turned_as_often_and_as_far_as_there(tmp_path: Path, kind):
    patch = PATCHES[kind]
    preset = dataclasses.replace(choose_preset("nnunet", patch).geometry(), flip=0.0)
    size = tuple(3 * n for n in patch)
    volume = ramps(size) if len(size) == 3 else ramps(size)[:, None]
    shard = write_case(tmp_path, "ramps", volume, np.ones(volume.shape[1:]))
    loader = TrainLoader(
        [shard], preset=preset, place=lambda: Place(seed=2), num_threads=1,
        spec=BatchSpec(patch=patch, channels=len(volume), cases_per_batch=50, per_epoch=COUNT // 50),
    )  # fmt: skip
    patches = (sample.numpy() for batch in loader for sample in batch["image"])
    if kind == "flat":
        # Slice by slice: what one slice shows of its plane.
        patches = (sample[1:, patch[0] // 2] for sample in patches)
    assert_alike(summarise_movements([movement(sample) for sample in patches]), RECORDED["movements"][kind])


def test_axes_are_mirrored_as_often_as_there():
    image = ramps((4, 4, 4))
    moved = run(lambda x, y: spatial.flip(x, y, dim=3, probability=NNUNET.flip), image=image, count=1000)[0]
    found = np.mean([[not np.array_equal(sample[axis], image[axis]) for axis in range(3)] for sample in moved])
    assert found == pytest.approx(RECORDED["mirror_frequency"], abs=0.04)


def test_changes_come_in_the_order_in_which_they_come_there(monkeypatch):
    order = [*RECORDED["intensities"]]
    for module, change in ((gpu_intensity, "graph"), (cpu_intensity, "cpu")):
        seen: list[str] = []
        for name in {*order} - {"inverted_gamma"}:
            monkeypatch.setattr(module, name, _noting(seen, name))
        preset = dataclasses.replace(
            UNCHANGED, **{name: dataclasses.replace(getattr(NNUNET, name), probability=1.0) for name in order}
        )
        if change == "cpu":
            change_intensities(torch.zeros(1, 2, 4, 4, 4), preset, torch.Generator())
        else:
            augment(None, None, drawn={}, shape=(2, 4, 4, 4), preset=preset)
        assert seen == order


def _noting(seen: list[str], name: str):
    def change(image, *arguments, inverted: bool = False, **options):
        seen.append("inverted_gamma" if inverted else name)
        return image

    return change


def test_what_was_recorded_is_what_is_measured_there_now():
    pytest.importorskip("batchgeneratorsv2", reason="batchgeneratorsv2 is not installed: recorded numbers only")
    # As many as were recorded: of fewer, the mean of what is drawn rarely strays too far.
    found = measure(RECORDED_COUNT)
    for group in ("intensities", "movements"):
        for name, expected in RECORDED[group].items():
            assert_alike(found[group][name], expected)
