"""The Triton kernels against the formulas: on a GPU, or through Triton's interpreter where there is none."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from models.kernels.instance_norm import backward_formula, forward_formula

ON_GPU = torch.cuda.is_available()
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not ON_GPU:
    # Read when Triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"
norm_kernels = importlib.import_module("models.kernels.gpu_norm")

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SHAPES = [(2, 5, 3, 7, 6), (1, 96, 4, 5, 3), (2, 32, 9, 16, 8), (2, 3, 17, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_kernels_agree_with_the_formulas_in_float64(shape, dtype):
    generator = torch.Generator().manual_seed(6)
    layout = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
    features, gradient = (
        (1 + 2 * torch.randn(shape, generator=generator)).to(DEVICE, dtype).contiguous(memory_format=layout)
        for _ in range(2)
    )
    weight, bias = torch.randn(2, shape[1], generator=generator).to(DEVICE)
    wide = [each.double() for each in (features, weight, bias)]
    expected = forward_formula(*wide, eps=1e-5, slope=0.01)
    found = norm_kernels.forward(features, weight, bias, eps=1e-5, slope=0.01)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for value, right in zip(found, expected):
        torch.testing.assert_close(value.double(), right, rtol=tolerance, atol=tolerance)
    assert found[0].is_contiguous(memory_format=layout) and found[0].dtype == dtype
    mean, rstd = expected[1:]
    expected = backward_formula(gradient.double(), *wide, mean=mean, rstd=rstd, slope=0.01)
    found = norm_kernels.backward(
        gradient, features, weight, bias, mean=found[1], rstd=found[2], slope=0.01
    )  # fmt: skip
    for value, right in zip(found, expected):
        torch.testing.assert_close(value.double(), right, rtol=tolerance, atol=tolerance * right.abs().max().item())
    assert found[0].is_contiguous(memory_format=layout) and found[0].dtype == dtype


def test_large_mean_beside_a_small_deviation():
    features = 1000 + 0.1 * torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(7))
    features = features.to(DEVICE).contiguous(memory_format=torch.channels_last_3d)
    weight, bias = torch.ones(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    expected, *_ = forward_formula(features.double(), weight.double(), bias.double(), eps=1e-5, slope=1.0)
    output, *_ = norm_kernels.forward(features, weight, bias, eps=1e-5, slope=1.0)
    torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)
