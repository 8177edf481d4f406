"""Elastic deformation of a batch, in torch on the batch's device: DALI has none in 3D.

Shapes: N batch, C channels, D H W space (2D without D), A axes that are moved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from data_loading.augment.presets import RandomChange

SMOOTHNESS_VOXELS = (9.0, 13.0)
"""Standard deviation of the Gaussian that smooths the displacements. Source: nnU-Net v1."""


def deform(
    image: Tensor, label: Tensor, change: RandomChange, *, in_plane: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Displace the voxels of some patches smoothly, image and label alike.

    The image is interpolated linearly, the label takes the nearest voxel's value. What would come from outside the
    patch is its border, repeated. Patches that are not drawn stay as they are.

    Args:
        image: (N, C, D, H, W) or (N, C, H, W) float32.
        label: (N, 1, D, H, W) or (N, 1, H, W) uint8.
        change: how often, and the standard deviation of the displacement in voxels.
        in_plane: move all slices of a 3D patch alike, and not along D.
        generator: source of the random numbers, on the CPU, so that CPU and GPU batches of one seed agree.
    """
    images, labels = list(image), list(label)
    for n, patch in enumerate(images):
        coin, share, smoothness = torch.rand(3, generator=generator).tolist()
        if coin >= change.probability:
            continue
        size = tuple(patch.shape[2:] if in_plane and patch.ndim == 4 else patch.shape[1:])
        field = displacement(size, _between(SMOOTHNESS_VOXELS, smoothness), generator, image.device)
        grid = _grid(size, field * _between(change.bounds, share))
        images[n] = _sample(patch, grid, "bilinear")
        labels[n] = _sample(label[n].float(), grid, "nearest").to(label.dtype)
    return torch.stack(images), torch.stack(labels)


def displacement(
    size: tuple[int, ...], smoothness_voxels: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Random displacements (A, *size) on `device` with mean 0 and standard deviation 1 at every voxel.

    They are Gaussian bumps about points one bump width apart, of random height: as good as smoothed noise of all
    voxels, and made of a few hundred numbers.
    """
    weights = [_bumps(length, smoothness_voxels, device) for length in size]
    field = torch.randn(len(size), *(weight.shape[1] for weight in weights), generator=generator)
    # The few numbers alone are copied, and nobody waits for them.
    field = field.to(device, non_blocking=True)
    for weight in weights:
        # The next axis of points becomes the last axis, of voxels: after all of them the order is as before.
        field = torch.tensordot(field, weight, dims=([1], [1]))
    return field


def _bumps(length: int, width: float, device: torch.device | str) -> Tensor:
    """(voxels, points) height of each point's bump at each voxel; the squares of a row sum to 1."""
    # Bumps further than three widths outside add nothing.
    count = math.ceil(length / width) + 7
    points = (torch.arange(count, device=device) - 3) * width
    voxels = torch.arange(length, device=device)[:, None] + 0.5
    heights = torch.exp(-0.5 * ((voxels - points) / width) ** 2)
    return heights / heights.norm(dim=1, keepdim=True)


def _grid(size: tuple[int, ...], displacement_voxels: Tensor) -> Tensor:
    """Positions (1, *size, A) that voxels are taken from, in -1..1 and W, H, D order as `grid_sample` has them."""
    axes = [torch.arange(length, device=displacement_voxels.device) + 0.5 for length in size]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement_voxels
    # By numbers and not by a tensor of them, which a GPU would wait for.
    scaled = torch.stack([2 * position / length - 1 for position, length in zip(positions, size)])
    return scaled.flip(0).movedim(0, -1)[None]


def _sample(patch: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(C, ...) at the grid's positions; in plane the slices are channels."""
    flat = patch.reshape(1, -1, *grid.shape[1:-1])
    return grid_sample(flat, grid, mode=mode, padding_mode="border", align_corners=False).reshape(patch.shape)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
