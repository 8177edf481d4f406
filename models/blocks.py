"""The parts of the U-Net: convolutions with normalisation, plain or residual, a decoder step, a head.

Parameters have the names and shapes of MONAI's DynUNet, which importing would take longer than torch itself.

Shapes: N batch, C channels, D H W space (2D has no D).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.cpu_bf16 import convolve_in_float32, needs_float32
from models.kernels.cpu_small import OneDnnConv3d
from models.kernels.cpu_transposed import SummedBiasConvTranspose2d, SummedBiasConvTranspose3d

NUM_GROUPS = 16
"""Groups of group normalisation; the features of every level must be a multiple of it."""

LayerMaker = Callable[..., nn.Module]
"""torch's layers for two and for three axes differ in the types of their arguments."""
_CONVOLUTIONS: dict[int, LayerMaker] = {2: nn.Conv2d, 3: OneDnnConv3d}
_TRANSPOSED: dict[int, LayerMaker] = {2: SummedBiasConvTranspose2d, 3: SummedBiasConvTranspose3d}
_NORMS: dict[str, dict[int, LayerMaker]] = {
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """What the layers of a network have in common."""

    dim: int
    norm: str
    """instance, batch or group; all with a scale and a shift for each channel."""
    negative_slope: float

    def make_norm(self, channels: int) -> nn.Module:
        """A normalisation layer."""
        if self.norm == "group":
            return nn.GroupNorm(NUM_GROUPS, channels)
        return _NORMS[self.norm][self.dim](channels, affine=True)

    def make_activation(self) -> nn.Module:
        """LeakyReLU, in place."""
        return nn.LeakyReLU(self.negative_slope, inplace=True)


class Convolution(nn.Module):
    """A convolution that keeps the size at stride 1 and divides it otherwise, under the name `conv`."""

    def __init__(
        self, dim: int, inputs: int, outputs: int, *, kernel: Sequence[int], stride: Sequence[int], bias: bool = False
    ) -> None:
        super().__init__()
        # What an odd kernel needs at stride 1; where it strides, the last voxel may be left over.
        padding = tuple((size - step + 1) // 2 for size, step in zip(kernel, stride))
        self.conv = _CONVOLUTIONS[dim](inputs, outputs, tuple(kernel), tuple(stride), padding, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, D, H, W) to (N, C', D', H', W')."""
        if isinstance(self.conv, nn.Conv3d) and needs_float32(features, self.conv):
            return convolve_in_float32(features, self.conv)
        return self.conv(features)


class Upsampling(nn.Module):
    """A transposed convolution that undoes a stride, with a bias, under the name `conv`."""

    def __init__(self, dim: int, inputs: int, outputs: int, *, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = _TRANSPOSED[dim](inputs, outputs, tuple(stride), tuple(stride))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, D, H, W) to (N, C', D s, H s, W s)."""
        return self.conv(features)


class BasicBlock(nn.Module):
    """Convolution, normalisation, activation, as often as asked for; the first convolution may stride.

    Parameters are those of `conv1`, `conv2` and so on, then of `norm1`, `norm2` and so on.
    """

    def __init__(
        self,
        layers: Layers,
        inputs: int,
        outputs: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        num_convs: int = 2,
    ) -> None:
        super().__init__()
        self.num_convs = num_convs
        ones = (1,) * layers.dim
        for index in range(num_convs):
            first = index == 0
            convolution = Convolution(
                layers.dim, inputs if first else outputs, outputs, kernel=kernel, stride=stride if first else ones
            )
            self.add_module(f"conv{index + 1}", convolution)
        self.lrelu = layers.make_activation()
        for index in range(num_convs):
            self.add_module(f"norm{index + 1}", layers.make_norm(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, D, H, W) to (N, C', D', H', W')."""
        for index in range(1, self.num_convs + 1):
            convolve, normalise = getattr(self, f"conv{index}"), getattr(self, f"norm{index}")
            features = self.lrelu(normalise(convolve(features)))
        return features


class ResidualBlock(BasicBlock):
    """A basic block whose input is added before the last activation, by a 1x1x1 convolution where sizes differ."""

    conv1: nn.Module
    conv2: nn.Module
    norm1: nn.Module
    norm2: nn.Module

    def __init__(
        self, layers: Layers, inputs: int, outputs: int, *, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__(layers, inputs, outputs, kernel=kernel, stride=stride)
        self.projects = inputs != outputs or any(step != 1 for step in stride)
        if self.projects:
            self.conv3 = Convolution(layers.dim, inputs, outputs, kernel=(1,) * layers.dim, stride=stride)
            self.norm3 = layers.make_norm(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, D, H, W) to (N, C', D', H', W')."""
        out = self.lrelu(self.norm1(self.conv1(features)))
        out = self.norm2(self.conv2(out))
        out += self.norm3(self.conv3(features)) if self.projects else features
        return self.lrelu(out)


class UpBlock(nn.Module):
    """A decoder step: upsampling, concatenation with the skip connection, a basic block."""

    def __init__(
        self,
        layers: Layers,
        inputs: int,
        outputs: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        num_convs: int = 2,
    ) -> None:
        super().__init__()
        self.transp_conv = Upsampling(layers.dim, inputs, outputs, stride=stride)
        self.conv_block = BasicBlock(
            layers, 2 * outputs, outputs, kernel=kernel, stride=(1,) * layers.dim, num_convs=num_convs
        )

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Coarse features and the encoder's at the finer resolution, which is that of the result."""
        return self.conv_block(torch.cat((self.transp_conv(features), skip), dim=1))


class Head(nn.Module):
    """A 1x1x1 convolution from features to logits."""

    def __init__(self, dim: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Convolution(dim, inputs, outputs, kernel=(1,) * dim, stride=(1,) * dim, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, D, H, W) to (N, K, D, H, W)."""
        return self.conv(features)
