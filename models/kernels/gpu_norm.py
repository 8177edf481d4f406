"""Triton kernels of instance normalisation + LeakyReLU on channels-last feature maps.

What is large is read as few times as the formulas allow, in the order in which it lies in memory: forward twice (sums,
then values), backward twice (sums, then gradient). Sums are float32, kept per program and added up in a fixed order, so
that the same input gives the same bits.

Shapes: N batch, S voxels, C channels, P programs that share the voxels of an instance. Feature maps are (N, S, C) in
memory, statistics (N, C) float32.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Values that a program holds at a time."""
MOST_CHANNELS = 64
"""Most channels of a block: 128 bytes of half precision, one line of the cache."""
PROGRAMS = 1024
"""About as many programs share the sums, some for each multiprocessor of a large GPU."""
WARPS = 8
_PARTIALS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Grid:
    """How a feature map is split over programs."""

    batch: int
    voxels: int
    channels: int

    @property
    def block_c(self) -> int:
        return min(triton.next_power_of_2(self.channels), MOST_CHANNELS)

    @property
    def block_s(self) -> int:
        return BLOCK // self.block_c

    @property
    def sharing(self) -> int:
        """Programs that share the sums of a block of channels."""
        blocks = self.batch * triton.cdiv(self.channels, self.block_c)
        return max(min(triton.cdiv(self.voxels, self.block_s), PROGRAMS // blocks), 1)

    def launch(self, programs: int) -> tuple[int, int, int]:
        return programs, self.batch, triton.cdiv(self.channels, self.block_c)

    @property
    def blocks(self) -> dict[str, int]:
        return {"BLOCK_S": self.block_s, "BLOCK_C": self.block_c, "num_warps": WARPS}


def forward(
    features: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output like `features`, and mean and 1 / standard deviation (N, C) float32.

    Args:
        features: (N, C, ...) of any floating type up to float32, contiguous in channels-last order.
        weight: (C,) scale after the normalisation.
        bias: (C,) shift after the normalisation.
        eps: added to the variance.
        slope: factor of negative values.
    """
    grid = _grid(features)
    partial, mean, rstd = _statistics(features, grid)
    _moments[grid.launch(grid.sharing)](features, partial, grid.voxels, grid.channels, **grid.blocks)
    _finish_moments[grid.launch(1)[1:]](
        features, partial, mean, rstd, grid.voxels, grid.channels, grid.sharing, eps,
        PARTIALS=_PARTIALS, BLOCK_C=grid.block_c,
    )  # fmt: skip
    output = torch.empty_like(features)
    _apply[grid.launch(triton.cdiv(grid.voxels, grid.block_s))](
        features, mean, rstd, weight, bias, output, grid.voxels, grid.channels, slope, **grid.blocks
    )
    return output, mean, rstd


def backward(
    gradient: Tensor, features: Tensor, weight: Tensor, bias: Tensor, *, mean: Tensor, rstd: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by features (their type and order), weight and bias (float32), with the statistics of `forward`.

    `gradient` is of the shape and order of `features`.
    """
    grid = _grid(features)
    partial, scaled, plain = _statistics(features, grid)
    _gradient_sums[grid.launch(grid.sharing)](
        gradient, features, mean, rstd, weight, bias, partial, grid.voxels, grid.channels, slope, **grid.blocks
    )
    _finish_sums[grid.launch(1)[1:]](
        partial, plain, scaled, grid.channels, grid.sharing, PARTIALS=_PARTIALS, BLOCK_C=grid.block_c
    )
    by_features = torch.empty_like(features)
    _gradient_apply[grid.launch(triton.cdiv(grid.voxels, grid.block_s))](
        gradient, features, mean, rstd, weight, bias, plain, scaled, by_features, grid.voxels, grid.channels, slope,
        **grid.blocks,
    )  # fmt: skip
    return by_features, scaled.sum(0), plain.sum(0)


def _grid(features: Tensor) -> _Grid:
    batch, channels = features.shape[:2]
    assert features.movedim(1, -1).is_contiguous(), features.stride()
    return _Grid(batch=batch, voxels=features.numel() // (batch * channels), channels=channels)


def _statistics(features: Tensor, grid: _Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Room for partial sums (N, P, 2, C) and for two statistics (N, C)."""
    partial = features.new_empty(grid.batch, grid.sharing, 2, grid.channels, dtype=torch.float32)
    mean, rstd = features.new_empty(2, grid.batch, grid.channels, dtype=torch.float32).unbind()
    return partial, mean, rstd


@triton.jit
def _moments(x_ptr, partial_ptr, voxels, channels, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums of x - x_0 and of its square, x_0 the first voxel: the mean may be large beside the deviation."""
    program, sharing, instance = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = c < channels
    base = x_ptr + instance.to(tl.int64) * voxels * channels
    shift = tl.load(base + c, mask=inside_c, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    for start in range(program * BLOCK_S, voxels, sharing * BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        inside = (s < voxels)[:, None] & inside_c[None, :]
        x = tl.load(base + s[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - shift[None, :], 0.0)
        total += x
        squares += x * x
    out = partial_ptr + (instance * sharing + program) * 2 * channels + c
    tl.store(out, tl.sum(total, axis=0), mask=inside_c)
    tl.store(out + channels, tl.sum(squares, axis=0), mask=inside_c)


@triton.jit
def _sum_partials(partial_ptr, instance, c, channels, sharing, PARTIALS: tl.constexpr, BLOCK_C: tl.constexpr):
    inside_c = c < channels
    first = tl.zeros((PARTIALS, BLOCK_C), tl.float32)
    second = tl.zeros((PARTIALS, BLOCK_C), tl.float32)
    for start in range(0, sharing, PARTIALS):
        p = start + tl.arange(0, PARTIALS)
        inside = (p < sharing)[:, None] & inside_c[None, :]
        place = partial_ptr + (instance * sharing + p)[:, None] * 2 * channels + c[None, :]
        first += tl.load(place, mask=inside, other=0.0)
        second += tl.load(place + channels, mask=inside, other=0.0)
    return tl.sum(first, axis=0), tl.sum(second, axis=0)


@triton.jit
def _finish_moments(
    x_ptr, partial_ptr, mean_ptr, rstd_ptr, voxels, channels, sharing, eps, PARTIALS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    instance = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = c < channels
    total, squares = _sum_partials(partial_ptr, instance, c, channels, sharing, PARTIALS, BLOCK_C)
    shift = tl.load(x_ptr + instance.to(tl.int64) * voxels * channels + c, mask=inside_c, other=0.0).to(tl.float32)
    offset = total / voxels
    variance = tl.maximum(squares / voxels - offset * offset, 0.0)
    tl.store(mean_ptr + instance * channels + c, shift + offset, mask=inside_c)
    tl.store(rstd_ptr + instance * channels + c, 1.0 / tl.sqrt(variance + eps), mask=inside_c)


@triton.jit
def _finish_sums(
    partial_ptr, first_ptr, second_ptr, channels, sharing, PARTIALS: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    instance = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first, second = _sum_partials(partial_ptr, instance, c, channels, sharing, PARTIALS, BLOCK_C)
    tl.store(first_ptr + instance * channels + c, first, mask=c < channels)
    tl.store(second_ptr + instance * channels + c, second, mask=c < channels)


@triton.jit
def _load_affine(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, instance, c, channels):
    inside_c = c < channels
    mean = tl.load(mean_ptr + instance * channels + c, mask=inside_c, other=0.0)
    rstd = tl.load(rstd_ptr + instance * channels + c, mask=inside_c, other=0.0)
    weight = tl.load(weight_ptr + c, mask=inside_c, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=inside_c, other=0.0).to(tl.float32)
    return mean[None, :], rstd[None, :], weight[None, :], bias[None, :]


@triton.jit
def _apply(
    x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, y_ptr, voxels, channels, slope, BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    instance = tl.program_id(1)
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (s < voxels)[:, None] & (c < channels)[None, :]
    place = instance.to(tl.int64) * voxels * channels + s[:, None] * channels + c[None, :]
    mean, rstd, weight, bias = _load_affine(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, instance, c, channels)
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    z = (x - mean) * rstd * weight + bias
    tl.store(y_ptr + place, tl.where(z > 0, z, z * slope).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_sums(
    dy_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, partial_ptr, voxels, channels, slope,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    program, sharing, instance = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = c < channels
    base = instance.to(tl.int64) * voxels * channels
    mean, rstd, weight, bias = _load_affine(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, instance, c, channels)
    plain = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    scaled = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    for start in range(program * BLOCK_S, voxels, sharing * BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        inside = (s < voxels)[:, None] & inside_c[None, :]
        place = base + s[:, None] * channels + c[None, :]
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + place, mask=inside, other=0.0).to(tl.float32)
        normalised = (x - mean) * rstd
        dz = tl.where(normalised * weight + bias > 0, dy, dy * slope)
        plain += dz
        scaled += dz * normalised
    out = partial_ptr + (instance * sharing + program) * 2 * channels + c
    tl.store(out, tl.sum(plain, axis=0), mask=inside_c)
    tl.store(out + channels, tl.sum(scaled, axis=0), mask=inside_c)


@triton.jit
def _gradient_apply(
    dy_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, plain_ptr, scaled_ptr, dx_ptr, voxels, channels, slope,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    instance = tl.program_id(1)
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = c < channels
    inside = (s < voxels)[:, None] & inside_c[None, :]
    place = instance.to(tl.int64) * voxels * channels + s[:, None] * channels + c[None, :]
    mean, rstd, weight, bias = _load_affine(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, instance, c, channels)
    plain = tl.load(plain_ptr + instance * channels + c, mask=inside_c, other=0.0)[None, :] / voxels
    scaled = tl.load(scaled_ptr + instance * channels + c, mask=inside_c, other=0.0)[None, :] / voxels
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + place, mask=inside, other=0.0).to(tl.float32)
    normalised = (x - mean) * rstd
    dz = tl.where(normalised * weight + bias > 0, dy, dy * slope)
    dx = weight * rstd * (dz - plain - normalised * scaled)
    tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=inside)
