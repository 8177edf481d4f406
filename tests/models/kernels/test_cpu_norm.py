from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.kernels import instance_norm as fused_norm
from models.kernels.cpu_norm import is_channels_last, normalise_and_activate

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def features(dim: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(0)
    values = torch.randn(3, 4, *(5, 6, 7)[-dim:], dtype=dtype)
    return values.to(memory_format=LAYOUTS[dim]).requires_grad_()


def affine() -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.0, 1.0, -1.0, 0.2])
    return weight.double().requires_grad_(), bias.double().requires_grad_()


def test_two_voxels_by_hand():
    # Mean 2, deviation 1: -1 and 1 before the activation.
    values = torch.tensor([1.0, 3.0, 5.0, 5.0]).reshape(1, 2, 1, 1, 2).to(memory_format=torch.channels_last_3d)
    out = normalise_and_activate(values, torch.ones(2), torch.zeros(2), eps=0.0, slope=0.1)[:, :1]
    assert torch.allclose(out.flatten(), torch.tensor([-0.1, 1.0]))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
def test_values_and_gradients_are_those_of_the_two_steps(dim, slope):
    image, (weight, bias) = features(dim), affine()
    fused = normalise_and_activate(image, weight, bias, eps=1e-5, slope=slope)
    plain = F.leaky_relu(F.instance_norm(image, weight=weight, bias=bias, eps=1e-5), slope)
    assert torch.allclose(fused, plain) and fused.stride() == image.stride()
    upper = torch.randn_like(fused)
    for ours, theirs in zip(*(torch.autograd.grad(out, (image, weight, bias), upper) for out in (fused, plain))):
        assert torch.allclose(ours, theirs)


def test_gradients_are_those_of_finite_differences():
    image, (weight, bias) = features(3)[:2, :, :2, :2, :3].detach(), affine()
    image = image.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *inputs: normalise_and_activate(*inputs, eps=1e-5, slope=0.01), (image, weight, bias)
    )


def test_half_precision_keeps_its_type_and_float32_parameters_theirs():
    image = features(3, torch.bfloat16)
    weight, bias = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    out = normalise_and_activate(image, weight, bias, eps=1e-5, slope=0.01)
    out.sum().backward()
    assert (out.dtype, image.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_a_tensor_that_is_contiguous_either_way_counts_as_contiguous():
    assert is_channels_last(features(3)) and is_channels_last(features(2))
    assert not is_channels_last(features(3).contiguous())
    assert not is_channels_last(torch.zeros(2, 1, 3, 3, 3).to(memory_format=torch.channels_last_3d))


def test_the_fused_layer_uses_it_on_a_cpu(monkeypatch):
    calls = []
    monkeypatch.setattr(fused_norm, "normalise_and_activate", lambda *a, **k: calls.append(k) or a[0])
    layer = fused_norm.NormLeakyReLU(nn.InstanceNorm3d(4, affine=True), 0.01)
    layer(features(3, torch.float32))
    layer(features(3, torch.float32).contiguous())
    assert calls == [{"eps": 1e-5, "slope": 0.01}]


def test_a_residual_block_may_add_to_the_result_in_place():
    image, (weight, bias) = features(3), affine()
    out = normalise_and_activate(image, weight, bias, eps=1e-5, slope=1.0)
    out += 1.0
    (gradient,) = torch.autograd.grad(out, image, upper := torch.randn_like(out))
    plain = F.instance_norm(image, weight=weight, bias=bias, eps=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, image, upper)[0])
