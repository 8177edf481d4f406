"""Convolution blocks of the U-Net: MONAI's, with normalisation and activation in one step where that is faster.

Shapes: N batch, C channels, D H W space (2D blocks have no D).
"""

from __future__ import annotations

import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock, UnetUpBlock
from torch import Tensor, nn

from models.host_norm import is_channels_last, normalise_and_activate

_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


class PlainBlock(UnetBasicBlock):
    """Two convolutions, each followed by normalisation and LeakyReLU; parameters are those of MONAI's block."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C_out, D, H, W) of (N, C_in, D, H, W); sizes are divided by the block's stride."""
        slope = self.lrelu.negative_slope
        features = norm_activation(self.norm1, self.conv1(features), slope)
        return norm_activation(self.norm2, self.conv2(features), slope)


class ResidualBlock(UnetResBlock):
    """As PlainBlock, with a shortcut that joins before the last activation; parameters are those of MONAI's block."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C_out, D, H, W) of (N, C_in, D, H, W); sizes are divided by the block's stride."""
        slope = self.lrelu.negative_slope
        shortcut = norm_activation(self.norm3, self.conv3(features)) if self.downsample else features
        features = norm_activation(self.norm1, self.conv1(features), slope)
        return F.leaky_relu(norm_activation(self.norm2, self.conv2(features)) + shortcut, slope, inplace=True)


class UpBlock(UnetUpBlock):
    """A transposed convolution, the skip joined to it, and a PlainBlock; parameters are those of MONAI's block."""

    def __init__(self, dim: int, wide: int, narrow: int, kernel: tuple[int, ...], stride: tuple[int, ...], **layers):
        super().__init__(dim, wide, narrow, kernel, 1, stride, trans_bias=True, **layers)
        self.conv_block = PlainBlock(dim, 2 * narrow, narrow, kernel, 1, **layers)


def norm_activation(norm: nn.Module, features: Tensor, slope: float = 1.0) -> Tensor:
    """Normalise and apply LeakyReLU; a slope of 1 leaves the sign alone."""
    if isinstance(norm, _INSTANCE_NORMS) and features.device.type == "cpu" and is_channels_last(features):
        return normalise_and_activate(features, norm.weight, norm.bias, eps=norm.eps, slope=slope)
    normal = norm(features)
    return normal if slope == 1 else F.leaky_relu(normal, slope, inplace=True)
