"""The gradient by the weight of narrow convolutions, plane by plane, is that of the definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.acceleration import Acceleration
from models.kernels import cpu_narrow
from models.kernels.cpu_narrow import gains, weight_gradient
from models.kernels.cpu_small import OneDnnConv3d
from models.unet import build_network
from tests.models.builders import make_stage
from utils.config import ModelConfig

LAST = torch.channels_last_3d

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture(autouse=True)
def known_cpu(monkeypatch):
    """The rule is of one kind of CPU; its numbers are to be right on all."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).contiguous(memory_format=LAST)


def layer(num_in: int = 8, num_out: int = 8, **options) -> OneDnnConv3d:
    torch.manual_seed(0)
    options = {"kernel_size": 3, "padding": 1, "bias": False} | options
    return OneDnnConv3d(num_in, num_out, **options)


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (1, 4, 3, 3), (3, 2, 4, 2), (2, 1, 5, 5), (1, 1, 1, 1), (2, 7, 1, 6)])
@pytest.mark.parametrize("channels", [(8, 8), (16, 8), (9, 3)])
def test_values_and_gradients_are_those_of_the_definition(shape, channels):
    samples, *space = shape
    module = layer(*channels)
    image, upper = maps(samples, channels[0], *space), maps(samples, channels[1], *space)
    exact = [each.double().requires_grad_() for each in (image, module.weight.detach())]
    out = F.conv3d(*exact, padding=1)
    expected = torch.autograd.grad(out, exact, upper.double())
    image.requires_grad_()
    assert gains(image, module)
    found = module(image)
    assert found.is_contiguous(memory_format=LAST) and found.grad_fn.name() == "NarrowConvolutionBackward"
    # A loss may hand back a gradient that lies in the other order.
    gradients = torch.autograd.grad(found, (image, module.weight), upper.contiguous())
    for ours, exactly in zip((found, *gradients), (out, *expected), strict=True):
        torch.testing.assert_close(ours.double(), exactly, rtol=1e-4, atol=1e-4)


def test_planes_by_hand():
    # A single voxel of the last plane and a gradient in the first one: they meet in the last plane of the kernel.
    image, upper = torch.zeros(1, 1, 2, 1, 1), torch.zeros(1, 1, 2, 1, 1)
    image[0, 0, 1], upper[0, 0, 0] = 3.0, 5.0
    kernel = weight_gradient(image.contiguous(memory_format=LAST), upper.contiguous(memory_format=LAST))
    expected = torch.zeros(1, 1, 3, 3, 3)
    expected[0, 0, 2, 1, 1] = 15.0
    assert torch.equal(kernel, expected)


def test_a_frozen_weight_and_a_first_layer_get_no_gradient():
    frozen, image = layer().requires_grad_(False), maps(2, 8, 3, 4, 5).requires_grad_()
    assert not gains(image, frozen)
    frozen(image).sum().backward()
    assert image.grad is not None and frozen.weight.grad is None
    first = layer()
    first(maps(2, 8, 3, 4, 5)).sum().backward()
    assert first.weight.grad is not None


@pytest.mark.parametrize(
    ("image", "module"),
    [
        (maps(2, 8, 4, 4, 4).contiguous(), layer()), (maps(2, 8, 4, 4, 4).double(), layer().double()),
        (maps(2, 4, 4, 4, 4), layer(4)), (maps(2, 8, 4, 4, 4), layer(num_out=24)),
        (maps(2, 8, 4, 4, 4), layer(stride=2)), (maps(2, 8, 4, 4, 4), layer(bias=True)),
        (maps(2, 8, 4, 4, 4), layer(kernel_size=1, padding=0)),
        (maps(2, 8, 4, 4, 4), layer(padding_mode="reflect")), (maps(2, 8, 4, 4, 4), layer(dilation=2, padding=2)),
        (maps(2, 8, 4, 4, 4), layer(groups=8)), (maps(2, 8, 4, 4, 4).to("meta"), layer().to("meta")),
    ],
)  # fmt: skip
def test_other_maps_and_layers_are_torchs(image, module):
    assert not gains(image, module)


def test_where_nothing_is_trained_and_on_other_cpus_it_is_torchs(monkeypatch):
    image, module = maps(2, 8, 4, 4, 4), layer()
    assert gains(image, module)
    with torch.no_grad():
        assert not gains(image, module)
    with torch.autocast("cpu", torch.bfloat16):
        assert not gains(image, module)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not gains(image, module)


def test_a_network_has_the_gradients_of_the_plain_one(monkeypatch):
    used = []
    original = cpu_narrow.weight_gradient
    monkeypatch.setattr(cpu_narrow, "weight_gradient", lambda *a: used.append(1) or original(*a))
    gradients = []
    for chosen in (Acceleration(), Acceleration(channels_last=True, fused_norm=True, winograd=True)):
        torch.manual_seed(0)
        stage = make_stage((8, 8, 12), filters=(8, 16))
        network = build_network(stage, in_channels=1, num_outputs=2, model=ModelConfig(), acceleration=chosen)
        network(maps(2, 1, 8, 8, 12)).square().mean().backward()
        gradients.append({name: each.grad for name, each in network.named_parameters()})
    # All but the first one and the one that strides; the plain network's maps lie in the other order.
    assert len(used) == 4
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, rtol=1e-3, atol=1e-5, msg=name)
