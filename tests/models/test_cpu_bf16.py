"""Gradients of convolutions in every precision of the CPU, also where its bf16 is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from models import cpu_bf16
from models.blocks import Convolution
from models.cpu_bf16 import gradient_error, needs_float32, probe
from tests.conftest import PROJECT

# torch.compile itself makes an instance of autograd functions, and warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
PRECISIONS = {"fp32": 1e-5, "bf16": 0.02}
"""Largest error of a gradient, as a share of its norm: rounding of the numbers that go into it."""
CHANNELS, SIDE = 16, 6


@pytest.fixture
def wrong_cpu(monkeypatch) -> list[int]:
    """A CPU on which the probe finds what an AVX512-BF16 one does; holds one entry for each probe."""
    probed: list[int] = []
    monkeypatch.setattr(cpu_bf16, "_PROBED", {})
    monkeypatch.setattr(cpu_bf16, "probe", lambda: probed.append(1) or True)
    return probed


def make_layer(kernel: tuple[int, ...], stride: tuple[int, ...]) -> Convolution:
    torch.manual_seed(0)
    return Convolution(3, CHANNELS, CHANNELS, kernel=kernel, stride=stride)


def poison_memory(layer: nn.Module) -> None:
    """Leave NaN where the next tensors of the weight's size will lie."""
    size = layer.conv.weight.numel()
    junk = [torch.full((size,), torch.nan, dtype=dtype) for dtype in (torch.bfloat16, torch.float32) for _ in range(8)]
    del junk


def gradients(layer: Convolution, depth: int, *, precision: str, order: torch.memory_format) -> list[Tensor]:
    """By features and by weight, float64."""
    generator = torch.Generator().manual_seed(depth)
    features = torch.randn(2, CHANNELS, depth, SIDE, SIDE, generator=generator)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    layer = layer.to(dtype).to(memory_format=order)
    layer.zero_grad()
    features = features.to(dtype).to(memory_format=order).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        out = layer(features)
    upper = torch.randn(out.shape, generator=generator).to(out.dtype)
    poison_memory(layer)
    out.backward(upper)
    return [features.grad.double(), layer.conv.weight.grad.double()]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3)], ids=str)
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("probed", ["this machine", "a wrong one"])
def test_gradients_are_those_of_float64(kernel, stride, order, precision, probed, request):
    if probed == "a wrong one":
        request.getfixturevalue("wrong_cpu")
    for depth in range(1, 6):
        layer = make_layer(kernel, stride)
        exact = gradients(layer, depth, precision="fp64", order=torch.contiguous_format)
        found = gradients(layer, depth, precision=precision, order=ORDERS[order])
        for one, other in zip(exact, found, strict=True):
            assert (one - other).norm() <= PRECISIONS[precision] * one.norm(), depth


def test_only_the_suspected_layers_leave_bf16_and_the_cpu_is_tried_out_once(wrong_cpu, monkeypatch):
    computed = []
    monkeypatch.setattr(
        "models.blocks.convolve_in_float32",
        lambda features, layer: computed.append(features.shape[2]) or cpu_bf16.convolve_in_float32(features, layer),
    )
    cube, plane = (3, 3, 3), (1, 3, 3)
    for kernel, stride in [(cube, (1, 1, 1)), (cube, (1, 2, 2)), (cube, (2, 2, 2)), (plane, (1, 1, 1))]:
        layer = make_layer(kernel, stride)
        for depth in range(1, 6):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = layer(torch.randn(1, CHANNELS, depth, SIDE, SIDE))
            assert out.dtype == torch.bfloat16
    assert computed == [2, 2] and wrong_cpu == [1]


def test_a_layer_on_a_wrong_cpu_has_the_gradient_of_float32_and_not_of_bf16(wrong_cpu):
    """The gradient itself is rounded to nothing: what float32 gives for maps that bf16 can hold."""
    layer = make_layer((3, 3, 3), (1, 1, 1))
    features = torch.randn(1, CHANNELS, 2, SIDE, SIDE).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(features)
    upper = torch.randn(out.shape).bfloat16()
    out.backward(upper)
    found, layer.conv.weight.grad = layer.conv.weight.grad, None
    layer.conv(features.float()).backward(upper.float())
    torch.testing.assert_close(found, layer.conv.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["fp32", "right cpu", "prediction", "2d", "depth 3", "no padding"])
def test_everything_else_stays_as_it_is(wrong_cpu, monkeypatch, case):
    layer = nn.Conv3d(4, 4, 3, padding=0 if case == "no padding" else 1)
    features = torch.randn(1, 4, 3 if case == "depth 3" else 2, 6, 6, dtype=torch.bfloat16)
    if case == "right cpu":
        monkeypatch.setattr(cpu_bf16, "probe", lambda: False)
    if case == "2d":
        layer, features = nn.Conv2d(4, 4, 3, padding=1), features[:, :, 0]
    if case == "fp32":
        features = features.float()
    with torch.set_grad_enabled(case != "prediction"):
        assert not needs_float32(features, layer)
    assert needs_float32(torch.randn(1, 4, 2, 6, 6).bfloat16(), nn.Conv3d(4, 4, 3, padding=1)) == (case != "right cpu")


@pytest.mark.parametrize("fault", ["not written", "zero", "right"])
def test_probe_finds_a_gradient_that_is_not_written(monkeypatch, fault):
    right = torch.Tensor.backward

    def backward(self, gradient):
        right(self, gradient)
        if self.dtype == torch.bfloat16 and fault != "right":
            weight = self.grad_fn.next_functions[1][0].variable
            weight.grad = torch.full_like(weight, torch.nan if fault == "not written" else 0.0)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    if fault == "right":
        # Also where this machine's own bf16 is wrong.
        convolve = torch.nn.functional.conv3d
        monkeypatch.setattr(
            cpu_bf16.F,
            "conv3d",
            lambda maps, kernel, **how: convolve(maps.float(), kernel.float(), **how).to(maps.dtype),
        )
    assert probe() == (fault != "right")


def test_probe_takes_no_random_number_of_the_run():
    state = torch.random.get_rng_state()
    probe()
    assert torch.equal(state, torch.random.get_rng_state())
    assert gradient_error(2, 8, (1, 1, 1), torch.contiguous_format) >= 0


def test_a_compiled_layer_knows_too(wrong_cpu):
    torch.compiler.reset()
    layer = make_layer((3, 3, 3), (1, 1, 1))
    counter = CompileCounter()
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=False)
    features = torch.randn(1, CHANNELS, 2, SIDE, SIDE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, plain = compiled(features), layer(features)
    assert counter.frame_count == 1 and len(wrong_cpu) == 1
    assert torch.equal(out, plain)


@pytest.mark.slow
def test_whoever_compiles_nothing_does_not_import_the_compiler():
    model = "tests/inference/nnunet_v2/trained_by_nnunet.zip"
    load = f"from inference import Predictor; Predictor.load('{model}', device='cpu')"
    code = f"import sys; {load}; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0
