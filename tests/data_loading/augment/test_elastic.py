from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.utils._python_dispatch import TorchDispatchMode

from data_loading.augment.elastic import deform, displacement
from data_loading.augment.presets import ELASTIC_STD_VOXELS, RandomChange

ALWAYS = RandomChange(probability=1.0, bounds=(2.0, 2.0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions(size: tuple[int, ...], count: int = 1) -> torch.Tensor:
    """(N, A, *size): each voxel holds its own place."""
    return torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in size), indexing="ij")).repeat(
        count, *[1] * (len(size) + 1)
    )


def zeros(count: int, size: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(count, 1, *size, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(12, 14), (8, 8, 8)])
def test_displacements_have_mean_0_and_deviation_1_from_border_to_border(size) -> None:
    generator = seeded()
    fields = torch.stack([displacement(size, 1.0, generator) for _ in range(30)])
    assert fields.shape[1:] == (len(size), *size)
    for slab in (fields[..., :2], fields[..., -2:], fields[..., 3:5]):
        assert abs(slab.mean()) < 0.3 and abs(slab.std() - 1) < 0.25


def test_displacements_are_as_smooth_as_filtered_noise() -> None:
    """Noise smoothed by sigma is correlated like exp(-distance² / 4 sigma²)."""
    generator = seeded()
    fields = torch.stack([displacement((24, 24), 5.0, generator) for _ in range(60)])
    at = fields[:, :, 12, 5]
    for distance in (0, 3, 6, 12):
        expected = np.exp(-(distance**2) / 100)
        assert (at * fields[:, :, 12, 5 + distance]).mean().item() == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("size", [(40, 56), (40, 56, 40), (6, 20, 20)])
def test_deformation_does_not_fold(size) -> None:
    """The greatest displacement keeps neighbours in their order."""
    change = RandomChange(probability=1.0, bounds=(ELASTIC_STD_VOXELS[1],) * 2)
    shown = deform(positions(size, 4), zeros(4, size), change, in_plane=False, generator=seeded())[0]
    for axis in range(len(size)):
        inner = tuple(slice(8, -8) if n > 20 else slice(n // 2 - 1, n // 2 + 1) for n in size)
        assert shown[(slice(None), axis, *inner)].diff(dim=axis + 1).min() > 0


@pytest.mark.parametrize("size", [(20, 24), (10, 20, 24)])
def test_image_equals_scipy_at_the_positions_that_were_drawn(size) -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(1, 1, *size)).astype(np.float32))
    places = positions(size)
    # The same generator moves the same way: the deformed positions say where each voxel was taken from.
    label = torch.from_numpy(rng.integers(0, 9, size=(1, 1, *size)).astype(np.uint8))
    moved = deform(image, label, ALWAYS, in_plane=False, generator=seeded())
    where = deform(places, label, ALWAYS, in_plane=False, generator=seeded())[0][0].double().numpy()
    expected = ndimage.map_coordinates(image[0, 0].numpy(), where, order=1, mode="nearest")
    assert moved[0][0, 0].numpy() == pytest.approx(expected, abs=1e-3)
    nearest = ndimage.map_coordinates(label[0, 0].numpy(), where, order=0, mode="nearest")
    assert (moved[1][0, 0].numpy() != nearest).mean() < 0.005
    assert not torch.equal(moved[0], image)


def test_label_values_are_never_invented_and_label_stays_on_image() -> None:
    size = (16, 32, 32)
    ball = ((positions(size)[0] - torch.tensor([8.0, 16, 16]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 40
    label = (ball * 7).to(torch.uint8)[None, None]
    images, labels = deform(10.0 * ball[None, None], label, ALWAYS, in_plane=False, generator=seeded())
    assert set(labels.unique().tolist()) == {0, 7} and labels.dtype == torch.uint8
    assert ((images > 5) != (labels > 0)).float().mean() < 0.005
    assert not torch.equal(labels, label)


def test_in_plane_deformation_moves_all_slices_alike_and_mixes_none() -> None:
    size = (4, 20, 20)
    places = deform(positions(size), zeros(1, size), ALWAYS, in_plane=True, generator=seeded())[0][0]
    assert torch.allclose(places[0], positions(size)[0, 0], atol=1e-5)
    assert torch.equal(places[1:, 0], places[1:, 3])
    assert not torch.allclose(places[1:], positions(size)[0, 1:], atol=0.1)


def test_patches_that_are_not_drawn_stay_bit_for_bit() -> None:
    size = (8, 10)
    image = positions(size, 200)
    change = RandomChange(probability=0.2, bounds=(2.0, 2.0))
    images, labels = deform(image, zeros(200, size), change, in_plane=True, generator=seeded())
    changed = sum(not torch.equal(one, other) for one, other in zip(images, image))
    assert 20 < changed < 60
    assert images.shape == image.shape and labels.shape == (200, 1, *size)


def test_inputs_are_left_alone() -> None:
    image, label = positions((8, 10)), zeros(1, (8, 10))
    copies = image.clone(), label.clone()
    deform(image, label, ALWAYS, in_plane=True, generator=seeded())
    assert torch.equal(image, copies[0]) and torch.equal(label, copies[1])


class Copies(TorchDispatchMode):
    """Notes what is copied to the meta device, which stands for a GPU, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_copy = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if is_copy and any(isinstance(arg, torch.Tensor) and arg.device.type == "cpu" for arg in args):
            self.found.append(bool(kwargs.get("non_blocking")))
        return func(*args, **kwargs)


@pytest.mark.parametrize("in_plane", [False, True])
def test_of_each_patch_only_its_random_numbers_are_copied_to_the_device_and_nobody_waits(in_plane, monkeypatch) -> None:
    for place, name in ((torch.Tensor, "new_tensor"), (torch, "tensor"), (torch, "as_tensor")):
        # No operator shows that these copy numbers, which is waited for.
        monkeypatch.setattr(place, name, None)
    image, label = (torch.zeros(2, 1, 6, 30, 31, device="meta", dtype=kind) for kind in (torch.float32, torch.uint8))
    with Copies() as copies:
        moved, labels = deform(image, label, ALWAYS, in_plane=in_plane, generator=torch.Generator().manual_seed(1))
    assert moved.shape == image.shape and labels.dtype == torch.uint8
    assert copies.found == [True, True]
