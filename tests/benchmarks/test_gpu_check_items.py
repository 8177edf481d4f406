"""Each item finds the fault that it is there for; on a CPU, which is compared with itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.gpu_check import context, convolutions, losses, norms
from benchmarks.gpu_check.findings import Outcome

ON_CPU = context.Context(device=torch.device("cpu"), sizes=context.TINY)


def verdict(check, *words) -> str:
    try:
        check(*words, ON_CPU)
    except Outcome as outcome:
        return outcome.verdict
    return "ok"


def test_a_wrong_norm_differs(monkeypatch):
    assert verdict(norms.numbers_check, "fp32") == "ok"
    from models.kernels import instance_norm

    right = instance_norm.normalise_and_activate
    monkeypatch.setattr(instance_norm, "normalise_and_activate", lambda *a, **k: right(*a, **k) * 1.01)
    assert verdict(norms.numbers_check, "fp32") == "differs"


@pytest.mark.slow
def test_a_convolution_that_is_wrong_at_one_depth_differs(monkeypatch):
    def check() -> str:
        return verdict(convolutions._compare, "bf16", "NDHWC", lambda c: convolutions.strided((1, 1, 1), c))

    assert check() == "ok"
    right = convolutions.Convolution.forward

    def wrong(self, features):
        output = right(self, features)
        return output * 1.1 if features.dtype == torch.bfloat16 and features.shape[2] == 2 else output

    monkeypatch.setattr(convolutions.Convolution, "forward", wrong)
    assert check() == "differs"


def test_a_loss_that_is_wrong_in_half_precision_differs(monkeypatch):
    loss = losses.SegmentationLoss(losses.CLASSES)
    assert verdict(losses.compare, loss, losses.CLASSES) == "ok"
    right = losses.SegmentationLoss.forward
    monkeypatch.setattr(
        losses.SegmentationLoss, "forward",
        lambda self, outputs, label: right(self, outputs, label) * (1 + 0.01 * (outputs[0].dtype == torch.float16)),
    )  # fmt: skip
    assert verdict(losses.compare, loss, losses.CLASSES) == "differs"


@pytest.mark.slow
def test_a_change_of_dali_that_is_wrong_differs(monkeypatch):
    from benchmarks.gpu_check import loading, patches

    assert verdict(loading.compare_intensity, "nnunet", "brightness") == "ok"
    right = patches.gpu_intensity.brightness
    monkeypatch.setattr(patches.gpu_intensity, "brightness", lambda x, *a, **k: right(x, *a, **k) * 1.01)
    assert verdict(loading.compare_intensity, "nnunet", "brightness") == "differs"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_steps_of_a_compiled_network_are_those_of_the_plain_one():
    from benchmarks.gpu_check import steps

    each = steps.Combination(precision="fp32", way="NDHWC fused norm", compile_mode="default")
    small = dataclasses.replace(context.TINY, backend="eager", small_filters=(2, 3, 4))
    place = dataclasses.replace(ON_CPU, sizes=small)
    text, numbers = steps.compare_numbers(each, place)
    assert "tolerated" in text and len(numbers["losses"]) == steps.NUM_STEPS


@pytest.mark.slow
def test_steps_of_a_wrong_network_differ(monkeypatch):
    from benchmarks.gpu_check import steps
    from models.kernels import instance_norm

    each = steps.Combination(precision="fp32", way="NDHWC fused norm")
    assert verdict(steps.compare_numbers, each) == "ok"
    right = instance_norm.normalise_and_activate
    monkeypatch.setattr(instance_norm, "normalise_and_activate", lambda *a, **k: right(*a, **k) * 1.01)
    assert verdict(steps.compare_numbers, each) == "differs"
