from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.acceleration import Acceleration
from models.kernels import cpu_conv
from models.kernels.cpu_conv import WinogradConv3d, convolve, gains, is_suited, num_tiles, weight_gradient
from models.unet import build_network
from tests.models.builders import make_stage
from utils.config import ModelConfig

LAST = torch.channels_last_3d
FASTER = Acceleration(channels_last=True, fused_norm=True, winograd=True)


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).contiguous(memory_format=LAST)


def layer(num_in: int = 32, num_out: int = 32, **options) -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(num_in, num_out, 3, **{"padding": 1, "bias": False} | options)


def assert_close(ours: Tensor, exact: Tensor) -> None:
    """Within 1e-5 of the largest value: what F(4, 3) loses in float32."""
    assert ((ours - exact).abs().max() / exact.abs().max()).item() < 1e-5


def test_a_ramp_along_the_depth_by_hand():
    # The kernel takes the next plane less the one before: 2 inside, and the padding's zeros at both ends.
    image = torch.arange(8.0).reshape(1, 1, 8, 1, 1).contiguous(memory_format=LAST)
    weight = torch.zeros(1, 1, 3, 3, 3)
    weight[0, 0, :, 1, 1] = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.allclose(convolve(image, weight).flatten(), torch.tensor([1.0, 2, 2, 2, 2, 2, 2, -6]), atol=1e-5)


@pytest.mark.parametrize("block_bytes", [1, 20_000, 10**9])
@pytest.mark.parametrize("shape", [(1, 8, 5, 3), (3, 7, 2, 4), (2, 10, 1, 1), (5, 4, 3, 3), (2, 1, 3, 3)])
def test_values_and_gradients_are_those_of_the_definition(monkeypatch, shape, block_bytes):
    monkeypatch.setattr(cpu_conv, "BLOCK_BYTES", block_bytes)
    samples, *space = shape
    image, upper = maps(samples, 3, *space), maps(samples, 5, *space)
    weight = torch.randn(5, 3, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    exact = [each.double().requires_grad_() for each in (image, weight)]
    out = F.conv3d(*exact, padding=1)
    by_image, by_weight = torch.autograd.grad(out, exact, upper.double())
    assert_close(convolve(image, weight), out)
    assert_close(convolve(upper, weight.flip(2, 3, 4).transpose(0, 1)), by_image)
    assert_close(weight_gradient(image, upper), by_weight)


def test_the_layer_is_the_one_that_it_replaces(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu_conv, "convolve", lambda *a: calls.append(1) or convolve(*a))
    plain = layer(32, 33)
    faster = WinogradConv3d(plain)
    assert faster.weight is plain.weight and list(faster.state_dict()) == ["weight"]
    inputs = [maps(2, 32, 8, 3, 4).requires_grad_() for _ in range(2)]
    outs = [each(image) for each, image in zip((plain, faster), inputs)]
    assert_close(outs[1], outs[0])
    assert outs[1].stride() == outs[0].stride()
    upper = maps(2, 33, 8, 3, 4).contiguous()
    weights = [torch.autograd.grad(out, (image, plain.weight), upper) for out, image in zip(outs, inputs)]
    for ours, theirs in zip(weights[1], weights[0]):
        assert_close(ours, theirs)
    assert len(calls) == 2


def test_a_frozen_weight_gets_no_gradient():
    faster = WinogradConv3d(layer().requires_grad_(False))
    image = maps(1, 32, 8, 3, 4).requires_grad_()
    faster(image).sum().backward()
    assert image.grad is not None and faster.weight.grad is None


@pytest.mark.parametrize(
    "image",
    [
        maps(1, 32, 8, 3, 4).contiguous(), maps(1, 32, 8, 3, 4).double(), maps(1, 32, 5, 3, 4), maps(1, 32, 1, 9, 9),
    ],
)  # fmt: skip
def test_other_maps_take_the_plain_way(monkeypatch, image):
    monkeypatch.setattr(cpu_conv, "convolve", lambda *a: pytest.fail("not for these maps"))
    faster = WinogradConv3d(layer()).to(image.dtype)
    assert not gains(image)
    torch.testing.assert_close(faster(image), F.conv3d(image, faster.weight, padding=1))


def test_half_precision_takes_the_plain_way(monkeypatch):
    monkeypatch.setattr(cpu_conv, "convolve", lambda *a: pytest.fail("it computes in float32"))
    with torch.autocast("cpu", torch.bfloat16):
        assert WinogradConv3d(layer())(maps(1, 32, 8, 3, 4)).dtype == torch.bfloat16


def test_whole_tiles_save_half_and_five_planes_a_fifth():
    assert [num_tiles(depth) for depth in (1, 4, 5, 8)] == [1, 1, 2, 2]
    assert [gains(maps(1, 1, depth, 2, 2).expand(1, 32, -1, -1, -1).contiguous(memory_format=LAST))
            for depth in (4, 5, 6, 7, 8, 9)] == [True, False, True, True, True, True]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "suited"),
    [
        (layer(), True), (layer(16), False), (layer(bias=True), False), (layer(stride=2), False),
        (layer(padding=0), False), (layer(dilation=2, padding=2), False), (layer(groups=2, num_in=64), False),
        (nn.Conv3d(32, 32, 1, bias=False), False), (nn.Conv2d(32, 32, 3, padding=1, bias=False), False),
        (layer(padding_mode="reflect"), False), (WinogradConv3d(layer()), False),
    ],
)  # fmt: skip
def test_which_layers_it_suits(module, suited):
    assert is_suited(module) == suited


def test_a_network_keeps_its_names_and_its_numbers():
    networks = []
    for chosen in (Acceleration(), FASTER):
        torch.manual_seed(0)
        stage = make_stage((8, 8, 8), filters=(32, 64))
        networks.append(build_network(stage, in_channels=1, num_outputs=2, model=ModelConfig(), acceleration=chosen))
    plain, faster = networks
    replaced = [name for name, module in faster.named_modules() if isinstance(module, WinogradConv3d)]
    assert replaced == ["input_block.conv2.conv", "bottleneck.conv2.conv",
                        "upsamples.0.conv_block.conv1.conv", "upsamples.0.conv_block.conv2.conv"]  # fmt: skip
    assert list(plain.state_dict()) == list(faster.state_dict())
    image = maps(2, 1, 8, 8, 8)
    torch.testing.assert_close(faster(image), plain(image), rtol=1e-4, atol=1e-4)
