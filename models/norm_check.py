"""Whether the fused norm of a GPU gives torch's own numbers here: tried on small maps before a run trusts it.

The Triton kernels compile for the GPU at hand and its driver. A kernel that is wrong there, or that cannot be compiled
at all, must cost a run no more than its speed. Compared are output and all gradients, in the run's precision and in
channels-last order, with torch's operators in float32 on the same numbers: milliseconds after the kernels' compilation.

Shapes: N batch, C channels, D H W space (2D has no D).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.kernels.instance_norm import NormActivation

SHAPES = ((2, 32, 3, 7, 6), (1, 96, 4, 5, 3), (2, 32, 17, 9))
"""Maps whose sides fill no block of the kernels, with channels that networks have, so that nothing is compiled for the
trial alone; 96 are more than one block of them."""
SLOPES = (0.01, 1.0)
EPS = 1e-5
LEAST_TOLERANCE = 1e-4
"""Largest distance from torch's numbers, as a share of their norm, in float32."""
TOLERANCE_EPS = 4
"""The same in half precision, in units of its rounding."""

FusedNorm = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
"""(features, weight, bias, eps, slope) -> LeakyReLU of the normalised features."""

_FAULTS: dict[tuple[str, torch.dtype], str | None] = {}


def fused_norm_fault(device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with the fused norm on this device in this precision, or None; tried once per process."""
    key = (str(device), dtype)
    if key not in _FAULTS:
        _FAULTS[key] = find_fault(NormActivation.apply, device, dtype)
    return _FAULTS[key]


def find_fault(fused: FusedNorm, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with a fused norm, in a few words, or None."""
    try:
        # A run may be in inference mode, where nothing has a gradient.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for shape in SHAPES:
                for slope in SLOPES:
                    fault = _compare(fused, _random_maps(shape, device, dtype), slope)
                    if fault is not None:
                        return f"{fault} for maps {shape}"
    except Exception as error:
        # Whatever a compiler or a driver raises: the run goes on without the kernels.
        return f"it fails with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None


def _random_maps(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Features, weight, bias and the output's gradient. The mean is not 0, and the run's random numbers stay."""
    generator = torch.Generator().manual_seed(0)
    order = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
    features, upper = (1 + 2 * torch.randn(shape, generator=generator) for _ in range(2))
    weight, bias = torch.randn(2, shape[1], generator=generator)
    maps = [each.to(device, dtype).contiguous(memory_format=order) for each in (features, upper)]
    return [maps[0], weight.to(device), bias.to(device), maps[1]]


def _compare(fused: FusedNorm, maps: list[Tensor], slope: float) -> str | None:
    *inputs, upper = maps
    features, weight, bias = leaves = [
        each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in inputs
    ]
    exact = [each.detach().float().requires_grad_() for each in inputs]
    output = fused(features, weight, bias, EPS, slope)
    expected = F.leaky_relu(F.instance_norm(exact[0], weight=exact[1], bias=exact[2], eps=EPS), slope)
    order = torch.channels_last_3d if output.dim() == 5 else torch.channels_last
    if output.dtype != inputs[0].dtype or not output.is_contiguous(memory_format=order):
        return "its output has another type or order of memory"
    found = [output, *torch.autograd.grad(output, leaves, upper)]
    right = [expected, *torch.autograd.grad(expected, exact, upper.float())]
    tolerance = max(TOLERANCE_EPS * torch.finfo(inputs[0].dtype).eps, LEAST_TOLERANCE)
    for name, one, other in zip(("output", "gradient by the maps", "gradient by the scale", "gradient by the shift"),
                                found, right):  # fmt: skip
        error = ((one.float() - other).norm() / other.norm()).item()
        # NaN is no number that is at most something.
        if not error <= tolerance:
            return f"its {name} is off by {error:.2g}"
    return None
