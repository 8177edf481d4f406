"""Whole cases: every voxel keeps its place, flips are the right ones, stitching does not depend on where it happens."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace as Namespace

import pytest
import torch
from torch import nn

from models import inferer, sliding_window
from models.inferer import (
    InferenceSettings,
    filled_size,
    flips,
    free_device_bytes,
    to_probabilities,
    window_logits,
)
from models.sliding_window import predict_volume
from tests.models.builders import BRATS, TWO_CLASSES, make_network, make_plan, make_stage

STAGE_3D, STAGE_2D = make_stage((8, 8, 8)), make_stage((8, 8))
SHAPES = [(8, 8, 8), (5, 8, 6), (11, 8, 9), (3, 17, 10)]


class Affine(nn.Module):
    """Two outputs that are voxel-wise functions of the input, and a record of what it was shown."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, image):
        self.sizes.append(tuple(image.shape))
        return torch.cat([image[:, :1], 2 * image[:, :1] + 1], dim=1)


class Slope(nn.Module):
    """Adds the position along one axis: equal under flips only after averaging."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, image):
        size = image.shape[self.axis]
        ramp = torch.arange(size, dtype=image.dtype)
        return image + ramp.reshape([-1 if axis == self.axis else 1 for axis in range(image.dim())])


def image_of(shape, seed=0):
    return torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stage", [STAGE_3D, STAGE_2D], ids=["3d", "2d"])
def test_voxelwise_network_is_reproduced_exactly(stage, shape, blend):
    image = image_of(shape)
    network = Affine().eval()
    logits = predict_volume(
        image, network, num_outputs=2, stage=stage, settings=InferenceSettings(blend=blend, tta=True)
    )
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, torch.cat([image, 2 * image + 1], dim=1))
    assert {size[2:] for size in network.sizes} == {stage.patch_size}


def fake_gpu(monkeypatch, free: int, reserved: int, allocated: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)


def test_memory_that_torch_holds_without_using_it_is_free(monkeypatch):
    fake_gpu(monkeypatch, free=100, reserved=80, allocated=30)
    assert free_device_bytes(torch.device("cuda")) == 150


@pytest.mark.parametrize(("unused", "place"), [(0, "cpu"), (10**6, "cuda")])
def test_a_move_of_the_logits_to_the_cpu_is_said_once(monkeypatch, caplog, unused, place):
    # Two outputs of 10 ** 3 voxels: a third of what is free must hold 8,000 bytes.
    fake_gpu(monkeypatch, free=9_000, reserved=unused, allocated=0)
    inferer.say_cpu.cache_clear()
    network, taken, empty = nn.Conv3d(1, 2, 1).eval(), [], torch.empty
    monkeypatch.setattr(network, "parameters", lambda: iter([Namespace(device=torch.device("cuda"))]))
    monkeypatch.setattr(sliding_window, "_stream", lambda *_, **__: iter(()))
    monkeypatch.setattr(torch, "empty", lambda shape, device: taken.append(device.type) or empty(shape))
    for _ in range(2):
        predict_volume(
            torch.zeros(1, 1, 10, 10, 10), network, num_outputs=2, stage=STAGE_3D, settings=InferenceSettings()
        )
    assert taken == [place] * 2 and len(caplog.records) == (1 if place == "cpu" else 0)
    inferer.say_cpu.cache_clear()


def test_a_gpu_that_has_no_room_after_all_leaves_the_logits_to_the_cpu(monkeypatch):
    fake_gpu(monkeypatch, free=10**6, reserved=0, allocated=0)
    network, taken, empty = nn.Conv3d(1, 2, 1).eval(), [], torch.empty

    def take(shape, device):
        taken.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError
        return empty(shape)

    monkeypatch.setattr(network, "parameters", lambda: iter([Namespace(device=torch.device("cuda"))]))
    monkeypatch.setattr(sliding_window, "_stream", lambda *_, **__: iter(()))
    monkeypatch.setattr(torch, "empty", take)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    image = torch.zeros(1, 1, 10, 10, 10)
    logits = predict_volume(image, network, num_outputs=2, stage=STAGE_3D, settings=InferenceSettings())
    assert taken == ["cuda", "cpu"] and logits.shape == (1, 2, 10, 10, 10)


def test_network_that_returns_its_input_leaves_the_image_alone():
    image = image_of((11, 8, 9))
    before = image.clone()
    result = predict_volume(
        image, nn.Identity().eval(), num_outputs=1, stage=STAGE_3D, settings=InferenceSettings(window_batch=1)
    )
    assert torch.equal(image, before)
    torch.testing.assert_close(result, image)


def test_windows_go_through_in_batches_of_the_asked_size():
    network = Affine().eval()
    predict_volume(
        image_of((7, 8, 8)), network, num_outputs=2, stage=STAGE_2D, settings=InferenceSettings(window_batch=3)
    )
    assert [size[0] for size in network.sizes] == [3, 3, 1]


def test_filled_batches_have_few_sizes_and_change_no_logits():
    settings = InferenceSettings(window_batch=6)
    filled = dataclasses.replace(settings, fill_batches=True)
    image, network = image_of((9, 8, 8)), Affine().eval()
    results = [
        predict_volume(image, network, num_outputs=2, stage=STAGE_2D, settings=each) for each in (settings, filled)
    ]
    # Nine slices are six and three; three are filled up to four.
    assert [size[0] for size in network.sizes] == [6, 3, 6, 4]
    assert torch.equal(*results)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 4), (5, 6), (6, 6)])
def test_batches_are_filled_to_a_power_of_two_or_the_most(count, expected):
    assert filled_size(count, 6) == expected


def test_all_combinations_of_spatial_axes_are_flipped():
    assert set(flips(2)) == {(), (2,), (3,), (2, 3)}
    assert len(set(flips(3))) == 8 and flips(3)[-1] == (2, 3, 4)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_tta_in_3d_flips_each_axis(axis):
    settings = InferenceSettings(tta=True)
    image = torch.zeros(1, 1, 8, 8, 8)
    logits = predict_volume(image, Slope(axis).eval(), num_outputs=1, stage=STAGE_3D, settings=settings)
    torch.testing.assert_close(logits, torch.full_like(image, 3.5))


@pytest.mark.parametrize("axis", [2, 3])
def test_tta_in_2d_flips_height_and_width_of_slices(axis):
    settings = InferenceSettings(tta=True)
    image = torch.arange(3.0).reshape(1, 1, 3, 1, 1).expand(1, 1, 3, 8, 8)
    logits = predict_volume(image, Slope(axis).eval(), num_outputs=1, stage=STAGE_2D, settings=settings)
    # Height and width are averaged out; the slices stay in order.
    torch.testing.assert_close(logits, image + 3.5)


def test_without_tta_nothing_is_flipped():
    logits = predict_volume(
        torch.zeros(1, 1, 8, 8, 8), Slope(4).eval(), num_outputs=1, stage=STAGE_3D, settings=InferenceSettings()
    )
    assert logits[0, 0, 0, 0].tolist() == list(range(8))


def test_real_network_on_one_window_is_its_plain_output():
    plan = make_plan()
    network = make_network(plan).eval()
    image = image_of((8, 8, 8))
    logits = predict_volume(image, network, num_outputs=3, stage=plan.stage, settings=InferenceSettings())
    torch.testing.assert_close(logits, network(image).detach())


def test_autocast_logits_are_blended_in_float32():
    plan = make_plan()
    network = make_network(plan).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = predict_volume(
            image_of((11, 8, 9)), network, num_outputs=3, stage=plan.stage, settings=InferenceSettings()
        )
    assert logits.dtype == torch.float32 and logits.shape == (1, 3, 11, 8, 9)


def test_probabilities_of_classes_sum_to_one():
    probabilities = to_probabilities(torch.randn(1, 3, 2, 2, 2).bfloat16(), TWO_CLASSES)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1, 2, 2, 2))


def test_probabilities_of_regions_are_independent():
    assert to_probabilities(torch.zeros(1, 3, 1, 1, 1), BRATS).flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize("options", [{"blend": "cubic"}, {"overlap": 1.0}, {"window_batch": 0}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError):
        InferenceSettings(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("device_bytes", "expected"), [(None, "cuda"), (0, "cpu")])
def test_logits_are_stitched_on_the_gpu_while_they_fit(device_bytes, expected):
    plan = make_plan()
    network = make_network(plan).eval()
    image = image_of((11, 8, 9))
    on_cpu = predict_volume(image, network, num_outputs=3, stage=plan.stage, settings=InferenceSettings())
    settings = InferenceSettings(device_bytes=device_bytes)
    on_gpu = predict_volume(image.cuda(), network.cuda(), num_outputs=3, stage=plan.stage, settings=settings)
    assert on_gpu.device.type == expected
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("block_values", [1, 2**22])
def test_flips_are_added_up_a_few_planes_at_a_time(monkeypatch, block_values):
    monkeypatch.setattr(inferer, "BLOCK_VALUES", block_values)
    network = make_network(make_plan(STAGE_3D)).eval()
    windows = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = sum(network(windows.flip(axes)).flip(axes) for axes in flips(3)) / 8
        torch.testing.assert_close(window_logits(network, windows, InferenceSettings(tta=True)), expected)
