"""Convolutions of one small sample: oneDNN's numbers are torch's, and oneDNN is asked where torch would not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from models.acceleration import Acceleration
from models.blocks import Convolution
from models.kernels.cpu_small import LARGEST, OneDnnConv3d, is_left_out
from models.unet import build_network
from tests.models.builders import make_stage
from utils.config import ModelConfig

LAST = torch.channels_last_3d

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer(num_in: int = 8, num_out: int = 8, **options) -> OneDnnConv3d:
    torch.manual_seed(0)
    options = {"kernel_size": 3, "padding": 1, "bias": False} | options
    return OneDnnConv3d(num_in, num_out, **options)


def torchs(module: nn.Module, image: Tensor) -> Tensor:
    """What torch's own layer computes."""
    return nn.Conv3d.forward(module, image)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def operators(function) -> set[str]:
    """Names of the operators that a call computes."""
    with profile(activities=[ProfilerActivity.CPU]) as run, torch.inference_mode():
        function()
    return {event.name.removeprefix("aten::") for event in run.events()}


@pytest.mark.parametrize("order", [torch.contiguous_format, LAST])
@pytest.mark.parametrize(
    "module",
    [
        layer(), layer(num_in=1, num_out=5), layer(stride=2), layer(bias=True), layer(kernel_size=5, padding=2),
        layer(kernel_size=(1, 3, 3), padding=(0, 1, 1)), layer(dilation=2, padding=2), layer(groups=4),
    ],
)  # fmt: skip
def test_values_and_gradients_are_those_of_the_definition(module, order):
    module = module.to(memory_format=order)
    image = maps(1, module.in_channels, 9, 6, 11).contiguous(memory_format=order)
    assert is_left_out(image, module)
    exact = module.double()(image.double().requires_grad_())
    upper = torch.randn(exact.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    by_weight = torch.autograd.grad(exact, module.weight, upper)[0]
    image.requires_grad_()
    out = module.float()(image)
    assert out.is_contiguous(memory_format=order)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(out, module.weight, upper.float())[0].double(), by_weight, rtol=1e-4, atol=1e-4
    )


def test_torch_asks_onednn_from_the_same_size_on():
    """Where a later torch has another rule, this module may go."""
    limit, beyond, module = (8, 40, 64, 3), (8, 40, 65, 3), layer()
    assert math.prod(limit[:3]) == LARGEST
    names = [operators(lambda shape=shape: torchs(module, torch.zeros(1, *shape))) for shape in (limit, beyond)]
    assert not any("mkldnn" in name for name in names[0]) and "mkldnn_convolution" in names[1]
    assert is_left_out(torch.zeros(1, *limit), module) and not is_left_out(torch.zeros(1, *beyond), module)


def test_a_point_is_left_out_by_a_single_thread_alone(one_thread):
    head, strided = layer(kernel_size=1, padding=0, bias=True), layer(kernel_size=1, padding=0, stride=2)
    two, many = (maps(*shape).contiguous(memory_format=LAST) for shape in ((2, 8, 30, 90, 3), (16, 8, 2, 2, 2)))
    assert is_left_out(two, head) and "slow_conv3d_forward" in operators(lambda: torchs(head, two))
    torch.testing.assert_close(head(two), torchs(head, two), rtol=1e-5, atol=1e-5)
    # As they lie, it is a matrix product.
    assert not is_left_out(two.contiguous(), head)
    assert not is_left_out(many, head) and "mkldnn_convolution" in operators(lambda: torchs(head, many))
    assert not is_left_out(two, strided) and "mkldnn_convolution" in operators(lambda: torchs(strided, two))
    torch.set_num_threads(2)
    assert not is_left_out(two, head) and "mkldnn_convolution" in operators(lambda: torchs(head, two))


@pytest.mark.parametrize(
    ("image", "module"),
    [
        (maps(2, 8, 4, 4, 4), layer()), (maps(1, 8, 4, 4, 4).double(), layer().double()),
        (maps(1, 8, 26, 99, 4), layer()), (maps(1, 8, 4, 4, 4).to("meta"), layer().to("meta")),
        (maps(1, 8, 4, 4, 4), layer(padding_mode="reflect")), (maps(1, 8, 4, 4, 4), layer(padding="same")),
        (maps(8, 4, 4, 4), layer()), (maps(1, 8, 4, 4, 4), layer().double()),
    ],
)  # fmt: skip
def test_other_maps_and_layers_are_torchs(image, module):
    assert not is_left_out(image, module)


def test_half_precision_and_a_switched_off_onednn_are_torchs(monkeypatch):
    image, module = maps(1, 8, 4, 4, 4), layer()
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_left_out(image, module)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not is_left_out(image, module)


def test_a_graph_holds_torchs_own_operator():
    module = Convolution(3, 8, 8, kernel=(3, 3, 3), stride=(1, 1, 1))
    program = torch.export.export(module, (maps(1, 8, 4, 4, 4),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("conv3d" in name for name in targets) and not any("mkldnn" in name for name in targets)


@pytest.mark.parametrize("chosen", [Acceleration(), Acceleration(channels_last=True, fused_norm=True, winograd=True)])
@pytest.mark.parametrize("filters", [(8, 16), (32, 64)])
def test_a_network_leaves_no_convolution_of_a_window_to_the_slow_loops(chosen, filters):
    stage = make_stage((8, 8, 10), filters=filters)
    torch.manual_seed(0)
    network = build_network(stage, in_channels=1, num_outputs=2, model=ModelConfig(), acceleration=chosen).eval()
    # A head is left to torch in the plain order.
    network.output_block = nn.Identity()
    window = maps(1, 1, 8, 8, 10)
    kinds = operators(lambda: network(window))
    assert not any(name.startswith("slow_conv3d") for name in kinds), kinds
    with torch.inference_mode():
        torch.testing.assert_close(network(window), network(window.expand(2, -1, -1, -1, -1))[:1], rtol=1e-4, atol=1e-4)
