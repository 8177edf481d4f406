"""The residual encoder of nnU-Net v2: a convolution, then levels of residual blocks; the decoder is the plain U-Net's.

Source: Isensee et al., nnU-Net Revisited (2024); He et al., Bag of Tricks for Image Classification (2019), the block
that pools its input where it strides (ResNet-D).

Shapes: N batch, C channels, D H W space (2D has no D).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.blocks import BasicBlock, Convolution, LayerMaker, Layers

_POOLINGS: dict[int, LayerMaker] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


class PooledResidualBlock(nn.Module):
    """Two convolutions, to whose output the input is added before the last activation.

    Where the first convolution strides, the input is averaged over as many voxels; where the number of channels
    changes, it goes through a 1x1x1 convolution and a normalisation after that, and else through nothing with weights.
    """

    def __init__(
        self, layers: Layers, inputs: int, outputs: int, *, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        ones = (1,) * layers.dim
        self.conv1 = Convolution(layers.dim, inputs, outputs, kernel=kernel, stride=stride)
        self.conv2 = Convolution(layers.dim, outputs, outputs, kernel=kernel, stride=ones)
        # One for each place: fused with the first normalisation, the first has nothing left to do.
        self.inner_lrelu: nn.Module = layers.make_activation()
        self.lrelu = layers.make_activation()
        self.norm1, self.norm2 = layers.make_norm(outputs), layers.make_norm(outputs)
        self.pool = _POOLINGS[layers.dim](tuple(stride), tuple(stride)) if tuple(stride) != ones else nn.Identity()
        self.projects = inputs != outputs
        if self.projects:
            self.conv3 = Convolution(layers.dim, inputs, outputs, kernel=ones, stride=ones)
            self.norm3 = layers.make_norm(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, D, H, W) to (N, C', D', H', W')."""
        out = self.inner_lrelu(self.norm1(self.conv1(features)))
        out = self.norm2(self.conv2(out))
        skip = self.pool(features)
        out += self.norm3(self.conv3(skip)) if self.projects else skip
        return self.lrelu(out)

    def start_as_skip(self) -> None:
        """Let the block begin as its skip connection alone: the last scale and shift before the sum become 0."""
        for parameter in self.norm2.parameters():
            nn.init.zeros_(parameter)


class ResidualLevel(nn.Module):
    """The residual blocks of one level, under the names `blocks.0`, `blocks.1` and so on; the first one may stride."""

    def __init__(
        self,
        layers: Layers,
        inputs: int,
        outputs: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        num_convs: int,
    ) -> None:
        super().__init__()
        ones = (1,) * layers.dim
        self.blocks = nn.Sequential(
            PooledResidualBlock(layers, inputs, outputs, kernel=kernel, stride=stride),
            *(
                PooledResidualBlock(layers, outputs, outputs, kernel=kernel, stride=ones)
                for _ in range(num_convs - 1)
            ),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, D, H, W) to (N, C', D', H', W')."""
        return self.blocks(features)


def make_stem(layers: Layers, inputs: int, outputs: int, *, kernel: Sequence[int]) -> BasicBlock:
    """The convolution before the first level, with normalisation and activation."""
    return BasicBlock(layers, inputs, outputs, kernel=kernel, stride=(1,) * layers.dim, num_convs=1)
