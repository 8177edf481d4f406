"""3x3x3 convolutions on a CPU with half of the multiplications.

Winograd's F(4, 3) along D: four planes of the output need six products of planes where the definition takes twelve, and
each product is a 3x3 convolution. On a CPU whose vector units are the limit that is faster; the planes that go in
and come out are small products of matrices with the maps as they lie in memory, a few tiles at a time for the caches.

Shapes: N batch, I and O channels that go in and out, D H W space, T tiles of four planes, P = H W.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from models.kernels.cpu_cubes import gradients, is_cube, weight_gradient_of_planes
from models.kernels.cpu_small import OneDnnConv3d

TILE = 4
POINTS = 6
"""Products for each tile: a tile's four planes and the two beside them."""
LEAST_CHANNELS = 32
LEAST_SAVING = 1.5
"""Multiplications of the definition for each one here, empty planes of the last tile counted."""
BLOCK_BYTES = 2_500_000
"""What a thread transforms at a time, for its caches."""

# Points 0, 1, -1, 2, -2 and infinity. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks
# (2015), section 4.3.
_INPUT = torch.tensor([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
], dtype=torch.float32)  # fmt: skip
_KERNEL = torch.tensor([
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
], dtype=torch.float32)  # fmt: skip
_OUTPUT = torch.tensor([
    [1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1],
], dtype=torch.float32)  # fmt: skip


class WinogradConv3d(OneDnnConv3d):
    """A 3x3x3 convolution with padding 1; it takes over the weight, and so the name in a checkpoint, of `layer`."""

    def __init__(self, layer: nn.Conv3d) -> None:
        assert is_suited(layer), layer
        super().__init__(layer.in_channels, layer.out_channels, 3, padding=1, bias=False, device="meta")
        self.weight = layer.weight

    def forward(self, features: Tensor) -> Tensor:
        """(N, I, D, H, W) to (N, O, D, H, W); the plain convolution for what this one is not made for."""
        plain = torch.compiler.is_compiling() or torch.is_autocast_enabled(features.device.type)
        if plain or not gains(features):
            return super().forward(features)
        return _Convolution.apply(features, self.weight)


def is_suited(layer: nn.Module) -> TypeGuard[nn.Conv3d]:
    """Whether WinogradConv3d can take its place: 3x3x3 at stride 1 and padding 1, and wide enough to gain."""
    if not isinstance(layer, nn.Conv3d) or isinstance(layer, WinogradConv3d):
        return False
    return min(layer.weight.shape[:2]) >= LEAST_CHANNELS and is_cube(layer)


def gains(features: Tensor) -> bool:
    """Whether feature maps (N, I, D, H, W) lie as this module reads them and have enough planes."""
    if features.device.type != "cpu" or features.dtype != torch.float32:
        return False
    depth = features.shape[2]
    saving = 3 * depth / (POINTS * num_tiles(depth))
    return saving >= LEAST_SAVING and features.is_contiguous(memory_format=torch.channels_last_3d)


def replace_convolutions(network: nn.Module) -> None:
    """Put `WinogradConv3d` in place of the convolutions that it suits; names and values of parameters stay."""
    for module in network.modules():
        for name, child in module.named_children():
            if is_suited(child):
                setattr(module, name, WinogradConv3d(child))


def num_tiles(depth: int) -> int:
    """Tiles that cover `depth` planes."""
    return -(-depth // TILE)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        return convolve(features, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return gradients(
            ctx, gradient, lambda upper, _, weight: convolve(upper, weight.flip(2, 3, 4).transpose(0, 1)),
            weight_gradient,
        )  # fmt: skip


def convolve(features: Tensor, weight: Tensor) -> Tensor:
    """Convolution with zero padding.

    Args:
        features: (N, I, D, H, W) float32, channels-last.
        weight: (O, I, 3, 3, 3).

    Returns:
        (N, O, D, H, W), channels-last.
    """
    num_out = len(weight)
    kernels = _kernels(weight)
    planes = _planes(features)
    out = features.new_empty((features.shape[0], *features.shape[2:], num_out)).permute(0, 4, 1, 2, 3)
    targets = _planes(out)
    for block in _blocks(features, num_out):
        maps = _transformed(block.inputs, planes[block.reads], features)
        products = features.new_empty((POINTS, block.num_tiles, *features.shape[3:], num_out))
        for point in range(POINTS):
            products[point] = F.conv2d(maps[point], kernels[point], padding=1).permute(0, 2, 3, 1)
        torch.mm(block.outputs, products.view(len(block.inputs), -1), out=targets[block.writes])
    return out


