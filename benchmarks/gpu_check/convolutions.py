"""Convolutions of a U-Net in each precision and order of memory: numbers beside the CPU's float32, and speed.

Maps of one to five planes are among them, because that is where libraries choose their rare kernels. The modules are
the network's own, so what the program goes around on a CPU is gone around here, too.

Shapes: N batch, C channels, D H W space (2D has no D).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.context import LAYOUTS, TYPES, Checks, Context, compare_speed, distance, judge, random_tensors
from benchmarks.gpu_check.findings import Numbers
from models.blocks import Convolution, Upsampling

DEPTHS = (1, 2, 3, 4, 5)
STRIDES = ((1, 1, 1), (2, 2, 2), (1, 2, 2))
KERNELS = ((3, 3, 3), (1, 3, 3))
TOLERANCE_EPS = 4
"""Largest distance, in units of the precision's rounding."""
TF32_EPS = 2.0**-10
FP32_TOLERANCE = 1e-5
PARTS = ("output", "gradient by the maps", "gradient by the weight")

Make = Callable[[], nn.Module]
Layer = tuple[str, Make, tuple[int, ...]]
"""What it is, how it is made, and the maps (N, C, D, H, W) that it gets."""


def checks(context: Context) -> Checks:
    """Numbers in every precision, order of memory and stride; then speed."""
    for precision in ("bf16", "fp16", "fp32"):
        for layout in LAYOUTS:
            for stride in STRIDES:
                name = f"{precision} {layout} stride {''.join(map(str, stride))}"
                yield name, functools.partial(_compare, precision, layout, functools.partial(strided, stride))
            yield f"{precision} {layout} transposed", functools.partial(_compare, precision, layout, transposed)
            yield f"{precision} {layout} heads, 2D", functools.partial(_compare, precision, layout, others)
    for precision in ("bf16", "fp16"):
        for shape in context.sizes.maps:
            name = f"{precision} speed, {shape[1]} channels, {shape[2]} a side"
            yield name, functools.partial(layout_speed, precision, shape)


def strided(stride: tuple[int, int, int], context: Context) -> Iterator[Layer]:
    """Convolutions of maps of one to five planes."""
    channels, side = context.sizes.channels, context.sizes.side
    for kernel in KERNELS:
        for depth in DEPTHS:
            make = functools.partial(Convolution, 3, channels, 2 * channels, kernel=kernel, stride=stride)
            yield f"depth {depth}, kernel {''.join(map(str, kernel))}", make, (2, channels, depth, side, side + 2)


def transposed(context: Context) -> Iterator[Layer]:
    """Steps of the decoder."""
    channels, side = context.sizes.channels, context.sizes.side
    for stride in STRIDES[1:]:
        for depth in DEPTHS:
            make = functools.partial(Upsampling, 3, 2 * channels, channels, stride=stride)
            yield f"depth {depth}, stride {''.join(map(str, stride))}", make, (2, 2 * channels, depth, side, side)


def others(context: Context) -> Iterator[Layer]:
    """Heads, whose outputs are few and odd, and convolutions of slices."""
    channels, side = context.sizes.channels, context.sizes.side
    for outputs in (1, 3, 4):
        make = functools.partial(Convolution, 3, channels, outputs, kernel=(1,) * 3, stride=(1,) * 3, bias=True)
        yield f"head of {outputs}", make, (2, channels, 5, side, side)
    for step in (1, 2):
        for height in DEPTHS:
            make = functools.partial(Convolution, 2, channels, 2 * channels, kernel=(3, 3), stride=(step, step))
            yield f"2D, height {height}, stride {step}", make, (4, channels, height, side)


def tolerance(context: Context, precision: str) -> float:
    """Largest distance from float32 that rounding explains; in fp32 a GPU multiplies in TF32, as in a run."""
    if precision == "fp32":
        return TOLERANCE_EPS * TF32_EPS if context.on_gpu else FP32_TOLERANCE
    return TOLERANCE_EPS * torch.finfo(TYPES[precision]).eps


def _compare(
    precision: str, layout: str, layers: Callable[[Context], Iterator[Layer]], context: Context
) -> tuple[str, Numbers]:
    kind, distances = TYPES[precision], {}
    for name, make, shape in layers(context):
        torch.manual_seed(0)
        layer, (maps,) = make(), random_tensors(shape, dtype=kind)
        # The same rounded numbers on both sides.
        layer.to(kind)
        right = _run(layer.float(), maps.float())
        order = LAYOUTS[layout] if len(shape) == 5 else _flat(layout)
        moved = in_order(layer.to(context.device, kind), order)
        found = _run(moved, maps.to(context.device).contiguous(memory_format=order))
        for part, one, other in zip(PARTS, found, right):
            distances[f"{part}, {name}"] = distance(one, other)
    return judge(distances, tolerance(context, precision))


def _run(layer: nn.Module, maps: Tensor) -> list[Tensor]:
    """Output and gradients by maps and weight; the output's gradient is the same on both sides."""
    maps = maps.detach().requires_grad_()
    output = layer(maps)
    (upper,) = random_tensors(output.shape, seed=1, dtype=torch.bfloat16)
    weight = next(layer.parameters())
    return [output, *torch.autograd.grad(output, [maps, weight], upper.to(output))]


def layout_speed(precision: str, shape: tuple[int, int, int], context: Context) -> tuple[str, Numbers]:
    """Forward and backward of a 3x3x3 convolution: channels-last beside the usual order of memory."""
    batch, channels, side = shape
    taken = {}
    for layout, order in LAYOUTS.items():
        layer = nn.Conv3d(channels, channels, 3, padding=1, bias=False).to(context.device, TYPES[precision])
        in_order(layer, order)
        maps = torch.randn(batch, channels, *(side,) * 3, device=context.device, dtype=TYPES[precision])
        maps = maps.contiguous(memory_format=order).requires_grad_()
        upper = torch.randn_like(maps)

        def step(layer: nn.Conv3d = layer, maps: Tensor = maps, upper: Tensor = upper) -> object:
            return torch.autograd.grad(layer(maps), [maps, layer.weight], upper)

        taken[layout] = context.time_ms(step)
    flops = 3 * 2 * batch * side**3 * channels**2 * 27
    numbers = {"ms": taken, "flop_per_second": {name: flops / ms * 1e3 for name, ms in taken.items()}}
    text = f"NDHWC {taken['NDHWC']:.3f} ms, NCDHW {taken['NCDHW']:.3f} ms"
    return compare_speed(context, taken["NDHWC"], taken["NCDHW"], text, numbers)


def in_order(layer: nn.Module, order: torch.memory_format) -> nn.Module:
    """The same layer, its weights in an order of memory."""
    # torch's types do not know this argument.
    return layer.to(memory_format=order)  # type: ignore[call-overload]


def _flat(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == "NDHWC" else torch.contiguous_format
