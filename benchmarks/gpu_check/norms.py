"""The fused instance norm as a network calls it, beside torch's operators: numbers, the same bits again, speed.

On a GPU with channels-last maps that are the Triton kernels; on a CPU it is the operator of the CPU.

Shapes: N batch, C channels, D H W space (2D has no D).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_check.context import (
    LAYOUTS,
    TYPES,
    Checks,
    Context,
    compare_speed,
    distance,
    judge,
    random_tensors,
)
from benchmarks.gpu_check.findings import Numbers, Outcome
from models.kernels.instance_norm import NormLeakyReLU, has_triton
from models.norm_check import EPS, LEAST_TOLERANCE, TOLERANCE_EPS, fused_norm_fault

SLOPES = (0.01, 1.0)
ODD_SHAPES = ((2, 3, 5, 7, 9), (1, 70, 5, 7, 9), (3, 5, 9, 13, 7), (2, 320, 3, 3, 3), (1, 1, 4, 4, 4), (3, 33, 11, 6))
PARTS = ("output", "gradient by the maps", "gradient by the scale", "gradient by the shift")
LARGE = (44, 32, 128, 128, 128)
"""More values than a 32-bit number counts."""
LARGE_BYTES = 40e9
PASSES = {"forward": 3, "backward": 5}
"""How often the maps are read or written at the least."""


def checks(context: Context) -> Checks:
    """What a run asks for at its start, numbers, many values, speed."""
    for precision in TYPES:
        yield f"{precision} at a run's start", functools.partial(start_check, precision)
        yield f"{precision} numbers", functools.partial(numbers_check, precision)
    yield "bf16 same bits again", repeated
    yield "bf16 more than 2^31 values", large
    for shape in context.sizes.maps:
        for precision in ("bf16", "fp16"):
            name = f"{precision} speed, {shape[1]} channels, {shape[2]} a side"
            yield name, functools.partial(speed, precision, shape)


def start_check(precision: str, context: Context) -> tuple[str, Numbers]:
    """The trial on which a run decides whether it trusts the kernels."""
    _need_kernels(context)
    fault = fused_norm_fault(context.device, TYPES[precision])
    if fault is not None:
        raise Outcome("differs", f"runs leave the fused norm out here: {fault}")
    return "runs trust the fused norm here", {}


def numbers_check(precision: str, context: Context) -> tuple[str, Numbers]:
    """Maps of a network and maps that fill no block, beside float64 on the CPU."""
    kind, distances = TYPES[precision], {}
    side = context.sizes.side
    for shape in (*ODD_SHAPES, (2, context.sizes.channels, side, side, side)):
        for slope in SLOPES:
            maps, upper = random_tensors(shape, shape, dtype=kind)
            # The mean is not 0, and may be large beside the deviation.
            maps = maps * 2 + 3
            layer = norm(shape, slope)
            right = _torch_norm(layer.double(), maps.double(), upper.double(), slope)
            found = _fused(layer.float().to(context.device), _moved(maps, context), _moved(upper, context), slope)
            for part, one, other in zip(PARTS, found, right):
                distances[f"{part}, {'x'.join(map(str, shape))}, slope {slope}"] = distance(one, other)
    return judge(distances, max(TOLERANCE_EPS * torch.finfo(kind).eps, 10 * LEAST_TOLERANCE))


def repeated(context: Context) -> tuple[str, Numbers]:
    """The same input gives the same bits: sums are added up in a fixed order."""
    shape = (2, context.sizes.channels, *(2 * context.sizes.side,) * 3)
    maps, upper = (_moved(each, context) for each in random_tensors(shape, shape, dtype=torch.bfloat16))
    layer = norm(shape, 0.01).to(context.device)
    first, second = (_fused(layer, maps, upper, 0.01) for _ in range(2))
    if unequal := [part for part, one, other in zip(PARTS, first, second) if not torch.equal(one, other)]:
        raise Outcome("differs", f"two runs of the same numbers differ: {', '.join(unequal)}")
    return "output and gradients are the same bits", {}


def large(context: Context) -> tuple[str, Numbers]:
    """Positions beyond 32 bits: the last sample of a large batch, beside the same sample alone."""
    context.need_gpu("only a large GPU has maps of that size")
    _need_kernels(context)
    context.need_memory(LARGE_BYTES)
    order = torch.channels_last_3d
    maps = torch.empty(LARGE, dtype=torch.bfloat16, device=context.device, memory_format=order).normal_()
    layer = norm(LARGE, 0.01).to(context.device)
    with torch.no_grad():
        many = layer(maps)[-1:]
    maps.requires_grad_()
    (by_maps,) = torch.autograd.grad(layer(maps), maps, maps.detach())
    alone = maps[-1:].detach().clone(memory_format=order).requires_grad_()
    (by_alone,) = torch.autograd.grad(layer(alone), alone, alone.detach())
    distances = {PARTS[0]: distance(many, layer(alone)), PARTS[1]: distance(by_maps[-1:], by_alone)}
    return judge(distances, TOLERANCE_EPS * torch.finfo(torch.bfloat16).eps)


def speed(precision: str, shape: tuple[int, int, int], context: Context) -> tuple[str, Numbers]:
    """Forward, and forward with backward: fused on channels-last maps, torch's operators on both orders of memory."""
    batch, channels, side = shape
    maps = torch.randn(batch, channels, *(side,) * 3, device=context.device).to(TYPES[precision])
    layer = norm(maps.shape, 0.01).to(context.device)
    taken: dict[str, dict[str, float]] = {}
    for name, order, call in (
        ("fused NDHWC", "NDHWC", _fused), ("torch NDHWC", "NDHWC", _torch_norm), ("torch NCDHW", "NCDHW", _torch_norm)
    ):  # fmt: skip
        laid = maps.contiguous(memory_format=LAYOUTS[order])

        def forward(laid: Tensor = laid, fused: bool = call is _fused) -> Tensor:
            with torch.no_grad():
                return layer(laid) if fused else _torch_forward(layer, laid, 0.01)

        both = functools.partial(call, layer, laid, laid, 0.01)
        taken[name] = {"forward": context.time_ms(forward), "both": context.time_ms(both)}
    fused, usual = taken["fused NDHWC"], taken["torch NCDHW"]
    num_bytes = maps.numel() * maps.element_size()
    rate = num_bytes * sum(PASSES.values()) / fused["both"] * 1e3
    text = f"fused {fused['both']:.3f} ms ({rate / 1e9:.0f} GB/s), torch NCDHW {usual['both']:.3f} ms"
    return compare_speed(context, fused["both"], usual["both"], text, {"ms": taken, "bytes_per_second": rate})


