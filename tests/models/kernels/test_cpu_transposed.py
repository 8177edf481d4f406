"""Transposed convolutions with a summed gradient by the bias: values and gradients are those of torch's layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.blocks import Upsampling
from models.kernels.cpu_transposed import SummedBiasConvTranspose2d, SummedBiasConvTranspose3d, gains

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
CASES = [
    (SummedBiasConvTranspose3d, nn.ConvTranspose3d, (2, 8, 5, 4, 6), {"kernel_size": 2, "stride": 2}),
    (SummedBiasConvTranspose3d, nn.ConvTranspose3d, (1, 8, 3, 4, 6), {"kernel_size": (1, 2, 2), "stride": (1, 2, 2)}),
    (SummedBiasConvTranspose3d, nn.ConvTranspose3d, (3, 8, 3, 4, 6), {"kernel_size": 4, "stride": 2, "padding": 1}),
    (SummedBiasConvTranspose3d, nn.ConvTranspose3d, (2, 8, 3, 4, 6), {"kernel_size": 2, "stride": 2, "groups": 2}),
    (SummedBiasConvTranspose2d, nn.ConvTranspose2d, (4, 8, 7, 6), {"kernel_size": 2, "stride": 2}),
    (SummedBiasConvTranspose2d, nn.ConvTranspose2d, (1, 8, 7, 6), {"kernel_size": 3, "stride": 2, "dilation": 2}),
]


class Masks(TorchDispatchMode):
    """Of which gradients (input, weight, bias) `convolution_backward` is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append(args[10])
        return func(*args, **(kwargs or {}))


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def results(layer: nn.Module, image: Tensor, upper: Tensor, *, autocast: bool = False) -> list[Tensor]:
    """The output, and the gradients by the image, the weight and the bias."""
    image = image.detach().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = layer(image)
    out.backward(upper.to(out.dtype))
    return [out.detach(), image.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("kind", "plain", "shape", "options"), CASES)
def test_values_and_gradients_are_those_of_the_definition(kind, plain, shape, options, last):
    torch.manual_seed(0)
    ours, image = kind(8, 6, **options), maps(*shape)
    theirs = plain(8, 6, **options).double()
    theirs.load_state_dict(ours.state_dict())
    if last:
        ours, image = ours.to(memory_format=LAST[image.dim()]), image.contiguous(memory_format=LAST[image.dim()])
    assert gains(image, ours)
    exact_shape = theirs(image.double()).shape
    upper = maps(*exact_shape)
    for mine, exact in zip(results(ours, image, upper), results(theirs, image.double(), upper.double())):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-4)


def test_mixed_precision_is_that_of_torchs_layer():
    torch.manual_seed(0)
    ours, theirs = SummedBiasConvTranspose3d(8, 6, 2, 2), nn.ConvTranspose3d(8, 6, 2, 2)
    theirs.load_state_dict(ours.state_dict())
    image = maps(2, 8, 4, 6, 4).contiguous(memory_format=torch.channels_last_3d)
    upper = maps(2, 6, 8, 12, 8)
    mine, reference = (results(layer, image, upper, autocast=True) for layer in (ours, theirs))
    assert [each.dtype for each in mine] == [each.dtype for each in reference] == [torch.bfloat16, *[torch.float32] * 3]
    for a, b in zip(mine, reference):
        torch.testing.assert_close(a.float(), b.float(), rtol=2e-2, atol=2e-2 * b.float().abs().max().item())


def test_gradients_that_nobody_asks_for_are_not_made():
    layer = SummedBiasConvTranspose3d(4, 4, 2, 2)
    layer.weight.requires_grad_(False)
    out = layer(maps(1, 4, 2, 2, 2))
    out.sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 64.0))


@pytest.mark.parametrize(("kind", "asks"), [(SummedBiasConvTranspose3d, False), (nn.ConvTranspose3d, True)])
def test_onednn_is_not_asked_for_the_gradient_by_the_bias(kind, asks):
    layer = kind(8, 8, 2, 2).to(memory_format=torch.channels_last_3d)
    image = maps(2, 8, 6, 8, 6).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    out = layer(image)
    with Masks() as masks:
        out.sum().backward()
    assert masks.seen == [[True, True, asks]]


def test_a_size_of_the_output_is_heeded():
    layer, image = SummedBiasConvTranspose3d(4, 4, 3, stride=2, padding=1), maps(1, 4, 4, 4, 4)
    assert layer(image, output_size=[8, 8, 8]).shape == (1, 4, 8, 8, 8) and layer(image).shape == (1, 4, 7, 7, 7)


def test_a_network_upsamples_with_these_layers():
    for dim, kind in ((2, SummedBiasConvTranspose2d), (3, SummedBiasConvTranspose3d)):
        assert isinstance(Upsampling(dim, 8, 8, stride=(2,) * dim).conv, kind)


def test_without_a_gradient_it_is_torchs_layer():
    layer, image = SummedBiasConvTranspose3d(8, 6, 2, 2), maps(1, 8, 3, 3, 3)
    with torch.no_grad():
        assert not gains(image, layer)
        torch.testing.assert_close(layer(image), nn.ConvTranspose3d.forward(layer, image), rtol=0, atol=0)
    layer.bias.requires_grad_(False)
    assert not gains(image, layer)