def weight_gradient(features: Tensor, gradient: Tensor) -> Tensor:
    """Gradient by the weight, (O, I, 3, 3, 3), of features (N, I, D, H, W) and the output's gradient (N, O, D, H, W).

    Both channels-last. It is the transpose of what `convolve` does to the weight.
    """
    num_in, num_out = features.shape[1], gradient.shape[1]
    planes, upper = _planes(features), _planes(gradient)
    total = features.new_zeros((POINTS, num_out, num_in, 3, 3))
    for block in _blocks(features, num_out):
        maps = _transformed(block.inputs, planes[block.reads], features)
        uppers = _transformed(block.outputs.T, upper[block.writes], gradient)
        for point in range(POINTS):
            total[point] += weight_gradient_of_planes(maps[point], uppers[point])
    return torch.tensordot(_KERNEL, total, ([0], [0])).permute(1, 2, 0, 3, 4)


@dataclasses.dataclass(frozen=True)
class _Block:
    """Neighbouring tiles, over the borders of samples where these are small, and the matrices of their planes."""

    num_tiles: int
    reads: slice
    """Planes that the tiles read, of N D."""
    writes: slice
    """Planes that they make."""
    inputs: Tensor
    """(6 T, planes read): what goes into the products."""
    outputs: Tensor
    """(planes made, 6 T): what is made of them."""


def _blocks(features: Tensor, num_out: int) -> tuple[_Block, ...]:
    num_samples, num_in, depth, height, width = features.shape
    tile_bytes = POINTS * height * width * max(num_in, num_out) * features.element_size()
    size = max(BLOCK_BYTES * torch.get_num_threads() // tile_bytes, 1)
    return _plan_blocks(num_samples, depth, size)


@functools.lru_cache(maxsize=128)
def _plan_blocks(num_samples: int, depth: int, size: int) -> tuple[_Block, ...]:
    """All tiles of the samples' planes, at most `size` in a block and about as many in each."""
    tiles = [(sample, tile) for sample in range(num_samples) for tile in range(num_tiles(depth))]
    count = -(-len(tiles) // size)
    bounds = [round(len(tiles) * i / count) for i in range(count + 1)]
    return tuple(_plan_block(tiles[start:stop], depth) for start, stop in itertools.pairwise(bounds))


def _plan_block(tiles: list[tuple[int, int]], depth: int) -> _Block:
    def rows(tile: tuple[int, int], margin: int) -> range:
        sample, first = tile[0] * depth, TILE * tile[1]
        return range(sample + max(first - margin, 0), sample + min(first + TILE + margin, depth))

    reads = slice(rows(tiles[0], 1).start, rows(tiles[-1], 1).stop)
    writes = slice(rows(tiles[0], 0).start, rows(tiles[-1], 0).stop)
    inputs = torch.zeros(POINTS, len(tiles), reads.stop - reads.start)
    outputs = torch.zeros(writes.stop - writes.start, POINTS, len(tiles))
    for index, tile in enumerate(tiles):
        first = tile[0] * depth + TILE * tile[1]
        for row in rows(tile, 1):
            inputs[:, index, row - reads.start] = _INPUT[:, row - first + 1]
        for row in rows(tile, 0):
            outputs[row - writes.start, :, index] = _OUTPUT[row - first]
    return _Block(len(tiles), reads, writes, inputs.flatten(0, 1), outputs.flatten(1))


def _planes(features: Tensor) -> Tensor:
    """(N D, P C) view of channels-last maps (N, C, D, H, W)."""
    return features.permute(0, 2, 3, 4, 1).view(features.shape[0] * features.shape[2], -1)


def _transformed(matrix: Tensor, planes: Tensor, like: Tensor) -> Tensor:
    """(6, T, C, H, W), each channels-last, of planes (rows, P C) of maps like (N, C, D, H, W)."""
    channels, height, width = like.shape[1], *like.shape[3:]
    return torch.mm(matrix, planes).view(POINTS, -1, height, width, channels).permute(0, 1, 4, 2, 3)


def _kernels(weight: Tensor) -> list[Tensor]:
    """Six 3x3 kernels (O, I, 3, 3) of a 3x3x3 one."""
    spread = torch.tensordot(_KERNEL, weight, ([1], [2]))
    return [kernel.contiguous(memory_format=torch.channels_last) for kernel in spread]
