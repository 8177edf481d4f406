from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from data_loading.augment.presets import REFERENCE, UNCHANGED, Preset, choose_preset
from data_loading.dali_loader import CentrePatchLoader, VolumeLoader
from data_loading.sampling import BatchSpec, CaseShard, Place
from data_loading.train_loader import PatchFiles, TrainLoader, training_pipeline
from tests.data_loading.shards import changes_of, constant_cases, preset_with, write_case

PATCH = (4, 4, 4)
USUAL = dataclasses.replace(REFERENCE, foreground=0.4)
PRESETS = ("reference", "nnunet")


def changing(name: str, patch: tuple[int, ...], probability: float, **values: float) -> Preset:
    """A preset in which every change has that probability, elastic deformation too."""
    preset = choose_preset(name, patch, foreground=0.5, elastic_probability=0.2)
    return preset_with(preset, **changes_of(preset, probability) | values)


def moving(patch: tuple[int, ...], **probabilities: float) -> Preset:
    """nnU-Net's changes of geometry alone."""
    preset = choose_preset("nnunet", patch, foreground=0.5)
    return preset_with(preset, **changes_of(preset, 0.0) | probabilities)


def batches_of(
    shards: Sequence[CaseShard],
    spec: BatchSpec,
    preset: Preset = UNCHANGED,
    *,
    benchmark_batches: int = 0,
    **place: int,
) -> list[dict]:
    where = Place(**{"seed": 1} | place)
    loader = TrainLoader(
        shards, spec=spec, preset=preset, place=lambda: where, num_threads=1, benchmark_batches=benchmark_batches
    )
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


def spec_3d(cases_per_batch: int = 2, patch: tuple[int, ...] = PATCH) -> BatchSpec:
    return BatchSpec(patch=patch, channels=1, cases_per_batch=cases_per_batch)


@pytest.fixture
def noisy(tmp_path: Path) -> list[CaseShard]:
    rng = np.random.default_rng(0)
    return [
        write_case(tmp_path, f"n{i}", rng.normal(size=(2, 9, 10, 12)), rng.choice([0, 3, 7], size=(9, 10, 12)))
        for i in range(5)
    ]


@pytest.fixture
def numbered(tmp_path: Path) -> CaseShard:
    """A case whose voxels hold their own number, image and (modulo 256) label."""
    image = np.arange(8 * 9 * 10).reshape(1, 8, 9, 10)
    return write_case(tmp_path, "numbered", image, image[0] % 256)


def equal(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(torch.equal(a[key], b[key]) for a, b in zip(one, other) for key in a)


def two_channels(patch: tuple[int, ...] = (6, 6, 8)) -> BatchSpec:
    return BatchSpec(patch=patch, channels=2, cases_per_batch=2)


def test_same_seed_rank_and_epoch_give_the_same_batches(noisy) -> None:
    place = {"rank": 1, "world_size": 2, "epoch": 3}
    first, second = (batches_of(noisy, two_channels(), USUAL, **place) for _ in range(2))
    assert equal(first, second)


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 4}, {"rank": 0}])
def test_another_seed_rank_or_epoch_gives_other_batches(noisy, change) -> None:
    place = {"seed": 1, "rank": 1, "world_size": 2, "epoch": 3}
    # One case: the order is the same, so what differs is the patches.
    first, second = (batches_of(noisy[:1], two_channels(), USUAL, **p) for p in (place, place | change))
    assert not equal(first, second)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_case_once_per_epoch_across_ranks(tmp_path, world_size) -> None:
    shards = constant_cases(tmp_path, 6)
    seen = [
        value
        for rank in range(world_size)
        for batch in batches_of(shards, spec_3d(cases_per_batch=4), rank=rank, world_size=world_size)
        for value in batch["image"][:, 0, 0, 0, 0].tolist()
    ]
    assert sorted(seen) == list(range(6))


def test_last_batch_is_partial(tmp_path) -> None:
    shards = constant_cases(tmp_path, 5)
    assert [len(batch["image"]) for batch in batches_of(shards, spec_3d())] == [2, 2, 1]


