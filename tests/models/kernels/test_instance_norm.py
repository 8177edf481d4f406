"""Instance norm and LeakyReLU as one operator: torch's values and gradients, memory order, names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from models.kernels.instance_norm import NormActivation, NormLeakyReLU, fuse_norms
from models.unet import build_network
from tests.models.builders import make_stage
from utils.config import ModelConfig

EPS = 1e-5


def random_case(size: tuple[int, ...] = (2, 3, 4), channels: int = 3, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(5)
    layout = torch.channels_last_3d if len(size) == 3 else torch.channels_last
    features = 2 + 3 * torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    affine = torch.randn(2, channels, generator=generator, dtype=torch.float64)
    features = features.to(dtype).to(memory_format=layout).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    return features, *(each.to(wide).requires_grad_() for each in affine), layout


def plain(features, weight, bias, slope):
    return F.leaky_relu(F.instance_norm(features, weight=weight, bias=bias, eps=EPS), slope)


@pytest.mark.parametrize("size", [(2, 3, 4), (5, 4)], ids=["3d", "2d"])
@pytest.mark.parametrize("slope", [0.01, 1.0], ids=["leaky", "norm_only"])
def test_values_and_gradients_are_torch_s_in_float64(size, slope):
    features, weight, bias, _ = random_case(size)
    fused = NormActivation.apply(features, weight, bias, EPS, slope)
    expected = plain(features, weight, bias, slope)
    torch.testing.assert_close(fused, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(fused)
    gradients = [torch.autograd.grad((out * weights).sum(), (features, weight, bias)) for out in (fused, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    assert gradcheck(lambda *values: NormActivation.apply(*values, EPS, slope), (features, weight, bias))


@pytest.mark.parametrize("size", [(2, 3, 4), (5, 4)], ids=["3d", "2d"])
def test_channels_last_stays_channels_last(size):
    features, weight, bias, layout = random_case(size, dtype=torch.float32)
    output = NormActivation.apply(features, weight, bias, EPS, 0.01)
    output.sum().backward()
    assert output.is_contiguous(memory_format=layout) and features.grad.is_contiguous(memory_format=layout)


def test_torch_s_own_does_not_keep_channels_last():
    # The reason for this module; where this fails, torch's operator may do.
    features, weight, bias, layout = random_case((4, 4, 4), dtype=torch.float32)
    assert not plain(features, weight, bias, 0.01).is_contiguous(memory_format=layout)


def test_half_precision_has_float32_statistics():
    # A mean that is large beside the deviation: float16 sums of squares would overflow.
    features = (300 + torch.randn(1, 2, 16, 16, 16)).half()
    weight, bias = torch.ones(2), torch.zeros(2)
    output = NormActivation.apply(features, weight, bias, EPS, 1.0)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.float(), F.instance_norm(features.float()), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("res_block", [False, True], ids=["basic", "residual"])
@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 16)], ids=["3d", "2d"])
def test_network_keeps_names_outputs_and_gradients(patch, res_block):
    model = ModelConfig(deep_supervision=True, deep_supr_num=1, res_block=res_block, negative_slope=0.2)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        network = build_network(make_stage(patch), in_channels=2, num_outputs=3, model=model)
        networks.append(network.double().train())
    before = list(networks[1].state_dict())
    fuse_norms(networks[1], model.negative_slope)
    assert list(networks[1].state_dict()) == before
    assert sum(isinstance(module, NormLeakyReLU) for module in networks[1].modules()) > 0
    image = torch.randn(2, 2, *patch, dtype=torch.float64)
    results = []
    for network in networks:
        outputs = network(image)
        sum(output.square().sum() for output in outputs).backward()
        results.append((outputs, [parameter.grad for parameter in network.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-7, atol=1e-7)
