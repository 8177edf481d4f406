"""Slabs are those of the whole volume, their logits to the last bit, in memory that does not grow with the volume."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from monai.inferers.utils import sliding_window_inference

from models import sliding_window
from models.inferer import InferenceSettings, to_probabilities, window_logits
from models.sliding_window import (
    Ensemble,
    activation_bytes,
    buffer_bytes,
    predict_volume,
    slab_planes,
    stream_probabilities,
)
from models.windows import WindowLayout, window_layout
from tests.models.builders import BRATS, TWO_CLASSES, make_network, make_plan, make_stage

STAGES = {"3d": make_stage((8, 8, 8)), "2d": make_stage((8, 8)), "flat": make_stage((4, 8, 8))}
SHAPES = [(8, 8, 8), (5, 8, 6), (11, 8, 9), (3, 17, 10), (25, 9, 9), (9, 5, 20)]
HOST = torch.device("cpu")


def image_of(shape, channels=1):
    return torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(1))


def ensemble_of(plan, count=1, amp=None):
    networks = tuple(make_network(plan, seed=seed).eval() for seed in range(count))
    names = tuple(f"fold_{fold}" for fold in range(count))
    return Ensemble(names=names, networks=networks, labels=plan.labels, device=HOST, amp=amp)


def streamed(image, ensemble, plan, settings):
    return torch.cat(list(stream_probabilities(image, ensemble, stage=plan.stage, settings=settings)), dim=1)


def logits_of(image, network, plan, settings):
    outputs = plan.labels.num_outputs
    return predict_volume(image, network, num_outputs=outputs, stage=plan.stage, settings=settings)


def whole(image, network, plan, settings):
    return to_probabilities(logits_of(image, network, plan, settings), plan.labels)[0]


@torch.inference_mode()
def monai_logits(image, network, plan, settings):
    """What MONAI's sliding window makes of (1, C, D, H, W); to a 2D network the slices are the batch."""
    batch = image[0].transpose(0, 1) if plan.stage.dim == 2 else image

    def forward(windows):
        # A copy, since MONAI scales them in place.
        return window_logits(network, windows, settings).to(torch.float32, copy=True)

    logits = sliding_window_inference(
        batch, plan.stage.patch_size, settings.window_batch, forward, overlap=settings.overlap, mode=settings.blend
    )
    return logits.transpose(0, 1)[None] if plan.stage.dim == 2 else logits


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "settings",
    [
        InferenceSettings(),
        InferenceSettings(blend="constant", overlap=0.25, window_batch=3),
        InferenceSettings(tta=True, overlap=0.7, window_batch=1),
        InferenceSettings(tta=True, window_batch=5, fill_batches=True),
    ],
    ids=["gaussian", "constant", "tta", "filled"],
)
def test_equal_to_the_sliding_window_of_monai(stage, shape, settings, monkeypatch):
    plan = make_plan(STAGES[stage], num_channels=2)
    ensemble, image = ensemble_of(plan), image_of(shape, channels=2)
    expected = monai_logits(image, ensemble.networks[0], plan, settings)
    assert expected.shape == (1, 3, *shape) and expected.dtype == torch.float32
    logits = logits_of(image, ensemble.networks[0], plan, settings)
    if window_layout(shape, plan.stage, settings).blended:
        assert torch.equal(logits, expected)
    else:
        # MONAI weighs the only window, and divides by the weights again.
        torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-7)
    monkeypatch.setattr(sliding_window, "to_probabilities", lambda logits, labels: logits)
    assert torch.equal(streamed(image, ensemble, plan, settings), logits[0])


def test_probabilities_are_those_of_the_logits():
    plan = make_plan(num_channels=2)
    ensemble, image = ensemble_of(plan), image_of((11, 8, 9), channels=2)
    result = streamed(image, ensemble, plan, InferenceSettings())
    assert result.dtype == torch.float32 and result.shape == (3, 11, 8, 9)
    expected = whole(image, ensemble.networks[0], plan, InferenceSettings())
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)


def test_windows_are_counted_as_they_are_done():
    plan, done = make_plan(), []
    settings = InferenceSettings(window_batch=4)
    slabs = stream_probabilities(
        image_of((19, 8, 9)), ensemble_of(plan), stage=plan.stage, settings=settings, count=done.append
    )
    next(slabs)
    assert done == [4]
    list(slabs)
    assert sum(done) == window_layout((19, 8, 9), plan.stage, settings).num_windows == 8


