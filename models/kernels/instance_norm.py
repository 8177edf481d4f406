"""Instance normalisation and LeakyReLU as one operator that keeps channels-last order.

torch's own instance normalisation copies a channels-last input to contiguous order and leaves its output there, so that
each convolution has to turn it back. On a GPU this operator runs the kernels of norm_kernels.py, on a CPU the operators
of host_norm.py; elsewhere, and inside torch.compile (which fuses them), the same formulas in torch.

Shapes: N batch, C channels, D H W space (2D has no D).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from models.blocks import BasicBlock, ResidualBlock
from models.kernels.cpu_norm import is_channels_last, normalise_and_activate
from models.residual_encoder import PooledResidualBlock

KERNEL_TYPES = (torch.float16, torch.bfloat16, torch.float32)


class NormLeakyReLU(nn.Module):
    """LeakyReLU of the instance-normalised, scaled and shifted input (N, C, D, H, W).

    It takes over the parameters, and so the names in a checkpoint, of the layer that it replaces.
    """

    def __init__(self, norm: nn.Module, negative_slope: float) -> None:
        super().__init__()
        assert norm.affine and not norm.track_running_stats, norm
        self.weight, self.bias = norm.weight, norm.bias
        self.eps, self.negative_slope = norm.eps, negative_slope

    def forward(self, features: Tensor) -> Tensor:
        """Same shape, type and order of memory."""
        if is_channels_last(features) and features.device.type == "cpu" and not torch.compiler.is_compiling():
            return normalise_and_activate(features, self.weight, self.bias, eps=self.eps, slope=self.negative_slope)
        return NormActivation.apply(features, self.weight, self.bias, self.eps, self.negative_slope)

    def extra_repr(self) -> str:
        """Shown where the network is printed."""
        return f"{len(self.weight)}, eps={self.eps}, negative_slope={self.negative_slope}"


class NormActivation(Function):
    """y = a(w x' + b), x' = (x - mean) / sqrt(var + eps) over the voxels of each instance and channel, a LeakyReLU.

    Statistics are float32 (float64 for float64 input) whatever the type of x. With g the gradient before a, averaged
    over voxels where a bar is: dx = w / sqrt(var + eps) (g - mean(g) - x' mean(g x')), dw = sum(g x'), db = sum(g).
    Only x and the statistics are kept for it.

    Source: Ulyanov et al., Instance Normalization (2016); Ioffe and Szegedy, Batch Normalization (2015), section 3,
    for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        """Normalise features (N, C, D, H, W) with weight and bias (C,)."""
        if runs_kernels(features):
            from models.kernels import gpu_norm as norm_kernels

            # Triton launches on the current device, which need not be the tensors'.
            with torch.cuda.device_of(features):
                output, mean, rstd = norm_kernels.forward(features, weight, bias, eps=eps, slope=slope)
        else:
            output, mean, rstd = forward_formula(features, weight, bias, eps=eps, slope=slope)
        ctx.save_for_backward(features, weight, bias, mean, rstd)
        ctx.slope = slope
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by features, weight and bias."""
        features, weight, bias, mean, rstd = ctx.saved_tensors
        shared = {"mean": mean, "rstd": rstd, "slope": ctx.slope}
        if runs_kernels(features):
            from models.kernels import gpu_norm as norm_kernels

            # A skip connection hands back a part of the channels of a larger tensor.
            gradient = gradient.contiguous(memory_format=_channels_last(features))
            with torch.cuda.device_of(features):
                by_features, *by_affine = norm_kernels.backward(gradient, features, weight, bias, **shared)
        else:
            by_features, *by_affine = backward_formula(gradient, features, weight, bias, **shared)
        return by_features, *(each.to(weight.dtype) for each in by_affine), None, None


def forward_formula(
    features: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output like `features`, and mean and 1 / standard deviation (N, C), in torch."""
    x, space = _wide(features), tuple(range(2, features.dim()))
    mean = x.mean(space)
    centred = x - _per_channel(mean, x)
    rstd = (centred.square().mean(space) + eps).rsqrt()
    scale = _per_channel(rstd * _wide(weight), x)
    output = F.leaky_relu(centred * scale + _per_channel(_wide(bias)[None], x), slope)
    return output.to(features.dtype), mean, rstd


def backward_formula(
    gradient: Tensor, features: Tensor, weight: Tensor, bias: Tensor, *, mean: Tensor, rstd: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by features (their type), weight and bias, with the statistics of `forward_formula`."""
    x, space = _wide(features), tuple(range(2, features.dim()))
    normalised = (x - _per_channel(mean, x)) * _per_channel(rstd, x)
    scale = _per_channel(_wide(weight)[None], x)
    positive = normalised * scale + _per_channel(_wide(bias)[None], x) > 0
    g = _wide(gradient)
    g = torch.where(positive, g, g * slope)
    plain, scaled = g.sum(space), (g * normalised).sum(space)
    num_voxels = features[0, 0].numel()
    centred = g - _per_channel(plain / num_voxels, x) - normalised * _per_channel(scaled / num_voxels, x)
    by_features = centred * scale * _per_channel(rstd, x)
    return by_features.to(features.dtype), scaled.sum(0), plain.sum(0)


def runs_kernels(features: Tensor) -> bool:
    """Whether the Triton kernels take this tensor: on a GPU, channels-last, and not while torch.compile looks on."""
    if torch.compiler.is_compiling() or not features.is_cuda or not has_triton():
        return False
    return features.dtype in KERNEL_TYPES and features.is_contiguous(memory_format=_channels_last(features))


def has_triton() -> bool:
    """Whether Triton is installed; torch's packages for GPUs bring it along."""
    return importlib.util.find_spec("triton") is not None


def fuse_norms(network: nn.Module, negative_slope: float) -> None:
    """Put `NormLeakyReLU` in place of the instance norms of all blocks; names and values of parameters stay.

    A residual block adds its input before the activation, so only its normalisation is replaced there (slope 1).
    """
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            _fuse(block, {"norm1": 1.0, "norm2": 1.0, "norm3": 1.0})
        elif isinstance(block, PooledResidualBlock):
            _fuse(block, {"norm1": negative_slope, "norm2": 1.0, "norm3": 1.0})
            block.inner_lrelu = nn.Identity()
        elif isinstance(block, BasicBlock):
            _fuse(block, {f"norm{index}": negative_slope for index in range(1, block.num_convs + 1)})
            block.lrelu = nn.Identity()


def _fuse(block: nn.Module, slopes: dict[str, float]) -> None:
    for name, slope in slopes.items():
        if hasattr(block, name):
            setattr(block, name, NormLeakyReLU(getattr(block, name), slope))


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values[(..., *(None,) * (like.dim() - 2))]


def _channels_last(features: Tensor) -> torch.memory_format:
    return torch.channels_last_3d if features.dim() == 5 else torch.channels_last
