"""Slabs are those of the whole volume, their logits to the last bit, in memory that does not grow with the volume."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models import streaming
from models.inferer import InferenceSettings, predict_volume, to_probabilities
from models.streaming import Ensemble, activation_bytes, buffer_bytes, stream_probabilities, window_layout
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


def whole(image, network, plan, settings):
    return to_probabilities(predict_volume(image, network, stage=plan.stage, settings=settings), plan.labels)[0]


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
    result = streamed(image, ensemble, plan, settings)
    assert result.dtype == torch.float32 and result.shape == (3, *shape)
    torch.testing.assert_close(result, whole(image, ensemble.networks[0], plan, settings), rtol=1e-6, atol=1e-7)
    monkeypatch.setattr(streaming, "to_probabilities", lambda logits, labels: logits)
    logits = predict_volume(image, ensemble.networks[0], stage=plan.stage, settings=settings)
    assert torch.equal(streamed(image, ensemble, plan, settings), logits[0])


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
    monkeypatch.setattr(streaming, "SLAB_VALUES", 1)
    slabs = list(stream_probabilities(image, ensemble_of(plan), stage=plan.stage, settings=InferenceSettings()))
    assert [slab.shape[1] for slab in slabs] == [1] * 19
    torch.testing.assert_close(torch.cat(slabs, dim=1), expected, rtol=1e-6, atol=1e-7)


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