def norm(shape: tuple[int, ...], slope: float) -> NormLeakyReLU:
    """The layer of a network, with scale and shift that are not 1 and 0."""
    layer = (nn.InstanceNorm3d if len(shape) == 5 else nn.InstanceNorm2d)(shape[1], eps=EPS, affine=True)
    with torch.no_grad():
        layer.weight.copy_(random_tensors((shape[1],), seed=2)[0])
        layer.bias.copy_(random_tensors((shape[1],), seed=3)[0])
    return NormLeakyReLU(layer, slope)


def _need_kernels(context: Context) -> None:
    context.need_gpu("Triton kernels need a GPU")
    if not has_triton():
        raise Outcome("skipped", "Triton is not installed: runs take torch's operators")


def _moved(maps: Tensor, context: Context) -> Tensor:
    order = torch.channels_last_3d if maps.dim() == 5 else torch.channels_last
    return maps.to(context.device).contiguous(memory_format=order)


def _fused(layer: NormLeakyReLU, maps: Tensor, upper: Tensor, slope: float) -> list[Tensor]:
    maps = maps.detach().requires_grad_()
    output = layer(maps)
    return [output, *torch.autograd.grad(output, [maps, *layer.parameters()], upper)]


def _torch_forward(layer: NormLeakyReLU, maps: Tensor, slope: float) -> Tensor:
    # Scale, then shift.
    weight, bias = (each.to(maps.dtype) for each in layer.parameters())
    return F.leaky_relu(F.instance_norm(maps, weight=weight, bias=bias, eps=EPS), slope)


def _torch_norm(layer: NormLeakyReLU, maps: Tensor, upper: Tensor, slope: float) -> list[Tensor]:
    maps = maps.detach().requires_grad_()
    output = _torch_forward(layer, maps, slope)
    return [output, *torch.autograd.grad(output, [maps, *layer.parameters()], upper)]