def test_patch_equals_the_part_of_the_volume(numbered) -> None:
    volume = np.load(numbered.image)[0]
    for epoch in range(5):
        [batch] = batches_of([numbered], spec_3d(patch=(4, 6, 5)), epoch=epoch)
        patch = batch["image"][0, 0].numpy()
        d, h, w = np.unravel_index(int(patch[0, 0, 0]), volume.shape)
        assert np.array_equal(patch, volume[d : d + 4, h : h + 6, w : w + 5])
        assert batch["image"].dtype == torch.float32 and batch["label"].dtype == torch.uint8
        assert torch.equal(batch["label"], (batch["image"] % 256).byte())


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, patch", [((12, 12, 12), (8, 8, 8)), ((3, 14, 14), (2, 10, 10)), ((3, 14, 14), (10, 10))]
)
@pytest.mark.parametrize("change", ["flip", "zoom", "rotation", "elastic"])
def test_label_follows_image(tmp_path, change, shape, patch) -> None:
    middle = (np.array(shape) - 1) / 2
    inside = ((np.indices(shape) - middle[:, None, None, None])[-2:] ** 2).sum(0) < 12
    inside[..., : shape[2] // 2] |= np.indices(shape)[2, ..., : shape[2] // 2] > 3
    shards = [write_case(tmp_path, "blob", 10.0 * inside[None], inside)]
    preset = moving(patch, **{change: 0.9})
    batches = [batch for epoch in range(15) for batch in batches_of(shards, spec_3d(1, patch), preset, epoch=epoch)]
    differing = [((batch["image"] > 5) != (batch["label"] > 0)).float().mean().item() for batch in batches]
    # The two interpolations cut border voxels differently; a shifted label would be off by 10 %.
    assert np.mean(differing) < 0.02
    assert any(batch["label"].any() for batch in batches)


@pytest.mark.slow
def test_moved_patches_lie_where_the_matrix_says(tmp_path) -> None:
    """The image holds each voxel's own position, so a rotated and scaled patch shows where it was taken from."""
    shape = (34, 36, 38)
    image = np.stack([*np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij"), np.ones(shape)])
    shards = [write_case(tmp_path, "grid", image, np.ones(shape))]
    spec = BatchSpec(patch=(6, 8, 8), channels=4, cases_per_batch=1)
    preset = dataclasses.replace(moving(spec.patch, zoom=0.8, rotation=1.0), foreground=0.0)
    lengths = []
    for epoch in range(20):
        [batch] = batches_of(shards, spec, preset, epoch=epoch)
        places, inside = batch["image"][0, :3], batch["image"][0, 3]
        if inside.min() < 0.9999:
            continue
        steps = torch.stack([places.diff(dim=axis)[:, :5, :7, :7].reshape(3, -1) for axis in (1, 2, 3)])
        assert steps.std(dim=2).max() < 1e-3
        linear = steps.mean(dim=2)
        gram = linear @ linear.T
        lengths.append(gram[0, 0].sqrt().item())
        assert torch.allclose(gram, gram[0, 0] * torch.eye(3), atol=1e-3)
        assert torch.det(linear) > 0
    assert len(lengths) > 5 and min(lengths) >= 0.69 and max(lengths) <= 1.41 and max(lengths) > 1.05


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("patch", [(6, 6, 8), (2, 8, 8), (8, 8)])
def test_augmented_labels_hold_no_new_value(noisy, name, patch) -> None:
    preset = changing(name, patch, 0.8)
    values = {
        value
        for epoch in range(3)
        for batch in batches_of(noisy, two_channels(patch), preset, epoch=epoch)
        for value in batch["label"].unique().tolist()
    }
    assert values == {0, 3, 7}


@pytest.mark.parametrize("patch", [(6, 6, 8), (6, 8)])
def test_no_augmentation_gives_exact_parts_of_the_volume(noisy, patch) -> None:
    volumes = [np.load(shard.image) for shard in noisy]
    size = (1, *patch) if len(patch) == 2 else patch
    parts = {
        part.tobytes()
        for volume in volumes
        for start in np.ndindex(*(n - k + 1 for n, k in zip(volume.shape[1:], size)))
        for part in [volume[(slice(None), *(slice(a, a + k) for a, k in zip(start, size)))]]
    }
    preset = choose_preset("none", patch, foreground=0.5, elastic_probability=1.0)
    for batch in batches_of(noisy, two_channels(patch), preset):
        assert all(patch.numpy().tobytes() in parts for patch in batch["image"])


@pytest.mark.parametrize("zoom", [0.0, 1.0])
def test_foreground_patches_hold_the_only_foreground_voxel(tmp_path, zoom) -> None:
    label = np.zeros((12, 12, 12))
    label[1, 6, 11] = 1
    shards = [write_case(tmp_path, f"one{i}", label[None], label) for i in range(12)]
    preset = preset_with(foreground=1.0, zoom=zoom, flip=0.5)
    preset = dataclasses.replace(preset, zoom=dataclasses.replace(preset.zoom, bounds=(0.7, 1.0)))
    [batch] = batches_of(shards, spec_3d(12), preset)
    assert torch.all(batch["label"].amax(dim=(1, 2, 3, 4)) == 1)


@pytest.mark.parametrize("patch", [(4, 4, 4), (1, 8, 8), (8, 8)])
def test_rotated_patches_hold_the_only_foreground_voxel(tmp_path, patch) -> None:
    label = np.zeros((12, 12, 12))
    label[1, 6, 11] = 1
    shards = [write_case(tmp_path, f"one{i}", label[None], label) for i in range(30)]
    # A patch that shows more than its own extent may skip a voxel.
    preset = dataclasses.replace(moving(patch, rotation=1.0), foreground=1.0)
    [batch] = batches_of(shards, spec_3d(30, patch), preset)
    assert torch.all(batch["label"].flatten(1).amax(dim=1) == 1)


def test_uniform_patches_often_miss_the_only_foreground_voxel(tmp_path) -> None:
    label = np.zeros((12, 12, 12))
    label[1, 6, 11] = 1
    shards = [write_case(tmp_path, f"one{i}", label[None], label) for i in range(12)]
    [batch] = batches_of(shards, spec_3d(12))
    assert batch["label"].amax(dim=(1, 2, 3, 4)).sum() < 6


def test_volume_smaller_than_the_patch_is_padded_with_zeros(tmp_path) -> None:
    shards = [write_case(tmp_path, "small", np.ones((1, 2, 8, 4)))]
    [batch] = batches_of(shards, spec_3d())
    assert batch["image"][0, 0, :, 0, 0].tolist() == batch["label"][0, 0, :, 0, 0].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("name", PRESETS)
def test_thin_patches_take_every_augmentation(tmp_path, name) -> None:
    rng = np.random.default_rng(0)
    shards = [write_case(tmp_path, f"thin{i}", rng.normal(size=(2, 2, 9, 9))) for i in range(2)]
    [batch] = batches_of(shards, two_channels((2, 8, 8)), changing(name, (2, 8, 8), 1.0))
    assert batch["image"].shape == (2, 2, 2, 8, 8) and batch["image"].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("patch", [(6, 6, 8), (2, 8, 8), (8, 8)])
def test_same_place_gives_the_same_augmented_batches(noisy, name, patch) -> None:
    preset = changing(name, patch, 0.5)
    first, second, other = (batches_of(noisy, two_channels(patch), preset, epoch=epoch) for epoch in (3, 3, 4))
    assert equal(first, second)
    assert not equal(first, other)


@pytest.mark.slow
def test_anisotropic_patches_are_moved_in_plane(tmp_path) -> None:
    """Each slice holds its own number: no slice may show a mixture, or another slice."""
    label = np.broadcast_to(np.arange(1, 7)[:, None, None], (6, 40, 40))
    shards = [write_case(tmp_path, "ramp", label[None], label)]
    preset = dataclasses.replace(moving((4, 16, 16), zoom=0.5, rotation=0.7, elastic=0.5), foreground=0.0)
    for epoch in range(10):
        [batch] = batches_of(shards, spec_3d(1, (4, 16, 16)), preset, epoch=epoch)
        for key in ("image", "label"):
            shown = batch[key][0, 0].float()
            # 0 is what lies outside the volume, and linear interpolation at its border mixes with it.
            numbers = shown[:, 7:9, 7:9].amax(dim=(1, 2))
            assert torch.allclose(numbers.diff(), torch.ones(3), atol=1e-4)
        assert all(len(set(plane.unique().tolist()) - {0}) == 1 for plane in batch["label"][0, 0])


def test_slices_of_one_volume_lie_side_by_side(tmp_path) -> None:
    spec = BatchSpec(patch=(4, 6), channels=1, cases_per_batch=2, patches_per_case=3)
    shards = constant_cases(tmp_path, 5, (3, 8, 8))
    batches = batches_of(shards, spec)
    assert [tuple(batch["image"].shape) for batch in batches] == [(6, 1, 4, 6), (6, 1, 4, 6), (3, 1, 4, 6)]
    values = torch.cat([batch["image"][:, 0, 0, 0] for batch in batches]).reshape(5, 3)
    assert torch.all(values == values[:, :1])
    assert sorted(values[:, 0].tolist()) == [0, 1, 2, 3, 4]


def test_slices_come_from_the_whole_volume_and_are_augmented_in_plane(tmp_path) -> None:
    label = np.broadcast_to(np.arange(5)[:, None, None], (5, 8, 8))
    shards = [write_case(tmp_path, "ramp", label[None], label)]
    spec = BatchSpec(patch=(6, 6), channels=1, cases_per_batch=1, patches_per_case=64)
    [batch] = batches_of(shards, spec, preset_with(in_plane=True, zoom=0.5, flip=0.5))
    assert batch["label"].shape == (64, 1, 6, 6)
    assert batch["label"].unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.allclose(batch["image"], batch["label"].float(), atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_two_dimensional_batches_take_every_augmentation(noisy, name) -> None:
    spec = BatchSpec(patch=(8, 8), channels=2, cases_per_batch=2, patches_per_case=8)
    batch = batches_of(noisy, spec, changing(name, spec.patch, 1.0))[0]
    assert batch["image"].shape == (16, 2, 8, 8) and batch["label"].shape == (16, 1, 8, 8)
    assert batch["image"].isfinite().all()


def test_benchmark_repeats_the_epoch_to_full_batches(tmp_path) -> None:
    batches = batches_of(constant_cases(tmp_path, 3), spec_3d(), benchmark_batches=5)
    assert [len(batch["image"]) for batch in batches] == [2] * 5


def test_batches_stay_as_they_were_when_later_ones_are_read(tmp_path) -> None:
    loader = TrainLoader(
        constant_cases(tmp_path, 8), spec=spec_3d(1), preset=UNCHANGED, place=lambda: Place(seed=1), num_threads=1
    )
    kept, copies = [], []
    for batch in loader:
        kept.append(batch["image"])
        copies.append(batch["image"].clone())
    assert all(torch.equal(one, other) for one, other in zip(kept, copies))


def test_whole_volumes_come_with_their_names(tmp_path) -> None:
    rng = np.random.default_rng(0)
    shards = [
        write_case(tmp_path, f"case {n} é", rng.normal(size=(2, 3 + n, 4, 5)), np.full((3 + n, 4, 5), n))
        for n in range(3)
    ]
    items = list(VolumeLoader(shards, place=lambda: Place(seed=1), num_threads=1))
    assert [item["case"] for item in items] == [shard.case for shard in shards]
    for item, shard in zip(items, shards):
        assert np.array_equal(item["image"].numpy(), np.load(shard.image)[None])
        assert np.array_equal(item["label"].numpy(), np.load(shard.label)[None])
        assert item["label"].dtype == torch.uint8


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_volumes_are_shared_out_without_repeats(tmp_path, world_size) -> None:
    shards = constant_cases(tmp_path, 3)
    loaders = [
        VolumeLoader(shards, place=lambda rank=rank: Place(seed=1, rank=rank, world_size=world_size), num_threads=1)
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in loaders} == {-(-3 // world_size)}
    assert sorted(item["case"] for loader in loaders for item in loader) == ["case0", "case1", "case2"]


def test_volumes_without_labels_have_no_label(tmp_path) -> None:
    write_case(tmp_path, "a", np.ones((1, 4, 4, 4)))
    shard = CaseShard(case="a", image=tmp_path / "a_x.npy", label=None, foreground=None, shape=PATCH)
    [item] = VolumeLoader([shard], place=lambda: Place(seed=1), num_threads=1)
    assert set(item) == {"image", "case"}


@pytest.mark.parametrize("patch", [(4, 5, 6), (5, 6)])
def test_changing_intensities_leaves_the_files_alone(tmp_path, patch) -> None:
    """Patches are changed in place, also where a patch is the whole volume."""
    image = np.random.default_rng(0).normal(size=(1, *patch) if len(patch) == 3 else (1, 1, *patch))
    shard = write_case(tmp_path, "whole", image)
    before = shard.image.read_bytes()
    preset = preset_with(choose_preset("nnunet", patch), zoom=0.0, rotation=0.0, flip=0.0, gamma=1.0)
    batches = batches_of([shard], spec_3d(1, patch), preset, benchmark_batches=3)
    assert not any(np.array_equal(batch["image"][0].numpy().ravel(), np.float32(image).ravel()) for batch in batches)
    assert shard.image.read_bytes() == before


def test_a_loader_may_be_left_in_the_middle(noisy) -> None:
    """Python code is at work in the pipeline while it is taken down."""
    for _ in range(3):
        loader = TrainLoader(
            noisy, spec=two_channels(), preset=moving((6, 6, 8), rotation=1.0), place=lambda: Place(seed=1),
            num_threads=2, benchmark_batches=50,
        )  # fmt: skip
        assert next(iter(loader))["image"].isfinite().all()


@pytest.mark.parametrize("patch, shape", [((4, 4, 4), (2, 1, 4, 4, 4)), ((4, 4), (2, 1, 4, 4))])
def test_centre_patches_are_the_middles_over_and_over(numbered, patch, shape) -> None:
    loader = CentrePatchLoader(
        [numbered], spec=spec_3d(patch=patch), place=lambda: Place(seed=1), num_threads=1, count=3
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    volume = np.load(numbered.image)[0]
    middle = volume[2:6, 2:6, 3:7] if len(patch) == 3 else volume[3, 2:6, 3:7]
    for batch in batches:
        assert tuple(batch["image"].shape) == shape
        assert all(np.array_equal(patch[0], middle) for patch in batch["image"].numpy())


def constants_on_gpu(pipeline) -> list[str]:
    """Names of the constants that lie on the GPU in the graph of a pipeline, which is not built."""
    pipeline._build_graph()
    found, seen, waiting = [], set(), list(pipeline._graph_out)
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
            continue
        if node is None or node.source is None or id(node.source) in seen:
            continue
        seen.add(id(node.source))
        if node.device == "gpu" and "Constant" in getattr(node.source, "name", ""):
            found.append(node.source.name)
        waiting += getattr(node.source, "inputs", [])
    assert len(seen) > 10
    return found


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("patch", [(6, 6, 8), (2, 8, 8), (8, 8)])
def test_no_number_of_the_graph_lies_on_the_gpu_where_somebody_waits_for_it(patch, name) -> None:
    files = PatchFiles(images=["x.npy"], labels=["y.npy"], previous=["p.npy"])
    spec = BatchSpec(patch=patch, channels=3, cases_per_batch=1, mask_channels=1, previous_classes=3)
    preset = changing(name, patch, 0.5)
    pipeline = training_pipeline(
        files, iter(()), spec=spec, preset=preset, device="gpu", device_id=0, batch_size=1, num_threads=1
    )
    assert constants_on_gpu(pipeline) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("patch, per_case", [((6, 6, 8), 1), ((2, 8, 8), 1), ((8, 8), 4)])
def test_gpu_batches_equal_cpu_batches(noisy, patch, per_case, name) -> None:
    spec = BatchSpec(patch=patch, channels=2, cases_per_batch=2, patches_per_case=per_case)
    # Intensities are left out: the CPU changes them with a generator of its own.
    preset = changing(name, patch, 0.5).geometry()
    for cpu, gpu in zip(batches_of(noisy, spec, preset), batches_of(noisy, spec, preset, device_id=0)):
        assert gpu["image"].is_cuda and gpu["label"].is_cuda
        # A position half-way between two voxels may round to either.
        assert (cpu["label"] != gpu["label"].cpu()).float().mean() < 0.01
        torch.testing.assert_close(gpu["image"].cpu(), cpu["image"], atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_noise_replays(noisy) -> None:
    preset = preset_with(USUAL, noise=1.0)
    first, second = (batches_of(noisy, two_channels(), preset, device_id=0) for _ in range(2))
    assert equal(first, second)