def test_equal_for_regions_and_in_mixed_precision():
    plan = make_plan(labels=BRATS)
    ensemble, image = ensemble_of(plan, amp=torch.bfloat16), image_of((11, 8, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = whole(image, ensemble.networks[0], plan, InferenceSettings())
    result = streamed(image, ensemble, plan, InferenceSettings())
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)


def test_folds_are_averaged_as_probabilities():
    plan = make_plan()
    ensemble, image = ensemble_of(plan, count=3), image_of((19, 8, 9))
    each = [whole(image, network, plan, InferenceSettings()) for network in ensemble.networks]
    torch.testing.assert_close(streamed(image, ensemble, plan, InferenceSettings()), sum(each) / 3)


def test_slabs_come_early_and_few_planes_are_held():
    plan = make_plan()
    settings = InferenceSettings(window_batch=2)
    slabs = list(stream_probabilities(image_of((64, 8, 12)), ensemble_of(plan), stage=plan.stage, settings=settings))
    assert len(slabs) > 10 and max(slab.shape[1] for slab in slabs) <= 8
    layout, longer = (window_layout((depth, 8, 12), plan.stage, settings) for depth in (64, 640))
    assert layout.span == longer.span <= 12
    assert layout.largest_step >= max(slab.shape[1] for slab in slabs)
    assert buffer_bytes(layout, num_outputs=3, num_networks=1) == 4 * 4 * layout.span * 8 * 12


def test_large_planes_come_one_at_a_time(monkeypatch):
    plan, image = make_plan(), image_of((19, 8, 9))
    expected = streamed(image, ensemble_of(plan), plan, InferenceSettings())
    monkeypatch.setattr(sliding_window, "SLAB_VALUES", 1)
    slabs = list(stream_probabilities(image, ensemble_of(plan), stage=plan.stage, settings=InferenceSettings()))
    assert [slab.shape[1] for slab in slabs] == [1] * 19
    torch.testing.assert_close(torch.cat(slabs, dim=1), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("values", "planes"), [(700, 10), (769, 10), (69, 1), (10**6, 60)])
def test_slabs_have_as_many_planes_as_their_values_allow(values, planes, monkeypatch):
    """Of 2 outputs a plane of 5 x 7 has 70 values; the windows of 60 planes finish that many at most."""
    monkeypatch.setattr(sliding_window, "SLAB_VALUES", values)
    layout = WindowLayout(
        window=(4, 4, 4), padded=(100, 5, 7), low=(0, 0, 0), batches=(((0, 0, 0),), ((40, 0, 0),)), blended=True
    )
    assert slab_planes(layout, num_outputs=2) == planes


def test_image_is_left_alone():
    plan = make_plan()
    image = image_of((11, 8, 9))
    before = image.clone()
    streamed(image, ensemble_of(plan), plan, InferenceSettings())
    assert torch.equal(image, before)


def test_activations_grow_with_windows_and_outputs_and_shrink_with_depth():
    stage = make_stage((8, 8, 8), filters=(4, 6, 8))

    def num_bytes(num_windows=1, num_outputs=3, tta=False):
        return activation_bytes(stage, num_windows=num_windows, num_outputs=num_outputs, tta=tta)

    # 512 voxels of 4 bytes: 4 features sevenfold, 4, an eighth of 6 and a 64th of 8.
    assert num_bytes() == int(4 * 512 * (28 + 4 + 6 / 8 + 8 / 64))
    assert num_bytes(4) == 4 * num_bytes()
    # 105 logits twice, and the features that they are made from; over flips a third time.
    assert num_bytes(num_outputs=105) == 4 * 512 * (12 + 210)
    assert num_bytes(num_outputs=105, tta=True) == 4 * 512 * (12 + 315)


@pytest.mark.gpu
@pytest.mark.parametrize("device_bytes", [None, 0])
def test_gpu_gives_the_probabilities_of_the_host(device_bytes):
    plan = make_plan(labels=TWO_CLASSES)
    ensemble, image = ensemble_of(plan, count=2), image_of((19, 8, 9))
    expected = streamed(image, ensemble, plan, InferenceSettings())
    device = torch.device("cuda")
    on_gpu = dataclasses.replace(
        ensemble, device=device, networks=tuple(network.cuda() for network in ensemble.networks)
    )
    result = streamed(image, on_gpu, plan, InferenceSettings(device_bytes=device_bytes))
    assert result.device.type == "cpu"
    torch.testing.assert_close(result, expected, rtol=1e-2, atol=1e-2)
