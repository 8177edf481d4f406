"""Removal of what is not connected to the largest piece of a segmentation, where cross-validation found that it helps.

Source: Isensee et al., nnU-Net (2021), Methods, empirical parameters; nnU-Net v2 for neighbours and ties.
"""

from __future__ import annotations

import numpy as np

from inference.decision import PostProcessing
from utils.schema import LabelScheme


def keep_largest(mask: np.ndarray, labels: LabelScheme, post: PostProcessing) -> np.ndarray:
    """A mask with only the largest connected component, of all foreground first and then of each class named.

    Voxels that touch at a corner are connected; of equally large components all are kept. What is removed becomes
    background. With regions the components are those of the classes that are written, not of the regions.

    Args:
        mask: (S, A, R) uint8 of file values; it is not changed.
        labels: the values.
        post: what is to be done.

    Returns:
        The mask itself where nothing is to be done, else a new one.
    """
    if post.does_nothing:
        return mask
    background = labels.values[0]
    mask = mask.copy()
    if post.foreground:
        _clear_smaller(mask, mask != background, background)
    for name, value in zip(labels.names, labels.values):
        if name in post.classes:
            _clear_smaller(mask, mask == value, background)
    return mask


def _clear_smaller(mask: np.ndarray, inside: np.ndarray, background: int) -> None:
    """Set the voxels of all but the largest components of `inside` to background, in place."""
    # A tenth of a program's start, and most data sets keep all components.
    from scipy import ndimage

    boxes = ndimage.find_objects(inside.view(np.uint8))
    if not boxes:
        return
    # Components are numbered inside the box only: four bytes a voxel.
    components, count = ndimage.label(inside[boxes[0]], structure=np.ones((3,) * mask.ndim, dtype=bool))
    if count < 2:
        return
    # Plane by plane: counting and looking up turn their input into eight bytes a voxel.
    sizes = np.zeros(count + 1, dtype=np.int64)
    for plane in components:
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    sizes[0] = 0
    smaller = sizes < sizes.max()
    smaller[0] = False
    for target, plane in zip(mask[boxes[0]], components):
        target[smaller[plane]] = background
